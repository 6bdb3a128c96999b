"""Model inversion: the loss that turns a frozen classifier back into images (METHODS 1.1).

    L_inv = CE(f(x), y) + w * R_feature(x) + a_tv * TV(x) + a_l2 * ||x||_2

PURER (CVPR 2023), equations 2-4, after DeepDream and DeepInversion. Used by meta_train
(episode inversion, distillation), by meta_test (ICFIL) and by pseudo.

Shapes: x (n, 3, h, w) in the teacher's normalised input space (`TeacherInfo.inverted_as`), y (n,)
labels of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import Output, batch_moments
from stages.common.params import InversionWeights

Moments = Sequence[tuple[Tensor, Tensor]]  # per BatchNorm layer: mean (c_l,), variance (c_l,)


class InversionLoss(NamedTuple):
    """Scalars; `total` is the weighted sum, the others are unweighted."""

    total: Tensor
    cross_entropy: Tensor
    bn_statistics: Tensor
    tv: Tensor
    l2: Tensor


def total_variation(x: Tensor) -> Tensor:
    """TV(x): four *unsquared* 2-norms of neighbour differences over the whole batch.

    Horizontal, vertical, diagonal and anti-diagonal neighbours (METHODS 1.1, released program).
    """
    dx = x[:, :, :, :-1] - x[:, :, :, 1:]
    dy = x[:, :, :-1, :] - x[:, :, 1:, :]
    diagonal = x[:, :, :-1, :-1] - x[:, :, 1:, 1:]
    anti_diagonal = x[:, :, 1:, :-1] - x[:, :, :-1, 1:]
    return torch.stack([d.norm() for d in (dx, dy, diagonal, anti_diagonal)]).sum()


def bn_statistics_distance(moments: Moments, reference: Moments) -> Tensor:
    """R_feature: sum over layers of ||mean_l - mean*_l||_2 + ||var_l - var*_l||_2 (equation 4)."""
    terms = [
        (mean - mean_ref).norm() + (var - var_ref).norm()
        for (mean, var), (mean_ref, var_ref) in zip(moments, reference, strict=True)
    ]
    return torch.stack(terms).sum()


def inversion_loss(
    output: Output, x: Tensor, y: Tensor, reference: Moments, weights: InversionWeights
) -> InversionLoss:
    """L_inv of one batch, given what the classifier returned for it.

    `reference` holds the moments to match, one pair per BatchNorm layer; empty: no such term.
    """
    cross_entropy = F.cross_entropy(output.logits, y)
    if reference:
        bn_statistics = bn_statistics_distance(batch_moments(output.bn_inputs), reference)
    else:
        bn_statistics = torch.zeros_like(cross_entropy)
    tv, l2 = total_variation(x), x.norm()
    total = (
        cross_entropy + weights.bn_statistics * bn_statistics + weights.tv * tv + weights.l2 * l2
    )
    return InversionLoss(total, cross_entropy, bn_statistics, tv, l2)
