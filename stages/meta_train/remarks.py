"""What teachers cannot give a method, to be said on the terminal and below every table."""

from __future__ import annotations

import math
from collections import Counter
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
    wanting = ""
    if isinstance(own, NoCurriculum) or (isinstance(own, Distill) and own.inversion != "none"):
        plain = [teacher for teacher in pool if not bn_layers(teacher.net)]
    if isinstance(own, Distill):
        uses = {"the metric": own.metric, "turned copies": own.weights.turns > 0}
        wanting = " and ".join(name for name, used in uses.items() if used)
        few = _too_few_images(pool, budget.inverted_images) if wanting else []
    said = {
        "no BatchNorm, so inverted without its statistics": plain,
        f"fewer than {MIN_IMAGES} inverted images of each class, too few for {wanting}": few,
    }
    return [f"{what}: {_names(teachers)}" for what, teachers in said.items() if teachers]


def _too_few_images(pool: Sequence[Teacher], n_images: int) -> list[Teacher]:
    """Teachers none of whose classes can have enough of all teachers' inverted images."""
    # A teacher's are dealt to its classes in turn: none has more than the first.
    most = [math.ceil(n_images / len(teacher.info.class_ids)) for teacher in pool]
    images: Counter[tuple[str, str]] = Counter()
    for teacher, n in zip(pool, most, strict=True):
        images.update(dict.fromkeys(teacher.info.classes, n))
    return [t for t in pool if max(images[name] for name in t.info.classes) < MIN_IMAGES]


def _names(pool: Sequence[Teacher]) -> str:
    return first_of((t.info.file.removesuffix(".safetensors") for t in pool), LISTED)
