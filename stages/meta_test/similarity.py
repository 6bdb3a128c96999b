"""How like are synthetic images to the real ones of their class, in the pool's eyes?

For every class c of the pool: the mean feature of its synthetic images and of as many real ones,
drawn, all teachers' unit features side by side (so that no class is judged by its own teacher
alone), each set centred on its mean over classes. The matrix holds the cosines; a diagonal above
the rest says that inversion recovers what tells classes apart.

Only looked at after the fact: nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import at, channels_last
from stages.common.dataset import ClassImages
from stages.common.files import load_tensors, metadata_of, open_tensors
from stages.common.params import Precision
from stages.common.pool import Teacher, TeacherInfo
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_test.params import MetaTest


def check_pool_of(synthetic: Path, pool: Sequence[Teacher]) -> None:
    """Raise BadInput unless meta_train's synthetic.safetensors was made with the pool's first."""
    with open_tensors(synthetic) as file:
        made_with = metadata_of(file, synthetic)["teachers"]
    if len(made_with) > len(pool):
        raise BadInput(
            f"{synthetic}: was made with {len(made_with)} teachers, the pool has {len(pool)}:"
            " synthetic images of another pool"
        )
    for i, (teacher, known) in enumerate(zip(pool, made_with, strict=False)):
        info = teacher.info
        if (info.dataset, list(info.class_names)) != (known["dataset"], known["class_names"]):
            raise BadInput(
                f"{synthetic}: its teacher {i} knows other classes than {info.file} of the pool:"
                " synthetic images of another pool"
            )


def similarity(
    synthetic: Path, pool: Sequence[Teacher], data: Sequence[ClassImages], params: MetaTest
) -> dict[str, Any] | None:
    """Cosines of synthetic (rows) to real (columns) class means, and what they say.

    `synthetic`: meta_train's synthetic.safetensors, which has passed `check_pool_of`; `data`: the
    meta-train classes. None if the pool knows others than these, or one class only.
    """
    tensors, metadata = load_tensors(synthetic)
    places = {
        (part.dataset, name): images
        for part in data
        for name, images in zip(part.class_names, part.images, strict=True)
    }
    names, invented, real = [], [], []
    n_images, precision = params.similarity_images, params.pool.precision
    for i in range(len(metadata["teachers"])):
        info = pool[i].info
        synthetic_images = tensors[f"teacher-{i:02d}.images"]
        labels = tensors[f"teacher-{i:02d}.labels"]
        for label, (dataset, name) in enumerate(info.classes):
            if (dataset, name) not in places:
                return None
            if name in names or not (labels == label).any():
                continue  # taught by an earlier teacher too, or one that had no images made
            names.append(name)
            made = synthetic_images[labels == label][:n_images]
            invented.append(_mean_of_synthetic(made, info, pool, precision))
            # Real images stand in order of their pixels: the first would be the darkest.
            stream = generator(0, "meta_test", "similarity", dataset, name)
            images = places[dataset, name]
            drawn = images[torch.randperm(len(images), generator=stream)[: len(made)]]
            real.append(_mean_of_real(drawn, pool, precision))
    if len(names) < 2:
        return None
    cosines = _centred(torch.stack(invented)) @ _centred(torch.stack(real)).T
    own = cosines.diagonal()
    n = len(names)
    return {
        "own": round(float(own.mean()), 4),
        "other": round(float((cosines.sum() - own.sum()) / (n * (n - 1))), 4),
        "nearest_is_own": round(
            100 * float((cosines.argmax(1).cpu() == torch.arange(n)).double().mean()), 2
        ),
        "classes": names,
        "matrix": [[round(value, 2) for value in row] for row in cosines.tolist()],
    }


def _mean_of_synthetic(
    x: Tensor, info: TeacherInfo, pool: Sequence[Teacher], precision: Precision
) -> Tensor:
    inputs = [teacher.info.view.of_another(x, info.inverted_as) for teacher in pool]
    return _mean(inputs, pool, precision)


def _mean_of_real(images: Tensor, pool: Sequence[Teacher], precision: Precision) -> Tensor:
    return _mean([teacher.info.view.of(images) for teacher in pool], pool, precision)


def _mean(inputs: Sequence[Tensor], pool: Sequence[Teacher], precision: Precision) -> Tensor:
    """Mean over images of all teachers' unit features side by side: (sum of d_i,)."""
    parts = []
    device = str(next(pool[0].net.parameters()).device)
    with torch.inference_mode(), at(precision, device):
        for x, teacher in zip(inputs, pool, strict=True):
            features = teacher.net(channels_last(x.to(device))).features.float()
            parts.append(F.normalize(features, dim=1).mean(0))
    return torch.cat(parts)


def _centred(means: Tensor) -> Tensor:
    return F.normalize(means - means.mean(0), dim=1)
