"""Parameters of pseudo."""

from __future__ import annotations

from pydantic import PositiveInt

from stages.common.params import NaturalInversion, Section


class Pseudo(Section):
    """The images of a pool's own classes, where there is no data set."""

    classes_per_teacher: PositiveInt
    images_per_class: PositiveInt
    inversion_steps: PositiveInt
    inversion: NaturalInversion
