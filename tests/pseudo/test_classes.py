"""Images of a pool's own classes, where there is no data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stages.common.dataset import load_split, load_splits
from stages.common.kept import Kept
from stages.common.natural_inversion import Labelled, invert
from stages.common.params import InversionWeights, NaturalInversion
from stages.common.pool import Teacher, TeacherInfo, load_pool, save_manifest, save_teacher
from stages.interface.errors import BadInput
from stages.meta_test.episodes import fixed_tasks
from stages.pseudo import classes
from stages.pseudo.classes import check_lends, lent_labels, pseudo_classes, write
from stages.pseudo.params import Pseudo
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
    made = pseudo_classes([pool[0], same, same, same], PARAMS, "cpu", Kept(tmp_path))
    assert [*made] == ["teacher 0: class0", "teacher 1: class1", "teacher 2: class2"]
    assert all(torch.unique(images).numel() > 2 for own in made.values() for images in own.values())


def test_too_few_classes_are_refused(pool: list[Teacher]) -> None:
    infos = [teacher.info for teacher in pool]
    check_lends(infos, 2, 4)
    with pytest.raises(BadInput, match=r"n_way = 5: the pool lends only 4 classes .*: up to 4"):
        check_lends(infos, 2, 5)


def test_what_is_written_is_a_data_set(pool: list[Teacher], tmp_path: Path) -> None:
    """Every teacher lends classes of its own, in its own size; the splits share no image."""
    made = pseudo_classes(pool, PARAMS, "cpu", Kept(tmp_path / "kept"))
    path = tmp_path / "none.safetensors"
    write(path, made, pool[0].info.view)
    assert load_split(path, "train").images == []
    val, test = (load_splits([path, path], split) for split in ("val", "test"))
    for (data,), split in ((val, "val"), (test, "test")):
        assert (data.dataset, data.image_size) == ("none", 16)
        assert data.normalisation == pool[0].info.normalisation
        assert data.class_names == [
            f"teacher {t}" for t in ("0: class0", "0: class1", "1: a", "1: b")
        ]
        assert [tuple(x.shape[1:]) for x in data.images] == 2 * [(16, 16, 3)] + 2 * [(24, 24, 3)]
        for name, images in zip(data.class_names, data.images, strict=True):
            assert torch.equal(images, made[name][split])
            assert len(images) == PARAMS.images_per_class
    for a, b in zip(val[0].images, test[0].images, strict=True):
        seen = {image.numpy().tobytes() for image in a}
        assert not seen & {image.numpy().tobytes() for image in b}
    (task,) = fixed_tasks(test, "test", 1, n_way=3, n_shot=1, n_query=5)
    assert len(task.episode.classes) == 3


def test_an_image_becomes_one_of_its_class(pool: list[Teacher], tmp_path: Path) -> None:
    """To the teacher that lends it, by its cross-entropy: more steps, the lower."""

    def losses(n_steps: int) -> dict[str, float]:
        params = PARAMS.model_copy(update={"inversion_steps": n_steps})
        made = pseudo_classes(pool, params, "cpu", Kept(tmp_path / str(n_steps)))
        found = {}
        for i, teacher in enumerate(pool):
            for label, known in enumerate(teacher.info.class_names):
                name = f"teacher {i}: {known}"
                for split, images in made.get(name, {}).items():
                    with torch.inference_mode():
                        said = teacher.net(teacher.info.view.of(images)).logits
                    wanted = torch.full((len(images),), label)
                    found[f"{split} {name}"] = F.cross_entropy(said, wanted).item()
        return found

    few, many = losses(1), losses(40)
    assert len(few) == 8
    assert all(many[name] < few[name] - 0.01 for name in few)


def test_interrupted_they_go_on_with_the_first_unfinished_teacher(
    pool: list[Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pseudo_classes(pool, PARAMS, "cpu", Kept(tmp_path / "a"))
    inverted = []

    def counted(info: TeacherInfo, *rest: Any) -> Labelled:
        inverted.append(info.file)
        if len(inverted) == 3:
            raise KeyboardInterrupt
        return invert(info, *rest)

    monkeypatch.setattr(classes, "invert", counted)
    with pytest.raises(KeyboardInterrupt):
        pseudo_classes(pool, PARAMS, "cpu", Kept(tmp_path / "b"))
    again = pseudo_classes(pool, PARAMS, "cpu", Kept(tmp_path / "b"))
    first, second = (teacher.info.file for teacher in pool)
    assert inverted == [first, first, second, second, second]
    assert [*whole] == [*again]
    for name, own in whole.items():
        assert all(torch.equal(own[split], again[name][split]) for split in ("val", "test"))


def test_they_start_from_procedural_images(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []

    def noted(*given: Any) -> Labelled:
        starts.append(given[4])
        return invert(*given)

    monkeypatch.setattr(classes, "invert", noted)
    pseudo_classes(load_pool(tiny_pool), PARAMS, "cpu", Kept(tmp_path / "kept"))
    assert set(starts) == {"procedural"}
