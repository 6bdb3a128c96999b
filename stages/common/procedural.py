"""Images made by rule, without any data: dead leaves (METHODS 5).

Overlapping shapes whose radii follow a power law, over and filled with 1/f noise: both have the
scale-free statistics of natural images (Lee, Mumford and Huang, 2001; Baradad et al., 2021,
"Learning to see by looking at noise"). They show a classifier edges, textures and shading, which
it knows how to read; white noise does not.

Shapes: n images of side s; coordinates run from 0 to 1 over the side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 256  # images at once: their intermediate results stay in the cache

N_SHAPES = (4, 24)  # shapes of an image, fewest and most
RADIUS = (0.06, 0.7)  # of a shape, in sides
RADIUS_POWER = 2.5  # density of radius r falls as r^-2.5
TEXTURE_EXPONENT = (0.6, 1.6)  # a of the 1/f^a amplitude spectrum
CHROMA = 0.12  # standard deviation of a colour about its grey
CORNERS = torch.tensor([90.0, 210.0, 330.0]).deg2rad()  # directions of a triangle's sides


def procedural_images(n: int, size: int, generator: torch.Generator) -> Tensor:
    """uint8 (n, size, size, 3), drawn from `generator` alone."""
    sizes = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
    parts = [_dead_leaves(k, size, generator) for k in sizes]
    return torch.cat(parts) if parts else torch.empty(0, size, size, 3, dtype=torch.uint8)


def _dead_leaves(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Paint every image's shapes back to front; the k-th shapes of all images at once."""
    draw = _Draw(n, generator)
    textures = one_over_f(2 * n, size, generator).view(2, n, 1, size, size)
    image = draw.colour() + draw.uniform(0.02, 0.2) * textures[0]
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    n_shapes = torch.randint(N_SHAPES[0], N_SHAPES[1] + 1, (n, 1, 1, 1), generator=generator)
    for k in range(N_SHAPES[1]):
        u, v, radius = _own_coordinates(draw, x, y)
        level = _level(draw, u, v)
        softness = draw.uniform(0.3, 1.5) / size  # edges of a pixel or so
        cover = torch.sigmoid((1 - level) * radius / softness) * (k < n_shapes)
        shading = draw.uniform(-0.25, 0.25) * u + draw.uniform(-0.25, 0.25) * v
        shift = (int(torch.randint(size, (), generator=generator)), 0)
        texture = draw.uniform(0.0, 0.2) * textures[1].roll((*shift, k), (2, 3, 0))
        image = image + cover * (draw.colour() + shading + texture - image)
    image = 0.5 + draw.uniform(0.6, 1.3) * (image - 0.5) + draw.uniform(-0.1, 0.1)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def one_over_f(n: int, size: int, generator: torch.Generator) -> Tensor:
    """(n, size, size) noise with amplitude spectrum 1 / f^a, mean 0, deviation 1, a of its own."""
    white = torch.fft.rfft2(torch.randn(n, size, size, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = math.inf  # no mean
    low, high = TEXTURE_EXPONENT
    exponent = low + (high - low) * torch.rand(n, 1, 1, generator=generator)
    noise = torch.fft.irfft2(white * frequency**-exponent, s=(size, size))
    unit: Tensor = noise / noise.std((1, 2), keepdim=True)
    return unit


class _Draw:
    """Numbers of n images at once, each of shape (n, c, 1, 1)."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.n, 1, 1, 1, generator=self.generator)

    def normal(self, channels: int) -> Tensor:
        return torch.randn(self.n, channels, 1, 1, generator=self.generator)

    def colour(self) -> Tensor:
        """A grey, mostly, with a small spread of the channels about it: (n, 3, 1, 1)."""
        return self.uniform(0, 1) + CHROMA * self.normal(3)


def _own_coordinates(draw: _Draw, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, v (n, 1, s, s), in which the shape is about a unit disc, and its radius (n, 1, 1, 1)."""
    low, high = (r ** (1 - RADIUS_POWER) for r in RADIUS)
    radius = draw.uniform(high, low) ** (1 / (1 - RADIUS_POWER))  # inverse of the power law's CDF
    angle, aspect = draw.uniform(0, math.pi), draw.uniform(0.4, 1.0)
    dx, dy = x - draw.uniform(-0.1, 1.1), y - draw.uniform(-0.1, 1.1)
    u = (angle.cos() * dx + angle.sin() * dy) / radius
    v = (angle.cos() * dy - angle.sin() * dx) / (radius * aspect)
    return u, v, radius


def _level(draw: _Draw, u: Tensor, v: Tensor) -> Tensor:
    """Below 1 inside the shape, a wobbled ellipse, a rectangle or a triangle: (n, 1, s, s)."""
    theta = torch.atan2(v, u)
    wobble = sum(
        draw.uniform(0, 0.25) / k * torch.cos(k * theta + draw.uniform(0, 2 * math.pi))
        for k in (2, 3, 5)
    )
    ellipse = torch.hypot(u, v) / (1 + wobble)
    rectangle = torch.maximum(u.abs(), v.abs())
    sides = [2 * (c.cos() * u + c.sin() * v) for c in CORNERS]
    triangle = torch.stack(sides).amax(0)
    kind = draw.uniform(0, 1)
    return torch.where(kind < 0.5, ellipse, torch.where(kind < 0.8, rectangle, triangle))
