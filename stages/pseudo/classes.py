"""Pseudo data for a pool without a data set: fresh synthetic images of the pool's own classes.

They are inverted from procedural images, of which no learner has seen any, and stand in for the
images that nobody has. They choose a snapshot; how well a learner does on real images of new
classes they do not say.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stages.common.compiling import compiler
from stages.common.dataset import Split, View, class_tensor
from stages.common.files import save_tensors
from stages.common.kept import Kept, Tensors
from stages.common.natural_inversion import Labelled, invert, n_batches
from stages.common.pool import Teacher, TeacherInfo
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.errors import BadInput
from stages.interface.params import NO_DATASET
from stages.interface.progress import Reporter
from stages.pseudo.params import Pseudo

SPLITS: tuple[Split, ...] = ("val", "test")


def pseudo_classes(
    pool: Sequence[Teacher], params: Pseudo, device: str, kept: Kept
) -> dict[str, dict[Split, Tensor]]:
    """By class name the images of each split, uint8 (n, s, s, 3), of the teacher's size s.

    Of the classes that the teachers lend, up to `classes_per_teacher` each; the splits share
    classes and no image. With large teachers they take hours, so each batch of them is kept.
    """
    infos = [teacher.info for teacher in pool]
    lent = lent_labels(infos, params.classes_per_teacher)
    batches = [
        n_batches(len(labels) * params.images_per_class, info.image_size)
        for info, labels in zip(infos, lent, strict=True)
    ]
    n_steps = len(SPLITS) * params.inversion_steps * sum(batches) // len(pool)
    losses = teacher_losses(
        pool,
        params.inversion.weights,
        params.inversion.precision,
        lambda n: compiler("auto", n * n_steps, device),
    )

    def made(i: int, split: Split, batches: Kept) -> Tensors:
        return invert(
            infos[i],
            *losses[i],
            torch.tensor(lent[i], dtype=torch.long).repeat(params.images_per_class),
            "procedural",
            params.inversion,
            params.inversion_steps,
            generator(0, "pseudo", split, i),
            device,
            batches,
        )._asdict()

    found: dict[str, dict[Split, Tensor]] = {}
    lending = [i for i, labels in enumerate(lent) if labels]  # of the rest others lend all classes
    jobs = list(itertools.product(lending, SPLITS))
    with Reporter("pseudo images", len(jobs)) as report:
        for n, (i, split) in enumerate(jobs):
            report(n)
            name = f"{split}-{i:02d}"
            own = Labelled(**kept.in_parts(name, functools.partial(made, i, split)))
            for label in lent[i]:
                images = found.setdefault(f"teacher {i}: {infos[i].class_names[label]}", {})
                images[split] = own.images[own.labels == label]
        report(len(jobs))
    return found


def write(path: Path, classes: Mapping[str, Mapping[Split, Tensor]], view: View) -> None:
    """A data set of these as `stages.common.dataset.load_split` reads it; none are meta-train's."""
    metadata = {
        "dataset": NO_DATASET,
        "class_names": list(classes),
        "splits": {"train": [], **{split: list(classes) for split in SPLITS}},
        "image_size": view.image_size,
        "mean": view.normalisation.mean,
        "std": view.normalisation.std,
    }
    images = {
        class_tensor(split, i): of_a_class[split]
        for i, of_a_class in enumerate(classes.values())
        for split in SPLITS
    }
    save_tensors(path, images, metadata)


def check_lends(pool: Sequence[TeacherInfo], most: int, n_way: int) -> None:
    """Raise BadInput if the pool has too few classes for an episode, `most` of a teacher."""
    n_classes = sum(map(len, lent_labels(pool, most)))
    if n_classes < n_way:
        raise BadInput(
            f"n_way = {n_way}: the pool lends only {n_classes} classes to pseudo episodes, at most"
            f" pseudo.classes_per_teacher = {most} of a teacher; allowed: up to {n_classes}"
        )


def lent_labels(pool: Sequence[TeacherInfo], most: int) -> list[list[int]]:
    """Which of its labels each teacher lends, up to `most`.

    A class that several teachers know is lent once, by the one that has lent least, so that no
    episode has it under two labels.
    """
    knowing: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, info in enumerate(pool):
        for label, known in enumerate(info.classes):
            knowing.setdefault(known, []).append((i, label))
    lent: list[list[int]] = [[] for _ in pool]
    for places in knowing.values():
        i, label = min(places, key=lambda place: len(lent[place[0]]))
        if len(lent[i]) < most:
            lent[i].append(label)
    return lent
