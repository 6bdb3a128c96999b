"""The form of a distilled learner: one body that carries a pool, and how it is read out.

Shapes: n images, d features of the body, k outputs of all teachers side by side, p components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from stages.common.architectures import Output, build
from stages.common.records import EXACT

N_COMMON = 2  # leading directions of all images: about their mean, and how they differ most
BLOCK = Field(pattern="^(features|projection|log_ratios)$")


@dataclass(frozen=True)
class DistilledForm:
    """What a distilled learner's file says of its network, besides architecture and size."""

    __pydantic_config__ = EXACT

    heads: tuple[PositiveInt, ...]  # outputs of each teacher
    n_components: PositiveInt
    readout: tuple[Annotated[str, BLOCK], ...]  # which of the blocks below, side by side
    mirror: bool  # an image is read together with its mirror image
    n_directions: NonNegativeInt = 0  # that the readout's metric changes; 0: there is none


class ReadoutMetric(NamedTuple):
    """How readouts z are weighed, by stages/meta_train/readout_metric.py.

    What varies within classes is damped, what tells them apart amplified, what is common to all
    damped: z1 = z - (z D) D^T, z2 = z1 + (z1 A) A^T, z3 = z2 - (z2 C) C^T. The columns of D and A
    (n_features, n_directions) and of C (n_features, N_COMMON) are directions times the root of how
    much they change, zeros where there are fewer.
    """

    damped: Tensor
    amplified: Tensor
    common: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """z (n, n_features)."""
        return damp(amplify(damp(z, self.damped), self.amplified), self.common)


def damp(z: Tensor, directions: Tensor) -> Tensor:
    """z (n, n_features) with so much less of the directions (n_features, r)."""
    return z - (z @ directions) @ directions.T


def amplify(z: Tensor, directions: Tensor) -> Tensor:
    """z (n, n_features) with so much more of the directions (n_features, r)."""
    return z + (z @ directions) @ directions.T


class Distilled(nn.Module):
    """A body, its words for every teacher's classes, and a head for the classes of an episode.

    Its `features` are what `form.readout` names, side by side, each of unit length:

        features             of the body (d)
        projection           what the body takes the teachers' features to be (p)
        log_ratios           of every teacher's class probabilities to their geometric mean (k)

    Then a metric weighs their directions, of which `form` says how many (its buffers, named as the
    fields of ReadoutMetric, are zero until it is known); the length of the whole stays.

    The head starts at zero: one gradient step from there is a classifier by class means.
    """

    def __init__(self, architecture: str, form: DistilledForm, n_way: int, image_size: int) -> None:
        super().__init__()
        self.form = form
        self.body = build(architecture, sum(form.heads), image_size)
        n_features = int(self.body.n_features)  # type: ignore[arg-type]
        self.projection = nn.Linear(n_features, form.n_components)
        sizes = {
            "features": n_features,
            "projection": form.n_components,
            "log_ratios": sum(form.heads),
        }
        self.n_features = sum(sizes[name] for name in form.readout)
        for name in ReadoutMetric._fields if form.n_directions else ():
            columns = N_COMMON if name == "common" else form.n_directions
            self.register_buffer(name, torch.zeros(self.n_features, columns))
        self.head = nn.Linear(self.n_features, n_way)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Output:
        """x (n, 3, h, w); logits are those of the head, (n, n_way)."""
        output: Output = self.body(torch.cat([x, x.flip(3)]) if self.form.mirror else x)
        blocks = {
            "features": output.features,
            "projection": self.projection(output.features),
            "log_ratios": log_ratios(output.logits, self.form.heads),
        }
        seen = [self._unit(blocks[name]) for name in self.form.readout]
        features = torch.cat(seen, 1)
        if self.form.n_directions:
            metric = ReadoutMetric(*map(self.get_buffer, ReadoutMetric._fields))
            features = len(seen) ** 0.5 * F.normalize(metric(features), dim=1)
        return Output(self.head(features), features, output.bn_inputs)

    def _unit(self, block: Tensor) -> Tensor:
        """Unit length, after the mean over an image and its mirror image."""
        if self.form.mirror:
            block = block.unflatten(0, (2, -1)).mean(0)
        return F.normalize(block, dim=1)


def log_ratios(logits: Tensor, heads: Sequence[int]) -> Tensor:
    """(n, k) to (n, k): log p_j - mean_j log p_j over each teacher's outputs.

    Aitchison's centred log-ratio. The softmax's normaliser cancels: logits minus their mean.
    """
    parts = logits.split(list(heads), 1)
    return torch.cat([own - own.mean(1, keepdim=True) for own in parts], 1)
