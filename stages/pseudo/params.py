"""Parameters of pseudo."""

from __future__ import annotations

from pydantic import PositiveInt

from stages.common.params import NaturalInversion, Section
from stages.interface.errors import BadInput


class Pseudo(Section):
    """The images of a pool's own classes, where there is no data set."""

    classes_per_teacher: PositiveInt
    images_per_class: PositiveInt
    inversion_steps: PositiveInt
    inversion: NaturalInversion

    def check_holds(self, n_shot: int, n_query: int, where: str = "") -> None:
        """Raise BadInput if a class has too few images for an episode."""
        most, wanted = self.images_per_class, n_shot + n_query
        if wanted > most:
            raise BadInput(
                f"{where}n_shot = {n_shot}, n_query = {n_query}: a pseudo episode needs {wanted}"
                " images of a class; allowed: n_shot + n_query up to"
                f" pseudo.images_per_class = {most}"
            )
