"""Parameters of meta_train: one section a family of methods, one a method."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from stages.common.params import (
    Architecture,
    InversionWeights,
    MetaLearner,
    NaturalInversion,
    Precision,
    Section,
)

# How a distilled learner may be read out (stages/common/distilled.py).
READOUTS = ("features", "projection", "log_ratios")


class EpisodeInversion(Section):
    """What EI, ECI and their relatives share (METHODS 1.1 and 1.2)."""

    episodes_per_step: PositiveInt
    inner_lr: PositiveFloat
    inner_steps: PositiveInt
    outer_lr: PositiveFloat
    inversion_lr: PositiveFloat
    max_roll: NonNegativeInt
    max_classes: PositiveInt
    weights: InversionWeights
    patience: PositiveInt
    compile: Literal["auto", "never", "always"]


class NoCurriculum(Section):
    """EI, and the learners that are trained on its episodes."""

    curriculum_weight: Annotated[float, Field(ge=0, le=0)]
    meta_learner: MetaLearner
    n_teachers: Literal["all"] | PositiveInt


class Curriculum(NoCurriculum):
    """ECI: lambda of the adversarial step (METHODS 1.3)."""

    curriculum_weight: PositiveFloat


class Dro(Section):
    """METHODS 2."""

    embedding_dim: PositiveInt
    penalty: NonNegativeFloat
    lr: PositiveFloat
    support_fraction: Annotated[float, Field(gt=0, lt=1)]


class Metric(Section):
    """How the readout weighs its directions (stages/meta_train/readout_metric.py)."""

    strength: NonNegativeFloat
    within: NonNegativeFloat
    between: NonNegativeFloat
    common: NonNegativeFloat


class Distillation(Section):
    """What distill and its ablations share (METHODS 5)."""

    inversion: NaturalInversion
    temperature: PositiveFloat
    n_components: PositiveInt
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    batch_size: Annotated[int, Field(ge=2)]
    max_roll: NonNegativeInt
    precision: Precision
    compile: Literal["auto", "never", "always"]
    mirror: bool
    readout_metric: Metric


class DistillWeights(Section):
    """Weights of the loss's terms (stages/meta_train/distillation_loss.py)."""

    kl: NonNegativeFloat
    ratios: NonNegativeFloat
    features: NonNegativeFloat
    labels: NonNegativeFloat
    turns: NonNegativeFloat


class Distill(Section):
    """The student, and which of the ingredients it has."""

    meta_learner: ClassVar[str] = "distilled"

    architecture: Architecture
    procedural: bool  # whether it learns from procedural images themselves
    inversion: Literal["procedural", "noise", "none"]  # what inverted images start from
    weights: DistillWeights
    readout: str  # of READOUTS, joined by "+"
    metric: bool  # whether the classes of inverted images weigh the readout's directions
    n_teachers: Literal["all"] | PositiveInt

    @field_validator("readout")
    @classmethod
    def _known(cls, value: str) -> str:
        for name in value.split("+"):
            if name not in READOUTS:
                raise ValueError(f"no {name!r}; allowed: {', '.join(READOUTS)}, joined by '+'")
        return value

    @model_validator(mode="after")
    def _has_classes(self) -> Distill:
        if self.metric and self.inversion == "none":
            raise ValueError("metric = true: allowed with inverted images (inversion not none)")
        if self.weights.turns and self.inversion == "none":
            raise ValueError("weights.turns > 0: allowed with inverted images (inversion not none)")
        if not self.procedural and self.inversion == "none":
            raise ValueError("procedural = false, inversion = none: allowed: one of both, or both")
        return self


class Empty(Section):
    """Nothing to choose."""


class MetaTrain(Section):
    episode_inversion: EpisodeInversion
    ei: NoCurriculum
    eci: Curriculum
    eci_distilled: Curriculum
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
    distillation: Distillation
    distill: Distill
    distill_64: Distill
    distill_procedural: Distill
    distill_noise: Distill
    distill_inverted: Distill
    distill_no_prior: Distill
    distill_no_outputs: Distill
    distill_no_features: Distill
    distill_no_labels: Distill
    distill_no_metric: Distill


class MetaTrainBudget(Section):
    n_iterations: PositiveInt
    curriculum_start: NonNegativeInt
    n_snapshots: PositiveInt


class DistillationBudget(Section):
    n_iterations: PositiveInt
    n_snapshots: PositiveInt
    procedural_images: NonNegativeInt
    inverted_images: PositiveInt  # of each teacher
    inversion_steps: PositiveInt
