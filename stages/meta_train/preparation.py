"""What is made before a student's first step: images inverted from the teachers, and the bank.

Both are kept in the folder of unfinished work, the bank part by part as it grows, so that an
interrupted run finds them there.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stages.common.compiling import compiler
from stages.common.files import load_tensors, save_tensors
from stages.common.natural_inversion import Labelled, invert, n_batches
from stages.common.pool import Teacher
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.errors import BadInput
from stages.interface.progress import Reporter
from stages.meta_train.bank import Bank, fill, n_mixed
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
        for i, (teacher, (state, loss)) in enumerate(zip(pool, losses, strict=True)):
            path = setting.folder / f"inverted-{i:02d}.safetensors"
            if not path.exists():
                made = invert(
                    teacher.info,
                    state,
                    loss,
                    _wanted(
                        n_images, len(teacher.info.class_ids), stream(setting.seed, "classes", i)
                    ),
                    own.inversion,
                    params,
                    n_steps,
                    stream(setting.seed, "inversion", i),
                    setting.device,
                    functools.partial(_further, report, sum(steps[:i])),
                )
                save_tensors(path, made._asdict(), {})
            images.append(Labelled(**load_tensors(path)[0]))
            report(sum(steps[: i + 1]), teacher=i + 1)
    return images


def _further(report: Reporter, before: int, done: int) -> None:
    report(before + done)


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
    path, parts = setting.folder / "bank.safetensors", setting.folder / "bank"
    if not path.exists():
        size = max(teacher.info.image_size for teacher in pool)
        n_images = setting.budget.procedural_images if own.procedural else 0
        drawn = procedural_images(n_images, size, stream(setting.seed, "procedural images"))
        n_plain = n_images + sum(len(part.images) for part in inverted)
        if not n_plain:
            raise BadInput(
                "procedural_images = 0 (budgets): allowed: from 1, for a student that learns from"
                " nothing else"
            )
        with Reporter("bank", n_mixed(n_plain)) as report:
            bank = fill(
                pool,
                drawn,
                inverted,
                setting.view.image_size,
                shared.n_components,
                shared.precision,
                stream(setting.seed, "bank"),
                setting.device,
                functools.partial(_kept, parts),
                report,
            )
        save_tensors(path, bank._asdict(), {})
        shutil.rmtree(parts)
        del bank, drawn  # gigabytes at 224 pixels
    return Bank(**load_tensors(path)[0])


def _kept(folder: Path, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file of this folder, made first if it is not there."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        save_tensors(path, make(), {})
    return load_tensors(path)[0]
