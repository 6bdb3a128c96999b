"""Parameters of pretrain."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from stages.common.params import Precision, Section

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Optimizer(Section):
    """How teachers of one architecture are trained."""

    name: Literal["adam", "sgd"]
    lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat


class Optimizers(Section):
    conv4: Optimizer
    conv4_64: Optimizer
    resnet10: Optimizer
    resnet18: Optimizer


class Pretrain(Section):
    pool_size: Literal["auto"] | PositiveInt  # "auto": as many as cover the classes once
    train_fraction: Fraction
    lr_decay: Annotated[float, Field(gt=0, le=1)]
    max_grad_norm: PositiveFloat
    precision: Precision
    optimizers: Optimizers


class PretrainBudget(Section):
    epochs: PositiveInt  # of a Conv4
    resnet_epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]  # BatchNorm has no variance of one image

    def epochs_of(self, architecture: str) -> int:
        return self.resnet_epochs if architecture.startswith("resnet") else self.epochs


def n_teachers(pool_size: int | Literal["auto"], n_classes: Iterable[int], n_way: int) -> int:
    """Of a pool over data sets of so many classes.

    "auto" is as many as cover the classes of the largest once.
    """
    return max(math.ceil(n / n_way) for n in n_classes) if pool_size == "auto" else pool_size
