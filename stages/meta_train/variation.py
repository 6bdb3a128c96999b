"""Inverted images changed so that their class stays: what a student's labels are learned on too.

A teacher's images share its style, by which one can tell whose class an image is without a look at
what it shows. Crops and colours of their own are meant to make that harder.

Shapes: n images of side s, normalised pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.meta_train.params import Variation


def varied(x: Tensor, params: Variation, stream: torch.Generator) -> Tensor:
    """Images x (n, 3, s, s) mirrored or not, cropped, and with other colours, each by itself.

    A crop of side (crop .. 1) s anywhere, at full size again; then contrast times 1 +- colour, each
    channel's contrast +- colour / 2 more, and brightness +- colour, all uniform.
    """
    n = len(x)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return (low + (high - low) * torch.rand(n, *size, generator=stream)).to(x.device)

    side = uniform(params.crop, 1.0)
    place = uniform(-1.0, 1.0, 2) * (1 - side)[:, None]
    mirror = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    affine = x.new_zeros(n, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = mirror * side, side, place
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    crops = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    c = params.colour
    contrast = 1 + uniform(-c, c, 1, 1, 1) + uniform(-c / 2, c / 2, 3, 1, 1)
    return crops * contrast + uniform(-c, c, 1, 1, 1)
