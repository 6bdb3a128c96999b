"""Parameters of meta_test: one section an adaptation."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from stages.common.params import InversionWeights, Precision, Section

_ALL = frozenset({"maml", "anil", "protonet", "none", "distilled"})
# The rows of a learner, and the meta-learners (LearnerInfo.meta_learner) that each makes sense for:
# one that was trained to adapt has its inner loop, one that was not ("none") may be tuned, one that
# is "distilled" starts from a head of zeros.
SUITS = {
    "one_step": frozenset({"maml", "anil", "none", "distilled"}),
    "tuned_steps": frozenset({"none"}),
    "icfil": frozenset({"maml", "distilled"}),
    "nearest_class_mean": _ALL,
    "linear_probe": _ALL,
}
POOL_ROWS = (
    "single_teacher",
    "pool_features",
    "pool_log_probabilities",
    "pool_readout",
    "single_teacher_probe",
    "pool_probe",
)


class OneStep(Section):
    inner_lr: PositiveFloat
    inner_steps: PositiveInt


class Head(Section):
    """A fresh linear head, trained by Adam on the support set."""

    head_steps: PositiveInt
    head_lr: PositiveFloat


def fresh_head(params: Head) -> str:
    """In words, for the protocol of a row."""
    return f"head: {params.head_steps} Adam steps, lr {params.head_lr:g}"


class Icfil(Head):
    """METHODS 1.4."""

    pseudo_per_class: PositiveInt
    inversion_steps: PositiveInt
    inversion_lr: PositiveFloat
    max_roll: NonNegativeInt
    weights: InversionWeights
    bn_reference: Literal["support", "none"]
    calibration_lr: PositiveFloat
    temperature: PositiveFloat


class NearestClassMean(Section):
    metric: Literal["cosine", "euclidean"]


class LinearProbe(Head):
    """On frozen features (Chen et al., 2019)."""


class TunedSteps(Section):
    """The candidates, and the meta-validation episodes that choose among them."""

    n_episodes: PositiveInt
    max_steps: PositiveInt
    lr_low: PositiveFloat
    lr_high: PositiveFloat
    n_lrs: PositiveInt


class Pool(Section):
    precision: Precision


class MetaTest(Section):
    n_episodes: PositiveInt
    batch_norm: Literal["transductive", "inductive"]
    one_step: OneStep
    icfil: Icfil
    nearest_class_mean: NearestClassMean
    linear_probe: LinearProbe
    tuned_steps: TunedSteps
    pool: Pool
    curve_episodes: NonNegativeInt
    similarity_images: PositiveInt


class MetaTestBudget(Section):
    n_val_episodes: PositiveInt
