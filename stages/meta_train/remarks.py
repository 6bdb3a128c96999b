"""What teachers cannot give a method, to be said on the terminal and below every table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stages.common.architectures import bn_layers
from stages.common.pool import Teacher
from stages.interface.errors import first_of
from stages.meta_train.params import Distill, NoCurriculum
from stages.meta_train.readout_metric import MIN_IMAGES

LISTED = 5  # teachers


def remarks_on(pool: Sequence[Teacher], own: Any, budget: Any) -> list[str]:
    """Sentences on the teachers of a method with the parameters `own`; mostly none."""
    plain: list[Teacher] = []
    few: list[Teacher] = []
    if isinstance(own, NoCurriculum) or (isinstance(own, Distill) and own.inversion != "none"):
        plain = [teacher for teacher in pool if not bn_layers(teacher.net)]
    if isinstance(own, Distill) and own.metric:
        # Images are dealt to the classes in turn: none has more than the first.
        n_images = budget.inverted_images
        few = [t for t in pool if math.ceil(n_images / len(t.info.class_ids)) < MIN_IMAGES]
    said = {
        "no BatchNorm, so inverted without its statistics": plain,
        f"fewer than {MIN_IMAGES} inverted images of each class, too few for the metric": few,
    }
    return [f"{what}: {_names(teachers)}" for what, teachers in said.items() if teachers]


def _names(pool: Sequence[Teacher]) -> str:
    return first_of((t.info.file.removesuffix(".safetensors") for t in pool), LISTED)
