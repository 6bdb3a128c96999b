"""Parameters of meta_train: one section a family of methods, one a method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from stages.common.params import InversionWeights, Section

MetaLearner = Literal["maml", "anil", "protonet"]


class EpisodeInversion(Section):
    """What EI, ECI and their relatives share (METHODS 1.1 and 1.2)."""

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
    meta_learner: MetaLearner
    n_teachers: Literal["all"] | PositiveInt


class NoCurriculum(Section):
    """EI, and the learners that are trained on its episodes."""

    curriculum_weight: Annotated[float, Field(ge=0, le=0)]
    meta_learner: MetaLearner
    n_teachers: Literal["all"] | PositiveInt


class Dro(Section):
    """METHODS 2."""

    embedding_dim: PositiveInt
    penalty: NonNegativeFloat
    lr: PositiveFloat
    support_fraction: Annotated[float, Field(gt=0, lt=1)]


class Empty(Section):
    """Nothing to choose."""


class MetaTrain(Section):
    episode_inversion: EpisodeInversion
    ei: NoCurriculum
    eci: Curriculum
    eci_lambda2: Curriculum
    eci_lambda05: Curriculum
    eci_pool2: Curriculum
    eci_pool6: Curriculum
    protonet: NoCurriculum
    anil: NoCurriculum
    fixed: Empty
    random: Empty
    average: Empty
    ota: Empty
    dro: Dro


class MetaTrainBudget(Section):
    n_iterations: PositiveInt
    curriculum_start: NonNegativeInt
    n_snapshots: PositiveInt
