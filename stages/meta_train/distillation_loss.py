"""What a student of all teachers together minimises (METHODS 5.1).

Per image x of the bank, with the student's outputs for all k classes side by side:

    L = w_kl * mean_i T^2 KL( softmax(f_i(x) / T) || softmax(s_i(x) / T) )     i: teachers
      + w_ratios * (1 - cos(r(f(x)), r(s(x))))                  r: log-ratios of all k outputs
      + w_features * || P s_z(x) - g(x) ||^2 / p                g: the teachers' features, projected
      + w_labels * -log softmax(s(x))[y]                        of images inverted for class y only
      + w_turns * L_turns                                       of turned inverted images (turns.py)

The second asks for what is read of the student (stages/common/distilled.py), where the first, for
each teacher by itself, asks for its answers. The last two know what no teacher does: how to tell
its classes from another teacher's, turned or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.distilled import log_ratios
from stages.common.pool import Teacher


class Terms(NamedTuple):
    """Scalars, unweighted; L_turns, of other images, is not among them."""

    kl: Tensor
    ratios: Tensor
    features: Tensor
    labels: Tensor


def distillation_terms(
    logits: Tensor,
    projected: Tensor,
    teacher_logits: Tensor,
    teacher_features: Tensor,
    labels: Tensor,
    heads: Sequence[int],
    class_of: Tensor,
    temperature: float,
) -> Terms:
    """Of a batch: logits (n, k), projected (n, p), labels (n,) with -1 for none.

    `heads`: how many of the k outputs each teacher has. `class_of` (k,): as `class_numbers`; a
    label is right on any output of its class, and outputs of no class do not take part.
    """
    pairs = zip(
        (logits / temperature).split(list(heads), 1),
        (teacher_logits / temperature).split(list(heads), 1),
        strict=True,
    )
    kl = torch.stack(
        [
            F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)
            for s, t in pairs
        ]
    ).mean()
    ratios = 1 - F.cosine_similarity(log_ratios(logits, heads), log_ratios(teacher_logits, heads))
    features = (projected - teacher_features).square().mean()
    # Static shapes: every image has a row, those without a label weigh nothing.
    known = labels >= 0
    target = class_of[labels.clamp(min=0)][:, None] == class_of
    stands = class_of >= 0
    everything = logits.masked_fill(~stands, -math.inf).logsumexp(1)
    right = logits.masked_fill(~target, -math.inf).logsumexp(1) - everything
    ce = -torch.where(known, right, torch.zeros_like(right)).sum() / known.sum().clamp(min=1)
    return Terms(kl * temperature**2, ratios.mean(), features, ce)


def class_numbers(pool: Sequence[Teacher]) -> Tensor:
    """The class of each of the pool's k outputs: (k,); -1 for a spare output, which has none."""
    known: dict[tuple[str, str], int] = {}
    numbers = []
    for info in (teacher.info for teacher in pool):
        numbers += [known.setdefault(one, len(known)) for one in info.classes]
        numbers += [-1] * (info.n_outputs - len(info.classes))
    return torch.tensor(numbers)
