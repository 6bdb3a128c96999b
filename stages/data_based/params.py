"""Parameters of data_based: one section a method."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from stages.common.params import MetaLearner, Section


class RealMetaTraining(Section):
    meta_learner: MetaLearner
    # dynamic: as many images of a class as the synthetic dynamic dataset holds (support + query)
    images_per_class: Literal["all", "dynamic"]
    episodes_per_step: PositiveInt
    inner_lr: PositiveFloat
    inner_steps: PositiveInt
    outer_lr: PositiveFloat


class DataBased(Section):
    maml_dagger: RealMetaTraining
    real_maml: RealMetaTraining
    real_protonet: RealMetaTraining
    compile: Literal["auto", "never", "always"]


# Names of the methods.
DATA_BASED = tuple(
    name for name, field in DataBased.model_fields.items() if field.annotation is RealMetaTraining
)


class DataBasedBudget(Section):
    n_iterations: PositiveInt
    n_snapshots: PositiveInt
