"""A picture of the synthetic images: one row a class, as PURER's figure 5 shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from stages.common.files import written_whole
from stages.common.pool import Teacher
from stages.meta_train.synthetic import DynamicDataset

ROWS, COLUMNS = 20, 10  # classes, and images of each, that are shown
ZOOM = 2  # screen pixels per image pixel


def save_picture(path: Path, dataset: DynamicDataset, pool: Sequence[Teacher]) -> None:
    """PNG with `COLUMNS` images of each of the first `ROWS` classes, clamped to valid pixels."""
    strips = []
    for images, teacher in zip(dataset.images, pool, strict=True):
        pixels = teacher.info.normalisation.invert(images.detach().cpu())
        for block in pixels.split(dataset.n_per_class):
            strips.append(torch.cat(list(block[:COLUMNS]), 1))
    width = max(strip.shape[1] for strip in strips)
    shown = [s for s in strips if s.shape[1] == width][:ROWS]
    picture = Image.fromarray(torch.cat(shown).numpy())
    with written_whole(path) as temporary:
        picture.resize(
            (picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.NEAREST
        ).save(temporary, format="PNG")
