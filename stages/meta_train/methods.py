"""The methods of meta-training: a new one is a module, its section of params.yaml, and a row.

A method starts a `Run` (stages/common/loop.py) from the pool and its own parameters; the loop and
the command know no method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stages.common.kept import Kept
from stages.common.params import Architecture, Scenario
from stages.interface.provenance import IMAGE_PRIOR, NO_DATA

if TYPE_CHECKING:
    from stages.common.dataset import View
    from stages.common.loop import Run
    from stages.common.pool import Teacher

ANY: tuple[str, ...] = get_args(Architecture)


@dataclass(frozen=True)
class Setting:
    """What every method is told besides the pool and its own parameters."""

    architecture: str  # of the learner
    view: View  # how the learner sees images
    scenario: Scenario
    budget: Any  # the section of `budgets` that the method names
    n_way: int
    n_shot: int
    n_query: int
    seed: int
    device: str
    kept: Kept = field(default_factory=lambda: Kept(Path()))  # preparations
    start: Path | None = None  # a learner's folder to start from, for a method that `continues`


# (pool, the family's section, the method's own, setting)
Starter = Callable[["Sequence[Teacher]", Any, Any, Setting], "Run"]


@dataclass(frozen=True)
class Method:
    family: str  # section of meta_train with what related methods share
    start: Starter
    trains: bool = True  # False: the learner is there from the start, no iterations
    length: str = "meta_train"  # section of a budget that says how long
    data_used: Callable[[Any], str] = lambda own: NO_DATA
    continues: str = ""  # the method whose learner this one starts from
    mixes: tuple[str, ...] = ()  # the parameters of teachers of any one of these; empty: of none
    fewest_teachers: int = 1


def _episode_inversion(pool: Sequence[Teacher], shared: Any, own: Any, setting: Setting) -> Run:
    from stages.meta_train.episode_inversion import EpisodeInversionRun

    return EpisodeInversionRun(pool, shared, own, setting)


def _fixed(start: str) -> Starter:
    """A learner that is there from the start: a row of `starts.STARTS`."""

    def run(pool: Sequence[Teacher], shared: Any, own: Any, setting: Setting) -> Run:
        from stages.common.loop import Fixed
        from stages.meta_train.starts import STARTS

        return Fixed(setting.architecture, STARTS[start](pool, setting))

    return run


def _distill(pool: Sequence[Teacher], shared: Any, own: Any, setting: Setting) -> Run:
    from stages.meta_train.distill import DistillRun

    return DistillRun(pool, shared, own, setting)


def _prior(own: Any) -> str:
    """Procedural images are no data, but somebody made up what natural images look like."""
    return IMAGE_PRIOR if own.procedural or own.inversion == "procedural" else NO_DATA


def _dro(pool: Sequence[Teacher], shared: Any, own: Any, setting: Setting) -> Run:
    from stages.meta_train.dro import DroRun

    return DroRun(
        pool,
        setting.architecture,
        own,
        n_way=setting.n_way,
        image_size=setting.view.image_size,
        seed=setting.seed,
        device=setting.device,
    )


_DISTILL = Method("distillation", _distill, length="distillation", data_used=_prior)

METHODS = {
    "random": Method("fixed", _fixed("random"), trains=False),
    "average": Method("fixed", _fixed("average"), trains=False, mixes=ANY),
    "ota": Method("fixed", _fixed("ota"), trains=False, mixes=("conv4", "conv4_64")),
    "dro": Method("fixed", _dro, mixes=ANY, fewest_teachers=2),  # S and Q (METHODS 2)
    "ei": Method("episode_inversion", _episode_inversion),
    "eci": Method("episode_inversion", _episode_inversion),
    # One network that carries the pool, and what becomes of it without an ingredient.
    "distill": _DISTILL,
    "distill_64": _DISTILL,
    "distill_procedural": _DISTILL,
    "distill_inverted": _DISTILL,
    "distill_noise": _DISTILL,
    "distill_no_prior": _DISTILL,
    "distill_no_outputs": _DISTILL,
    "distill_no_features": _DISTILL,
    "distill_no_labels": _DISTILL,
    "distill_no_metric": _DISTILL,
    # Does a better start help meta-learning?
    "eci_distilled": Method(
        "episode_inversion",
        _episode_inversion,
        data_used=lambda own: IMAGE_PRIOR,
        continues="distill",
    ),
    # Rows of the sensitivity tables (7: lambda, 8: pool size).
    "eci_lambda2": Method("episode_inversion", _episode_inversion),
    "eci_lambda05": Method("episode_inversion", _episode_inversion),
    "eci_pool2": Method("episode_inversion", _episode_inversion),
    "eci_pool6": Method("episode_inversion", _episode_inversion),
    # Other learners on the episodes of EI.
    "protonet": Method("episode_inversion", _episode_inversion),
    "anil": Method("episode_inversion", _episode_inversion),
}
