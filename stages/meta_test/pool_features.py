"""The pool itself as a learner: nearest class mean on the teachers' features (METHODS 4).

No meta-training, no gradient: what the pool's own features give is the bar for every method that
distils them into one network.

Shapes: n images, d_i features of teacher i; e episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.dataset import ClassImages
from stages.common.episodes import EpisodeIndex
from stages.common.pool import Teacher
from stages.meta_test.nearest_class_mean import nearest

BATCH = 100


def features(teacher: Teacher, data: ClassImages, device: str) -> list[Tensor]:
    """Unit-length features (n_c, d) of every image of every class c, BatchNorm in eval mode."""
    blocks = []
    with torch.inference_mode():
        for images in data.images:
            rows = []
            for batch in images.split(BATCH):
                x = channels_last(teacher.info.normalisation.apply(batch.to(device)))
                rows.append(F.normalize(teacher.net(x).features, dim=1))
            blocks.append(torch.cat(rows))
    return blocks


def predictions(blocks: Sequence[Tensor], indices: Sequence[EpisodeIndex], metric: str) -> Tensor:
    """Labels (e, n_way * n_query) by nearest class mean, from the features of each class."""
    rows = []
    for index in indices:
        n_way = len(index.classes)
        classes = index.classes.tolist()
        support = torch.cat([blocks[c][index.support[i]] for i, c in enumerate(classes)])
        query = torch.cat([blocks[c][index.query[i]] for i, c in enumerate(classes)])
        rows.append(nearest(support, query, n_way, metric))
    return torch.stack(rows)


def predict_by_pool(
    pool: Sequence[Teacher],
    data: ClassImages,
    indices: Sequence[EpisodeIndex],
    metric: str,
    device: str,
    done: Callable[[int], None],
) -> tuple[Tensor, list[Tensor]]:
    """Labels (e, n_way * n_query): by all teachers' features side by side, and by each teacher's.

    Side by side, each teacher's features have unit length: no teacher speaks louder.
    """
    per_teacher = []
    for i, teacher in enumerate(pool):
        per_teacher.append(features(teacher, data, device))
        done(i + 1)
    together = [torch.cat(parts, 1) for parts in zip(*per_teacher, strict=True)]
    return (
        predictions(together, indices, metric),
        [predictions(blocks, indices, metric) for blocks in per_teacher],
    )
