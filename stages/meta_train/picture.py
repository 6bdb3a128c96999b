"""A picture of the synthetic images: one row a class, as PURER's figure 5 shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from stages.common.files import written_whole
from stages.common.pool import Teacher

ROWS, COLUMNS = 10, 10  # classes of a panel, and images of each
IMAGE = 64  # screen pixels of an image's side
TEXT = 26  # pixels of the titles' font
MARGIN = 40  # between panels, and for their titles


def save_picture(
    path: Path, synthetic: Sequence[tuple[Tensor, Tensor]], pool: Sequence[Teacher]
) -> None:
    """PNG with a panel for each form of teacher in the pool (architecture, data set), side by side.

    A panel shows `COLUMNS` images of each of the form's first `ROWS` classes, clamped to valid
    pixels. The file also holds the panels' names as text, for captions. `synthetic`: images
    (n_i, 3, h_i, w_i) and labels (n_i,) of each teacher of the pool.
    """
    panels: dict[str, list[Image.Image]] = {}
    for (images, labels), teacher in zip(synthetic, pool, strict=True):
        info = teacher.info
        strips = panels.setdefault(f"{info.architecture}, {info.dataset}", [])
        pixels = info.inverted_as.invert(images.cpu())
        for label in labels.unique()[: ROWS - len(strips)]:
            strip = torch.cat(list(pixels[labels.cpu() == label.cpu()][:COLUMNS]), 1)
            width = strip.shape[1] * IMAGE // info.image_size
            row = Image.fromarray(strip.numpy())
            strips.append(row.resize((width, IMAGE), Image.Resampling.NEAREST))
    font = ImageFont.load_default(size=TEXT)
    widths = [
        max(math.ceil(font.getlength(title)), *(row.width for row in strips))
        for title, strips in panels.items()
    ]
    height = MARGIN + IMAGE * max(len(strips) for strips in panels.values())
    whole = Image.new("RGB", (sum(widths) + MARGIN * (len(widths) - 1), height), "white")
    left = 0
    for (title, strips), width in zip(panels.items(), widths, strict=True):
        ImageDraw.Draw(whole).text((left, 2), title, fill="black", font=font)
        for i, row in enumerate(strips):
            whole.paste(row, (left, MARGIN + i * IMAGE))
        left += width + MARGIN
    names = PngInfo()
    names.add_text("panels", "; ".join(panels))
    with written_whole(path) as temporary:
        whole.save(temporary, format="PNG", pnginfo=names)
