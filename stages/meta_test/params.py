"""Parameters of meta_test: one section an adaptation."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from stages.common.params import InversionWeights, Section


class OneStep(Section):
    inner_lr: PositiveFloat
    inner_steps: PositiveInt


class Icfil(Section):
    """METHODS 1.4."""

    pseudo_per_class: PositiveInt
    inversion_steps: PositiveInt
    inversion_lr: PositiveFloat
    max_roll: NonNegativeInt
    weights: InversionWeights
    bn_reference: Literal["support", "none"]
    calibration_lr: PositiveFloat
    temperature: PositiveFloat
    head_steps: PositiveInt
    head_lr: PositiveFloat


class NearestClassMean(Section):
    metric: Literal["cosine", "euclidean"]


class MetaTest(Section):
    n_episodes: PositiveInt
    batch_norm: Literal["transductive", "inductive"]
    one_step: OneStep
    icfil: Icfil
    nearest_class_mean: NearestClassMean


class MetaTestBudget(Section):
    n_val_episodes: PositiveInt
