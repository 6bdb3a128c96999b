"""The methods of meta-training: a new one is a module, its section of params.yaml, and a row.

A method starts a `Run` from the pool and its own parameters; `loop.meta_train` steps it, keeps its
snapshots and history, and resumes it. The loop and the command know no method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from stages.common.pool import Teacher

Records = dict[str, list[float]]  # the history so far, by column


class Run(Protocol):
    """A meta-training run between two iterations."""

    architecture: str  # of the learner

    def step(self, t: int) -> dict[str, float]:
        """Iteration t, from 0; what the history records of it, the same names every time."""

    def progress(self, records: Records) -> dict[str, float | str]:
        """What the line of progress says."""

    def snapshot(self) -> dict[str, Tensor]:
        """The learner's parameters."""

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        """Images (n_i, 3, h_i, w_i) grouped by label, and labels (n_i,), of every teacher."""

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a `state`."""


@dataclass(frozen=True)
class Method:
    family: str  # section of meta_train with what related methods share
    start: Callable[..., Run]  # (pool, its family's and its own section, budget=..., ...)


def _episode_inversion(pool: Sequence[Teacher], *sections: Any, **settings: Any) -> Run:
    from stages.meta_train.episode_inversion import EpisodeInversionRun

    return EpisodeInversionRun(pool, *sections, **settings)


METHODS = {
    "ei": Method("episode_inversion", _episode_inversion),
    "eci": Method("episode_inversion", _episode_inversion),
}
