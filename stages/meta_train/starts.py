"""Learners that need no episodes: Random, Average and OTA (METHODS 2), and where EI starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from stages.common.architectures import channels_last
from stages.common.learner import Theta, initial_theta, load_learner, snapshots
from stages.common.pool import Teacher
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_train.methods import Setting


def taught_by(pool: Sequence[Teacher], n_teachers: int | str) -> Sequence[Teacher]:
    """The pool's first `n_teachers`, or "all" (table 8: how much does a larger pool help).

    Raises BadInput if the pool has fewer.
    """
    if n_teachers == "all":
        return pool
    if int(n_teachers) > len(pool):
        raise BadInput(f"n_teachers = {n_teachers}: the pool has {len(pool)}; allowed: up to that")
    return pool[: int(n_teachers)]


def drawn(pool: Sequence[Teacher], setting: Setting) -> Theta:
    """Freshly drawn parameters, whatever the pool."""
    stream = generator(setting.seed, "meta_train", "initialisation")
    return initial_theta(setting.architecture, setting.n_way, setting.view.image_size, stream)


def average(pool: Sequence[Teacher], setting: Setting) -> Theta:
    """Parameter mean of the pool, head included (METHODS 1.2; the baseline "Average").

    Raises BadInput if a teacher differs from the learner in shape.
    """
    require_equal(pool, learner_form(setting), "average")
    states = [dict(teacher.net.named_parameters()) for teacher in pool]
    return {
        name: channels_last(torch.stack([state[name].detach() for state in states]).mean(0))
        for name in states[0]
    }


def distilled(pool: Sequence[Teacher], setting: Setting) -> Theta:
    """The body of a distilled learner, its last snapshot; the head is zero.

    Its BatchNorm statistics are left behind: the learner normalises with those of its batches.

    Raises BadInput if `setting.start` holds no distilled learner of the learner's form.
    """
    assert setting.start is not None
    path = snapshots(setting.start)[-1]
    _, found, info = load_learner(path)
    form = (info.architecture, info.image_size)
    if info.distilled is None or form != (setting.architecture, setting.view.image_size):
        raise BadInput(
            f"{path}: a {info.architecture} for {info.image_size} pixels of method"
            f" {info.method}: allowed to start from: a distilled {setting.architecture} for"
            f" {setting.view.image_size}"
        )
    theta = {name: torch.zeros_like(p) for name, p in drawn(pool, setting).items()}
    for name in theta:
        if not name.startswith("head."):
            theta[name] = found[f"body.{name}"]
    return theta


def ota(pool: Sequence[Teacher], setting: Setting) -> Theta:
    """The pool fused by optimal transport; the reference teacher is drawn (METHODS 2)."""
    from stages.meta_train.ota import fuse

    require_equal(pool, learner_form(setting), "ota")
    stream = generator(setting.seed, "meta_train", "ota reference")
    return fuse(pool, int(torch.randint(len(pool), (), generator=stream)))


STARTS: dict[str, Callable[[Sequence[Teacher], Setting], Theta]] = {
    "random": drawn,
    "average": average,
    "ota": ota,
    "distilled": distilled,
}


def learner_form(setting: Setting) -> tuple[str, int, int]:
    """The learner's architecture, outputs and image size."""
    return setting.architecture, setting.n_way, setting.view.image_size


def require_equal(pool: Sequence[Teacher], learner: tuple[str, int, int], what: str) -> None:
    """Raise BadInput if a teacher is not of the learner's form: `what` mixes their parameters."""
    for teacher in pool:
        info = teacher.info
        if (info.architecture, info.n_outputs, info.image_size) != learner:
            raise BadInput(
                f"{what} mixes the teachers' parameters, but {info.file} is a {info.architecture}"
                f" with {info.n_outputs} outputs for {info.image_size} pixels and the learner a"
                f" {learner[0]} with {learner[1]} for {learner[2]}; allowed where architectures"
                " differ (SH, MH): random, and methods that start from it"
            )
