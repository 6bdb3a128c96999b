"""The data set `glyphs`: characters and symbols from the fonts that ship inside matplotlib.

A stand-in for people without data, with no published numbers. A class is a character, named by
its Unicode name; an image varies face, pose, colours, background, clutter and noise. The same
versions of the libraries give the same bytes.
"""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stages.common.seeds import generator
from stages.split.canonical import Images

FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)
_MASK = 64  # pixels of the mask that is posed


def render(class_name: str, n_images: int, size: int) -> Images:
    """n_images pictures (n, size, size, 3) of the character with that Unicode name."""
    g = generator(0, "split", "glyphs", class_name)
    character = unicodedata.lookup(class_name.replace("_", " ").upper())
    masks = torch.stack([_mask(character, face) for face in FACES])
    faces = torch.randint(len(FACES), (n_images,), generator=g)
    ink = _posed(masks[faces], size, g)

    # A stroke of clutter per image: an arc of another ink, behind the glyph.
    clutter = _arcs(n_images, size, g)
    background = _smooth_colours(n_images, 3, size, g)
    foreground = _smooth_colours(n_images, 2, size, g)
    # Dark ink on lighter ground, as in print: what tells classes apart is shape alone.
    lightness = 0.7 + 0.1 * torch.randn(n_images, 1, 1, 1, generator=g)
    contrast = 0.35 + 0.3 * torch.rand(n_images, 1, 1, 1, generator=g)
    background = lightness + 0.12 * (background - 0.5)
    foreground = lightness - contrast + 0.2 * (foreground - 0.5)
    other = lightness - 0.5 * contrast * torch.rand(n_images, 1, 1, 1, generator=g)

    image = background + clutter * (other - background)
    image = image + ink * (foreground - image)
    image = image + 0.04 * torch.randn(image.shape, generator=g)
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _mask(character: str, face: str) -> Tensor:
    """The character in one face, centred, filling 60 % of a (1, _MASK, _MASK) mask in [0, 1]."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / face
    font = ImageFont.truetype(str(path), _MASK)
    left, top, right, bottom = font.getbbox(character)
    width, height = right - left, bottom - top
    canvas = Image.new("L", (round(width), round(height)))
    ImageDraw.Draw(canvas).text((-left, -top), character, font=font, fill=255)
    scale = 0.6 * _MASK / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted = canvas.resize(shape, Image.Resampling.LANCZOS)
    mask = Image.new("L", (_MASK, _MASK))
    mask.paste(fitted, ((_MASK - shape[0]) // 2, (_MASK - shape[1]) // 2))
    return torch.from_numpy(np.asarray(mask, np.float32) / 255)[None]


def _posed(masks: Tensor, size: int, g: torch.Generator) -> Tensor:
    """Random rotation (to 15 degrees), scale, shear and shift of (n, 1, m, m) masks."""
    n = len(masks)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=g)

    angle = uniform(-math.pi / 12, math.pi / 12)
    scale_x, scale_y = uniform(0.85, 1.25), uniform(0.85, 1.25)
    shear = uniform(-0.2, 0.2)
    shift = torch.stack([uniform(-0.15, 0.15), uniform(-0.15, 0.15)], 1)[:, :, None]
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    zero, one = torch.zeros(n), torch.ones(n)
    stretch = torch.stack([1 / scale_x, shear, zero, 1 / scale_y], 1).view(n, 2, 2)
    grid = F.affine_grid(
        torch.cat([stretch @ rotation, shift * one[:, None, None]], 2),
        [n, 1, size, size],
        align_corners=False,
    )
    return F.grid_sample(masks, grid, align_corners=False)


def _arcs(n: int, size: int, g: torch.Generator) -> Tensor:
    """One thin circle arc per image as a mask (n, 1, size, size)."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    centre = 2 * torch.randn(n, 2, 1, 1, generator=g)
    radius = centre.norm(dim=1) + 0.5 * torch.randn(n, 1, 1, generator=g)
    distance = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt()
    return torch.exp(-(((distance - radius) / 0.08) ** 2))[:, None]


def _smooth_colours(n: int, knots: int, size: int, g: torch.Generator) -> Tensor:
    """Smooth random colour fields (n, 3, size, size) around 0.5."""
    coarse = 0.5 + 0.5 * torch.randn(n, 3, knots, knots, generator=g)
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
