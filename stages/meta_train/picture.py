"""A picture of the synthetic images: one row a class, as PURER's figure 5 shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stages.common.files import written_whole
from stages.common.pool import Teacher

ROWS, COLUMNS = 20, 10  # classes, and images of each, that are shown
ZOOM = 2  # screen pixels per image pixel


def save_picture(
    path: Path, synthetic: Sequence[tuple[Tensor, Tensor]], pool: Sequence[Teacher]
) -> None:
    """PNG with `COLUMNS` images of each of the first `ROWS` classes, clamped to valid pixels.

    `synthetic`: images (n_i, 3, h_i, w_i) and labels (n_i,) of each teacher of the pool; only
    teachers with the first one's image size are shown.
    """
    size = pool[0].info.image_size
    strips: list[Tensor] = []
    for (images, labels), teacher in zip(synthetic, pool, strict=True):
        if teacher.info.image_size == size:
            pixels = teacher.info.normalisation.invert(images.cpu())
            for label in labels.unique():
                strips.append(torch.cat(list(pixels[labels.cpu() == label.cpu()][:COLUMNS]), 1))
    picture = Image.fromarray(torch.cat(strips[:ROWS]).numpy())
    with written_whole(path) as temporary:
        picture.resize(
            (picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.NEAREST
        ).save(temporary, format="PNG")
