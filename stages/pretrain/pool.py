"""Which teacher learns what, and the training of them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from stages.common.dataset import ClassImages
from stages.common.pool import TeacherInfo, load_info, save_manifest, save_teacher
from stages.common.seeds import generator
from stages.interface.progress import Reporter
from stages.pretrain.params import Pretrain, PretrainBudget, n_teachers
from stages.pretrain.teacher import Checkpoint, train_teacher


class Lesson(NamedTuple):
    """What one teacher is and learns."""

    architecture: str
    data: ClassImages
    classes: list[int]  # positions in the data set's list of classes


def plan_pool(
    data: Sequence[ClassImages],
    architectures: Sequence[str],
    n_way: int,
    pool_size: int | Literal["auto"],
    seed: int,
) -> list[Lesson]:
    """Architecture and data set of each teacher are drawn (SH, MH), its classes dealt."""
    size = n_teachers(pool_size, [len(d.class_ids) for d in data], n_way)
    decks = [iter(teacher_classes(len(d.class_ids), n_way, size, seed, d.dataset)) for d in data]

    def draw(purpose: str, n: int, index: int) -> int:
        return int(torch.randint(n, (), generator=generator(seed, "pretrain", purpose, index)))

    lessons = []
    for i in range(size):
        architecture = architectures[draw("architecture", len(architectures), i)]
        which = draw("data set", len(data), i)
        lessons.append(Lesson(architecture, data[which], next(decks[which])))
    return lessons


def teacher_classes(
    n_classes: int, n_way: int, size: int, seed: int, dataset: str
) -> list[list[int]]:
    """Positions of the classes of each of `size` teachers of one data set.

    The classes are dealt out n_way at a time in random order; the last teacher takes what is left
    (64 classes, 5-way: 13 teachers, the last with 4). A pool of more teachers deals again, with
    another order, so that classes repeat only when all have been taught.
    """
    per_round = math.ceil(n_classes / n_way)
    hands: list[list[int]] = []
    for deal in range(math.ceil(size / per_round)):
        stream = generator(seed, "pretrain", "classes", dataset, deal)
        order = torch.randperm(n_classes, generator=stream).tolist()
        hands += [order[i : i + n_way] for i in range(0, n_classes, n_way)]
    return hands[:size]


def train_pool(
    folder: Path,
    lessons: Sequence[Lesson],
    params: Pretrain,
    length: PretrainBudget,
    n_way: int,
    seed: int,
    device: str,
    saved: Callable[[], None] = lambda: None,
) -> list[TeacherInfo]:
    """Train every teacher that `folder/pool` does not hold yet, then write its manifest.

    Interrupted and called again, it goes on with the first unfinished teacher, from its checkpoint;
    every teacher has random streams of its own, so the pool is the same bytes. `saved` is called
    after each teacher and checkpoint.
    """
    pool = folder / "pool"
    infos: list[TeacherInfo] = []
    with Reporter("pretrain", len(lessons)) as report:
        for index, lesson in enumerate(lessons):
            path = pool / f"teacher-{index:02d}.safetensors"
            if not path.exists():

                def say(epoch: int, loss: float, accuracy: float) -> None:
                    state = {"epoch": float(epoch), "loss": loss, "val_accuracy": accuracy}
                    report(len(infos), teacher=len(infos) + 1.0, **state)

                checkpoint = Checkpoint(folder / f"teacher-{index:02d}.pt", saved)
                given = (params, length, n_way, seed, index, device, say, checkpoint)
                _train_one(path, lesson, *given)
                checkpoint.path.unlink(missing_ok=True)
                saved()
            infos.append(load_info(path))
            report(index + 1, architecture=lesson.architecture)
    save_manifest(pool, infos)
    return infos


def _train_one(
    path: Path,
    lesson: Lesson,
    params: Pretrain,
    length: PretrainBudget,
    n_way: int,
    seed: int,
    index: int,
    device: str,
    report: Callable[[int, float, float], None],
    checkpoint: Checkpoint,
) -> None:
    data = lesson.data
    images = [data.normalisation.apply(data.images[c]) for c in lesson.classes]
    given = (params, length, seed, index, device, report, checkpoint)
    trained = train_teacher(images, n_way, lesson.architecture, *given)
    info = TeacherInfo(
        file=path.name,
        architecture=lesson.architecture,
        n_outputs=n_way,
        dataset=data.dataset,
        class_ids=tuple(data.class_ids[c] for c in lesson.classes),
        class_names=tuple(data.class_names[c] for c in lesson.classes),
        image_size=data.image_size,
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        val_accuracy=round(trained.val_accuracy, 4),
        epoch=trained.epoch,
        n_parameters=trained.n_parameters,
    )
    save_teacher(path, info, trained.state)
