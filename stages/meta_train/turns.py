"""Of which class is an image, and how was it turned? What no teacher was asked.

Copies of inverted images, turned by k right angles, are told apart by class and turn jointly
(self-supervised label augmentation, Lee et al., 2020):

    L_turns = -log softmax(A z(x turned k times))[4 y + k]                   k drawn of 0, 1, 2, 3

z: the student's features; y: the class that x was inverted for, among those of all teachers; A: a
linear map that is let go after the training. Neither question helps by itself (FINDINGS).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.meta_train.readout_metric import of_enough

N_TURNS = 4


class Asked(NamedTuple):
    """Images of a bank that are shown turned, and the answers."""

    images: Tensor  # (n,) their places in the bank
    classes: Tensor  # (n,)
    turns: Tensor  # (n,)


class Turns(nn.Module):
    """A, and the images that it is asked of: those of classes that have enough."""

    def __init__(self, classes: Tensor, n_features: int) -> None:
        """`classes` (N,) of the images of a bank, -1: none. Of no image A is nothing."""
        super().__init__()
        labelled = (classes >= 0).nonzero()[:, 0]
        enough, self._classes = of_enough(classes[labelled])
        self._images = labelled[enough]
        n_classes = len(self._classes.unique())
        self.head = nn.Linear(n_features, N_TURNS * n_classes) if n_classes else None

    def draw(self, n: int, stream: torch.Generator) -> Asked:
        """n images, or none if it is asked of none."""
        if self.head is None:
            return Asked(*3 * [torch.empty(0, dtype=torch.long)])
        chosen = torch.randint(len(self._images), (n,), generator=stream)
        turns = torch.randint(N_TURNS, (n,), generator=stream)
        return Asked(self._images[chosen], self._classes[chosen], turns)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, 4 classes) of features (n, d)."""
        return features[:, :0] if self.head is None else self.head(features)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Images x (n, c, s, s), each by its number of right angles, `turns` (n,)."""
    copies = torch.stack([x.rot90(k, (2, 3)) for k in range(N_TURNS)])
    return copies[turns, torch.arange(len(x), device=x.device)]


def turns_loss(logits: Tensor, classes: Tensor, turns: Tensor) -> Tensor:
    """L_turns, the mean over images: logits (n, 4 k), classes (n,) of k, turns (n,); of none 0."""
    target = N_TURNS * classes + turns
    return F.cross_entropy(logits, target, reduction="sum") / max(len(target), 1)
