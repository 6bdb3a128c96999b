"""Pseudo episodes, where there is no data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.common.kept import Kept
from stages.common.natural_inversion import Labelled, invert
from stages.common.params import InversionWeights, NaturalInversion
from stages.common.pool import Teacher, TeacherInfo, load_pool, save_manifest, save_teacher
from stages.interface.errors import BadInput
from stages.meta_test import pseudo
from stages.meta_test.episodes import fixed_tasks
from stages.meta_test.params import Pseudo
from stages.meta_test.pseudo import lent_labels, pseudo_classes
from tests.conftest import random_state, teacher_info

PARAMS = Pseudo(
    classes_per_teacher=2,
    images_per_class=6,
    inversion_steps=2,
    inversion=NaturalInversion(
        lr=0.05,
        max_roll=1,
        precision="float32",
        weights=InversionWeights(tv=1e-4, l2=0.0, bn_statistics=0.01),
    ),
)


@pytest.fixture
def pool(tmp_path: Path) -> list[Teacher]:
    """Teachers of two sizes whose classes have one name."""
    infos = [teacher_info(0), teacher_info(1, image_size=24, class_names=("class0", "a", "b"))]
    for info in infos:
        save_teacher(tmp_path / info.file, info, random_state(info))
    save_manifest(tmp_path, infos)
    return load_pool(tmp_path)


def test_a_class_of_several_teachers_is_lent_once(pool: list[Teacher], tmp_path: Path) -> None:
    """The second teacher's class0 is the first's; so are all of a third's."""
    same = Teacher(replace(pool[0].info, file="teacher-02.safetensors"), pool[0].net)
    infos = [teacher.info for teacher in pool]
    assert lent_labels(infos, 3) == [[0, 1, 2], [1, 2]]
    assert lent_labels([*infos, same.info], 2) == [[0, 2], [1, 2], [1]]
    other = replace(pool[0].info, dataset="another")
    assert lent_labels([*infos, other], 2) == [[0, 1], [1, 2], [0, 1]]
    made = pseudo_classes(
        [pool[0], same, same, same], "val", 2, PARAMS, "cpu", Kept(tmp_path / "kept")
    )
    assert made.class_names == ["teacher 0: class0", "teacher 1: class1", "teacher 2: class2"]
    assert all(torch.unique(images).numel() > 2 for images in made.images)


def test_too_few_classes_are_refused_before_anything_is_inverted(
    pool: list[Teacher], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"n_way = 7: the pool lends only 4 classes .*: up to 4"):
        pseudo_classes(pool, "val", 7, PARAMS, "cpu", Kept(tmp_path))


def test_every_teacher_lends_classes_of_its_own(pool: list[Teacher], tmp_path: Path) -> None:
    made = pseudo_classes(pool, "test", 2, PARAMS, "cpu", Kept(tmp_path))
    assert made.class_names == [
        "teacher 0: class0",
        "teacher 0: class1",
        "teacher 1: a",
        "teacher 1: b",
    ]
    assert [tuple(images.shape) for images in made.images] == [
        (6, 16, 16, 3),
        (6, 16, 16, 3),
        (6, 24, 24, 3),
        (6, 24, 24, 3),
    ]
    (task,) = fixed_tasks([made], "test", 1, n_way=3, n_shot=1, n_query=5)
    assert len(task.episode.classes) == 3


def test_interrupted_they_go_on_with_the_first_unfinished_teacher(
    pool: list[Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pseudo_classes(pool, "test", 2, PARAMS, "cpu", Kept(tmp_path / "a"))
    inverted = []

    def counted(info: TeacherInfo, *rest: Any) -> Labelled:
        inverted.append(info.file)
        if inverted == [pool[0].info.file, pool[1].info.file]:
            raise KeyboardInterrupt
        return invert(info, *rest)

    monkeypatch.setattr(pseudo, "invert", counted)
    with pytest.raises(KeyboardInterrupt):
        pseudo_classes(pool, "test", 2, PARAMS, "cpu", Kept(tmp_path / "b"))
    again = pseudo_classes(pool, "test", 2, PARAMS, "cpu", Kept(tmp_path / "b"))
    assert inverted == [teacher.info.file for teacher in (*pool, pool[1])]
    for a, b in zip(whole.images, again.images, strict=True):
        assert torch.equal(a, b)
    # The other split's are its own.
    other = pseudo_classes(pool, "val", 2, PARAMS, "cpu", Kept(tmp_path / "b"))
    assert not torch.equal(other.images[0], again.images[0])


def test_the_two_splits_share_classes_and_no_image(pool: list[Teacher], tmp_path: Path) -> None:
    val, test, again = (
        pseudo_classes(pool, split, 2, PARAMS, "cpu", Kept(tmp_path / str(i)))
        for i, split in enumerate(("val", "test", "test"))
    )
    assert val.class_names == test.class_names
    for a, b, c in zip(val.images, test.images, again.images, strict=True):
        assert torch.equal(b, c)
        seen = {image.numpy().tobytes() for image in a}
        assert not seen & {image.numpy().tobytes() for image in b}
