"""Which teacher learns which classes, and the training of them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from stages.common.dataset import ClassImages
from stages.common.pool import TeacherInfo, load_info, save_manifest, save_teacher
from stages.common.seeds import generator
from stages.interface.progress import Reporter
from stages.pretrain.params import Pretrain
from stages.pretrain.teacher import train_teacher


def teacher_classes(
    n_classes: int, n_way: int, pool_size: int | Literal["auto"], seed: int
) -> list[list[int]]:
    """Positions of the classes of each teacher.

    The classes are dealt out n_way at a time in random order; the last teacher takes what is left
    (64 classes, 5-way: 13 teachers, the last with 4). A pool of more teachers deals again, with
    another order, so that classes repeat only when all have been taught.
    """
    per_round = math.ceil(n_classes / n_way)
    size = per_round if pool_size == "auto" else pool_size
    hands: list[list[int]] = []
    for deal in range(math.ceil(size / per_round)):
        stream = generator(seed, "pretrain", "classes", deal)
        order = torch.randperm(n_classes, generator=stream).tolist()
        hands += [order[i : i + n_way] for i in range(0, n_classes, n_way)]
    return hands[:size]


def train_pool(
    folder: Path,
    data: ClassImages,
    params: Pretrain,
    n_way: int,
    epochs: int,
    seed: int,
    device: str,
    saved: Callable[[], None] = lambda: None,
) -> list[TeacherInfo]:
    """Train every teacher that `folder` does not hold yet, then write the manifest.

    Interrupted and called again, it goes on with the first unfinished teacher; every teacher has
    random streams of its own, so the pool is the same bytes. `saved` is called after each.
    """
    hands = teacher_classes(len(data.class_ids), n_way, params.pool_size, seed)
    infos = []
    with Reporter("pretrain", len(hands) * epochs) as report:
        for index, hand in enumerate(hands):
            path = folder / f"teacher-{index:02d}.safetensors"
            if not path.exists():
                _train_one(path, data, hand, params, n_way, epochs, seed, index, device, report)
                saved()
            infos.append(load_info(path))
            report((index + 1) * epochs, teacher=f"{index + 1}/{len(hands)}")
    save_manifest(folder, infos)
    return infos


def _train_one(
    path: Path,
    data: ClassImages,
    classes: list[int],
    params: Pretrain,
    n_way: int,
    epochs: int,
    seed: int,
    index: int,
    device: str,
    report: Reporter,
) -> None:
    images = [data.normalisation.apply(data.images[c]) for c in classes]
    trained = train_teacher(
        images,
        n_way,
        params.architecture,
        params,
        epochs,
        seed,
        index,
        device,
        lambda epoch, loss, accuracy: report(
            index * epochs + epoch, teacher=index + 1.0, loss=loss, val_accuracy=accuracy
        ),
    )
    info = TeacherInfo(
        file=path.name,
        architecture=params.architecture,
        n_outputs=n_way,
        dataset=data.dataset,
        class_ids=tuple(data.class_ids[c] for c in classes),
        class_names=tuple(data.class_names[c] for c in classes),
        image_size=data.image_size,
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        val_accuracy=round(trained.val_accuracy, 4),
        epoch=trained.epoch,
        n_parameters=trained.n_parameters,
    )
    save_teacher(path, info, trained.state)
