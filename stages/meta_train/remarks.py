"""What teachers cannot give a method, to be said on the terminal and below every table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.common.architectures import bn_layers
from stages.common.pool import Teacher
from stages.interface.errors import first_of
from stages.meta_train.params import Distill
from stages.meta_train.readout_metric import MIN_IMAGES

LISTED = 5  # teachers


def remarks_on(pool: Sequence[Teacher], own: Any, budget: Any) -> list[str]:
    """Sentences on the teachers of a method with the parameters `own`; mostly none."""
    plain = [teacher for teacher in pool if not bn_layers(teacher.net)]
    few: list[Teacher] = []
    if isinstance(own, Distill) and own.metric:
        n_images = budget.inverted_images
        few = [t for t in pool if n_images < MIN_IMAGES * len(t.info.class_ids)]
    said = {
        "no BatchNorm, so inverted without its statistics": plain,
        f"fewer than {MIN_IMAGES} inverted images a class, so without part in the metric": few,
    }
    return [f"{what}: {_names(teachers)}" for what, teachers in said.items() if teachers]


def _names(pool: Sequence[Teacher]) -> str:
    return first_of((t.info.file.removesuffix(".safetensors") for t in pool), LISTED)
