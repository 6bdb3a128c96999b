"""Nearest class mean: no gradient at all, the class whose mean support feature is nearest.

Prototypes as in Snell et al. (2017), on features nobody trained for them; METHODS 4 on why every
table carries this row.

Shapes: n_way classes, n_shot and n_query images each, grouped by label; d features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(support: Tensor, query: Tensor, n_way: int, metric: str) -> Tensor:
    """Labels of query features (..., n_way * n_query, d), given support (..., n_way * n_shot, d).

    cosine: features and prototypes are brought to unit length before the means and the products.
    """
    if metric == "cosine":
        support, query = F.normalize(support, dim=-1), F.normalize(query, dim=-1)
    prototypes = support.unflatten(-2, (n_way, -1)).mean(-2)  # (..., n_way, d)
    if metric == "cosine":
        return (query @ F.normalize(prototypes, dim=-1).mT).argmax(-1)
    return torch.cdist(query, prototypes).argmin(-1)
