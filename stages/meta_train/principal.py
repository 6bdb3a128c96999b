"""Leading principal directions."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_directions(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean squares (r,), falling, and directions (d, r) of rows (m, d), r at most n.

    Randomised (Halko et al., 2011), the same draw every time.
    """
    r = min(n, *rows.shape)
    with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
        torch.manual_seed(0)
        _, singular, directions = torch.svd_lowrank(rows, q=min(r + 16, *rows.shape), niter=4)
    return singular[:r].square() / len(rows), directions[:, :r]
