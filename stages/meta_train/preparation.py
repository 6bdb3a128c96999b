"""What is made before a student's first step: images inverted from the teachers, and the bank.

Both are kept in the folder of unfinished work, batch by batch and part by part as they grow, so
that an interrupted run finds them there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stages.common.compiling import compiler
from stages.common.kept import Kept, Tensors
from stages.common.natural_inversion import Labelled, invert, n_batches
from stages.common.pool import Teacher
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.errors import BadInput
from stages.interface.progress import Reporter
from stages.meta_train.bank import Bank, fill, n_seen
from stages.meta_train.methods import Setting
from stages.meta_train.params import Distill, Distillation


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """Of random numbers, for one purpose of distillation."""
    return generator(seed, "meta_train", "distill", *purpose)


def inverted_images(
    pool: Sequence[Teacher], shared: Distillation, own: Distill, setting: Setting
) -> list[Labelled]:
    """Every teacher's images, each teacher's in a file of its own as soon as they are made.

    Empty for a student that learns without.
    """
    if own.inversion == "none":
        return []
    params, n_images = shared.inversion, setting.budget.inverted_images
    n_steps = setting.budget.inversion_steps
    steps = [n_batches(n_images, teacher.info.image_size) * n_steps for teacher in pool]

    def compiled(n_teachers: int) -> Callable[..., Callable[..., object]]:
        return compiler(shared.compile, n_teachers * sum(steps) // len(pool), setting.device)

    losses = teacher_losses(pool, params.weights, params.precision, compiled)
    images = []
    with Reporter("inversion", sum(steps)) as report:

        def made(i: int, batches: Kept) -> Tensors:
            info, (state, loss) = pool[i].info, losses[i]
            drawn = stream(setting.seed, "classes", i)
            return invert(
                info,
                state,
                loss,
                _wanted(n_images, len(info.class_ids), drawn),
                own.inversion,
                params,
                n_steps,
                stream(setting.seed, "inversion", i),
                setting.device,
                batches,
                lambda done: report(sum(steps[:i]) + done),
            )._asdict()

        for i in range(len(pool)):
            whole = setting.kept.in_parts(f"inverted-{i:02d}", functools.partial(made, i))
            images.append(Labelled(**whole))
            report(sum(steps[: i + 1]), teacher=i + 1)
    return images


def _wanted(n_images: int, n_classes: int, drawn: torch.Generator) -> Tensor:
    """Labels of a teacher's images: its classes in turn, or a draw of them if they are many."""
    if n_images < n_classes:
        return torch.randperm(n_classes, generator=drawn)[:n_images]
    return torch.arange(n_images) % n_classes


def filled_bank(
    pool: Sequence[Teacher],
    inverted: Sequence[Labelled],
    shared: Distillation,
    own: Distill,
    setting: Setting,
) -> Bank:
    """The bank of these inverted images and of procedural ones."""

    def made(parts: Kept) -> Tensors:
        size = max(teacher.info.image_size for teacher in pool)
        n_images = setting.budget.procedural_images if own.procedural else 0
        n_plain = n_images + sum(len(part.images) for part in inverted)
        if not n_plain:
            raise BadInput(
                "procedural_images = 0 (budgets): allowed: from 1, for a student that learns from"
                " nothing else"
            )
        with Reporter("bank", n_seen(n_plain)) as report:
            return fill(
                pool,
                procedural_images(n_images, size, stream(setting.seed, "procedural images")),
                inverted,
                setting.view.image_size,
                shared.n_components,
                shared.precision,
                stream(setting.seed, "bank"),
                setting.device,
                parts,
                report,
            )._asdict()

    return Bank(**setting.kept.in_parts("bank", made))
