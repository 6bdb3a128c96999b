"""The methods of meta-training: a new one is a module, its section of params.yaml, and a row.

A method makes a `Run` from the pool and its own parameters; `loop.meta_train` steps it, keeps its
snapshots and history, and resumes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from stages.common.pool import Teacher
    from stages.meta_train.synthetic import DynamicDataset


class Run(Protocol):
    """A meta-training run between two iterations."""

    dataset: DynamicDataset

    def step(self, t: int) -> dict[str, float]:
        """Iteration t, from 0; what the history records of it, the same names every time."""

    def snapshot(self) -> dict[str, Tensor]:
        """The learner's parameters."""

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on."""

    def load_state(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Method:
    family: str  # section of meta_train with what related methods share
    start: Callable[..., Run]


def _episode_inversion(pool: Sequence[Teacher], **settings: Any) -> Run:
    from stages.meta_train.episode_inversion import EpisodeInversionRun

    return EpisodeInversionRun(pool, **settings)


METHODS = {
    "ei": Method("episode_inversion", _episode_inversion),
    "eci": Method("episode_inversion", _episode_inversion),
}
