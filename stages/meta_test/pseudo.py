"""Pseudo data for a pool without a data set: fresh synthetic images of the pool's own classes.

They are inverted from procedural images, of which no learner has seen any, and stand in for the
images that nobody has. They choose a snapshot; how well a learner does on real images of new
classes they do not say.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from stages.common.compiling import compiler
from stages.common.dataset import ClassImages, Split
from stages.common.kept import Kept, Tensors
from stages.common.natural_inversion import Labelled, invert, n_batches
from stages.common.pool import Teacher, TeacherInfo
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.errors import BadInput
from stages.interface.params import NO_DATASET
from stages.interface.progress import Reporter
from stages.meta_test.params import Pseudo


def pseudo_classes(
    pool: Sequence[Teacher], split: Split, n_way: int, params: Pseudo, device: str, kept: Kept
) -> ClassImages:
    """Classes that the teachers lend, up to `classes_per_teacher` each, with images of their own.

    A split has its own images; the classes are the same. Teachers' images keep their size. With
    large teachers they take hours, so each batch of them is kept.

    Raises BadInput if these are too few for `n_way`.
    """
    steps = params.inversion_steps
    infos = [teacher.info for teacher in pool]
    check_lends(infos, params.classes_per_teacher, n_way)
    lent = lent_labels(infos, params.classes_per_teacher)
    batches = [
        n_batches(len(labels) * params.images_per_class, teacher.info.image_size)
        for teacher, labels in zip(pool, lent, strict=True)
    ]
    losses = teacher_losses(
        pool,
        params.inversion.weights,
        params.inversion.precision,
        lambda n: compiler("auto", n * steps * sum(batches) // len(pool), device),
    )

    def made(i: int, batches: Kept) -> Tensors:
        return invert(
            pool[i].info,
            *losses[i],
            torch.tensor(lent[i], dtype=torch.long).repeat(params.images_per_class),
            "procedural",
            params.inversion,
            steps,
            generator(0, "meta_test", "pseudo", split, i),
            device,
            batches,
        )._asdict()

    names, images = [], []
    with Reporter(f"pseudo meta-{split}", len(pool)) as report:
        for i, labels in enumerate(lent):
            report(i)
            if not labels:  # others lend all its classes
                continue
            own = Labelled(**kept.in_parts(f"pseudo-{split}-{i:02d}", functools.partial(made, i)))
            for label in labels:
                names.append(f"teacher {i}: {infos[i].class_names[label]}")
                images.append(own.images[own.labels == label])
        report(len(pool))
    first = pool[0].info
    return ClassImages(
        NO_DATASET, list(range(len(names))), names, images, first.image_size, first.normalisation
    )


def check_lends(pool: Sequence[TeacherInfo], most: int, n_way: int) -> None:
    """Raise BadInput if the pool has too few classes for an episode, `most` of a teacher."""
    n_classes = sum(map(len, lent_labels(pool, most)))
    if n_classes < n_way:
        raise BadInput(
            f"n_way = {n_way}: the pool lends only {n_classes} classes to pseudo episodes, at most"
            f" meta_test.pseudo.classes_per_teacher = {most} of a teacher; allowed: up to"
            f" {n_classes}"
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
