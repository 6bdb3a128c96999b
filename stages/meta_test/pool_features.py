"""The pool itself as a learner (METHODS 4): its features, its log-probabilities, or its readout.

No meta-training: what the pool gives is the bar for every method that distils it into one network.

Shapes: n images, d_i features of teacher i; e episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import at, channels_last
from stages.common.dataset import ClassImages
from stages.common.distilled import log_ratios
from stages.common.params import Precision
from stages.common.pool import Teacher
from stages.meta_test.episodes import BATCH, Blocks, Task, gathered, support_labels
from stages.meta_test.linear_probe import probe
from stages.meta_test.nearest_class_mean import nearest
from stages.meta_test.params import MetaTest, fresh_head


class Seen(NamedTuple):
    """What a teacher makes of every image; doubled: mean over an image and its mirror image."""

    features: Blocks  # unit length
    log_probabilities: Blocks
    doubled_features: Blocks  # of unit length before the mean
    doubled_log_ratios: Blocks


def seen_by(
    teacher: Teacher, data: Sequence[ClassImages], precision: Precision, device: str
) -> Seen:
    """The teacher on all images, at its own size and normalisation, BatchNorm in eval mode."""
    seen = Seen([], [], [], [])
    with torch.inference_mode(), at(precision, device):
        for part in data:
            classes = [_of_a_class(teacher, images, device) for images in part.images]
            for blocks, own in zip(seen, zip(*classes, strict=True), strict=True):
                blocks.append(list(own))
    return seen


def _of_a_class(teacher: Teacher, images: Tensor, device: str) -> tuple[Tensor, ...]:
    """The fields of `Seen` for images (n, h, w, 3): (n, d) each."""
    batches = []
    for batch in images.split(BATCH):
        x = teacher.info.view.of(batch.to(device))
        output = teacher.net(channels_last(torch.cat([x, x.flip(3)])))
        z, z_mirrored = F.normalize(output.features.float(), dim=1).chunk(2)
        logits, logits_mirrored = output.logits.float().chunk(2)
        ratios = log_ratios((logits + logits_mirrored) / 2, [logits.shape[1]])
        batches.append((z, logits.log_softmax(1), (z + z_mirrored) / 2, ratios))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def side_by_side(blocks: Sequence[Blocks]) -> Blocks:
    """All teachers' blocks as one; features have unit length, so that none speaks louder."""
    return [
        [torch.cat(parts, 1) for parts in zip(*classes, strict=True)]
        for classes in zip(*blocks, strict=True)
    ]


def readout(seen: Sequence[Seen]) -> Blocks:
    """Features and log-ratios of all teachers, images with their mirror images (FINDINGS).

    The two parts have unit length each. Within a part a teacher keeps its length, which says how
    sure it is: of its class, and that an image and its mirror image are alike.
    """
    features = side_by_side([one.doubled_features for one in seen])
    ratios = side_by_side([one.doubled_log_ratios for one in seen])
    return side_by_side([_unit(features), _unit(ratios)])


def _unit(blocks: Blocks) -> Blocks:
    return [[F.normalize(block, dim=1) for block in classes] for classes in blocks]


def predict_by_pool(
    pool: Sequence[Teacher],
    data: Sequence[ClassImages],
    tasks: Sequence[Task],
    params: MetaTest,
    device: str,
    done: Callable[[int], None],
) -> Iterator[tuple[str, Tensor]]:
    """Rows of the pool, labels (e, n_way * n_query); of single teachers (t, e, n_way * n_query)."""
    seen = []
    for i, teacher in enumerate(pool):
        seen.append(seen_by(teacher, data, params.pool.precision, device))
        done(i + 1)
    metric = params.nearest_class_mean.metric
    each = [one.features for one in seen]
    together = side_by_side(each)
    yield "single_teacher", torch.stack([by_means(b, tasks, metric) for b in each])
    yield "pool_features", by_means(together, tasks, metric)
    words = side_by_side([one.log_probabilities for one in seen])
    yield "pool_log_probabilities", by_means(words, tasks, metric)
    yield "pool_readout", by_means(readout(seen), tasks, metric)
    yield "single_teacher_probe", torch.stack([_by_probe(b, tasks, params) for b in each])
    yield "pool_probe", _by_probe(together, tasks, params)


def protocol(row: str, params: MetaTest) -> str:
    """In words; teachers normalise with their running statistics, so are inductive."""
    mode = f"inductive, {params.pool.precision}"
    if row.endswith("probe"):
        return f"{fresh_head(params.linear_probe)}, {mode}"
    return f"no step, {params.nearest_class_mean.metric}, {mode}"


def by_means(blocks: Blocks, tasks: Sequence[Task], metric: str) -> Tensor:
    """Labels (e, n_way * n_query) by nearest class mean."""
    n_way = len(tasks[0].episode.classes)
    return torch.cat([nearest(s, q, n_way, metric) for s, q in gathered(blocks, tasks)])


def _by_probe(blocks: Blocks, tasks: Sequence[Task], params: MetaTest) -> Tensor:
    labels = support_labels(tasks, str(blocks[0][0].device))
    rows = [probe(s, labels, q, params.linear_probe) for s, q in gathered(blocks, tasks)]
    return torch.cat(rows)
