"""Parameters of meta_train: one section a family of methods, one a method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stages.common.params import Architecture, InversionWeights, Section


class EpisodeInversion(Section):
    """What EI and ECI share (METHODS 1.1 and 1.2)."""

    learner: Architecture
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
    """ECI: lambda of the adversarial step (METHODS 1.3)."""

    curriculum_weight: PositiveFloat


class NoCurriculum(Section):
    """EI."""

    curriculum_weight: Annotated[float, Field(ge=0, le=0)]


class MetaTrain(Section):
    episode_inversion: EpisodeInversion
    ei: NoCurriculum
    eci: Curriculum


class MetaTrainBudget(Section):
    n_iterations: PositiveInt
    curriculum_start: NonNegativeInt
    n_snapshots: PositiveInt
