"""Which way is up? Something that no teacher was asked, learned beside what they say.

Of each batch's inverted images, turned copies are told apart together with their classes
(self-supervised label augmentation, Lee et al., 2020; turns: Gidaris et al., 2018):

    L_turns = -log softmax(A z(x turned by k right angles))[4 y + k]         k drawn of 0, 1, 2, 3

z: the student's features; y: the class that x was inverted for, among those of all teachers; A: a
linear map that is let go after the training. Features that answer depend on shapes and on where
they lie, and such features tell new classes apart better.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

N_TURNS = 4


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Images x (n, c, s, s), each by its number of right angles, `turns` (n,)."""
    copies = torch.stack([x.rot90(k, (2, 3)) for k in range(N_TURNS)])
    return copies[turns, torch.arange(len(x), device=x.device)]


def turns_loss(logits: Tensor, classes: Tensor, turns: Tensor) -> Tensor:
    """L_turns, the mean over images: logits (n, 4 k), classes (n,) of k, turns (n,); of none 0."""
    target = N_TURNS * classes + turns
    return F.cross_entropy(logits, target, reduction="sum") / max(len(target), 1)
