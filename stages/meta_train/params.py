"""Parameters of meta_train: one section a family of methods, one a method."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from stages.common.params import InversionWeights, Section


class EpisodeInversion(Section):
    """What EI and ECI share (METHODS 1.1 and 1.2)."""

    learner: Literal["conv4", "conv4_64", "resnet10", "resnet18"]
    start: Literal["average", "random"]
    episodes_per_step: PositiveInt
    inner_lr: PositiveFloat
    inner_steps: PositiveInt
    outer_lr: PositiveFloat
    inversion_lr: PositiveFloat
    max_roll: NonNegativeInt
    weights: InversionWeights
    patience: PositiveInt
    compile: Literal["auto", "never", "always"]


class Curriculum(Section):
    """What tells EI (0) from ECI (METHODS 1.3)."""

    curriculum_weight: NonNegativeFloat


class MetaTrain(Section):
    episode_inversion: EpisodeInversion
    ei: Curriculum
    eci: Curriculum


class MetaTrainBudget(Section):
    n_iterations: PositiveInt
    curriculum_start: NonNegativeInt
    n_snapshots: PositiveInt
