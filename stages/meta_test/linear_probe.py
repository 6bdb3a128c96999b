"""Linear probe: a linear head on frozen features, trained on the support set (Chen et al., 2019).

Shapes: e episodes; s support and q query images each, grouped by label; d features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.meta_test.episodes import CHUNK
from stages.meta_test.icfil import head_predictions
from stages.meta_test.params import LinearProbe


def probe(support: Tensor, support_y: Tensor, query: Tensor, params: LinearProbe) -> Tensor:
    """Labels (e, q) from support (e, s, d), support_y (s,) and query (e, q, d).

    Features are brought to unit length: raw ones differ in scale between networks by orders, and
    one learning rate must serve them all.
    """
    return torch.cat(
        [
            head_predictions(
                F.normalize(s, dim=-1),
                support_y,
                F.normalize(q, dim=-1),
                params.head_steps,
                params.head_lr,
            )
            for s, q in zip(support.split(CHUNK), query.split(CHUNK), strict=True)
        ]
    )
