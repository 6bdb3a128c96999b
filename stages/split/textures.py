"""The data set `textures`: procedural surfaces, partner of `glyphs` where two data sets are needed.

A stand-in with no published numbers. A class is a family of patterns with fixed frequency,
orientation and shape (`zigzag_3`); an image varies phase, pose, colours, lighting and noise, so
that colour says nothing about the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stages.common.seeds import generator
from stages.split.canonical import Images

TAU = 2 * math.pi
# (u, v) of shape (n, h, w) in periods around the image; p (4,) in [0, 1): the class's own shape
Pattern = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


def render(class_name: str, n_images: int, size: int) -> Images:
    """n_images pictures (n, size, size, 3) of the texture `<family>_<variant>`."""
    family, _, _ = class_name.rpartition("_")
    own = torch.rand(6, generator=generator(0, "split", "textures", class_name, "class"))
    g = generator(0, "split", "textures", class_name, "images")

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_images, 1, 1, generator=g)

    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = math.pi * own[0] + uniform(-0.3, 0.3)
    frequency = 1.2 * 3.0 ** own[1] * uniform(0.85, 1.18)
    u = frequency * (angle.cos() * x + angle.sin() * y) + uniform(0, 10)
    v = frequency * (-angle.sin() * x + angle.cos() * y) + uniform(0, 10)
    value = FAMILIES[family](u, v, own[2:], g)
    low, high = value.amin((1, 2), keepdim=True), value.amax((1, 2), keepdim=True)
    value = ((value - low) / (high - low + 1e-6))[:, None]

    dark = 0.35 + 0.2 * torch.randn(n_images, 3, 1, 1, generator=g)
    light = 0.65 + 0.2 * torch.randn(n_images, 3, 1, 1, generator=g)
    lighting = uniform(-0.2, 0.2) * x + uniform(-0.2, 0.2) * y
    image = dark + value * (light - dark) + lighting[:, None]
    image = image + 0.06 * torch.randn(image.shape, generator=g)
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _grating(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    return (torch.sin(TAU * u) + 0.8 * p[0] * torch.sin(2 * TAU * u + 3 * p[1])).tanh()


def _plaid(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    return torch.sin(TAU * u) + (0.4 + p[0]) * torch.sin(TAU * (1 + p[1]) * v)


def _checker(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    v = v * (0.6 + p[0]) + p[1] * u
    return (4 * torch.sin(math.pi * u) * torch.sin(math.pi * v)).tanh()


def _dots(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    du, dv = (u + 0.5 * p[0] * v.round()) % 1 - 0.5, v % 1 - 0.5
    return torch.sigmoid(25 * ((0.15 + 0.25 * p[1]) - (du * du + dv * dv).sqrt()))


def _rings(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    du, dv = (u / 2) % 1 - 0.5, (v / 2) % 1 - 0.5
    return torch.sin(TAU * (2 + 3 * p[0]) * (du * du + (0.5 + p[1]) * dv * dv).sqrt())


def _zigzag(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    tooth = (2 * (v * (0.4 + p[0]) % 1) - 1).abs()
    return (2 * torch.sin(TAU * (u + (0.4 + p[1]) * tooth))).tanh()


def _bricks(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    row = v.floor()
    column = (u * (0.3 + 0.6 * p[0]) + (0.2 + 0.3 * p[1]) * (row % 2)) % 1
    joint = torch.minimum(torch.minimum(column, 1 - column) * 2, torch.minimum(v % 1, 1 - v % 1))
    return torch.sigmoid(30 * (joint - 0.12))


def _waves(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    bend = (0.2 + 0.4 * p[0]) * torch.sin(TAU * (0.3 + 0.7 * p[1]) * v)
    return torch.sin(TAU * (u + bend)) * (0.6 + 0.4 * torch.sin(TAU * p[2] * v))


def _cells(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    """Worley noise: distances to the nearest of random points."""
    n, h, w = u.shape
    n_points = 40
    low = torch.stack([u.amin((1, 2)), v.amin((1, 2))], 1)[:, None]
    span = torch.stack([u.amax((1, 2)), v.amax((1, 2))], 1)[:, None] - low
    points = low + span * torch.rand(n, n_points, 2, generator=g)
    here = torch.stack([u, v], -1).view(n, h * w, 2)
    stretch = torch.stack([torch.ones(()), 0.4 + p[0]])
    nearest = torch.cdist(here * stretch, points * stretch).topk(2, largest=False).values
    return (nearest[..., 0] * (p[1] - 1) + nearest[..., 1] * p[1]).view(n, h, w)


def _noise(u: Tensor, v: Tensor, p: Tensor, g: torch.Generator) -> Tensor:
    """Random plane waves around one orientation: anisotropic band-limited noise."""
    n = len(u)
    n_waves = 24
    angle = (0.3 + 1.2 * p[0]) * torch.randn(n, n_waves, 1, 1, generator=g)
    frequency = torch.exp((0.1 + 0.5 * p[1]) * torch.randn(n, n_waves, 1, 1, generator=g))
    phase = TAU * torch.rand(n, n_waves, 1, 1, generator=g)
    across = angle.cos() * u[:, None] + angle.sin() * v[:, None]
    return torch.sin(TAU * frequency * across + phase).sum(1)


FAMILIES: dict[str, Pattern] = {
    "grating": _grating,
    "plaid": _plaid,
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "waves": _waves,
    "cells": _cells,
    "noise": _noise,
}
