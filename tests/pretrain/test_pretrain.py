from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.common.dataset import ClassImages, Normalisation
from stages.common.pool import load_pool
from stages.interface import params
from stages.interface.errors import BadInput
from stages.pretrain import pool as pool_module
from stages.pretrain import teacher as teacher_module
from stages.pretrain.params import Pretrain, PretrainBudget
from stages.pretrain.pool import Lesson, plan_pool, teacher_classes, train_pool
from stages.pretrain.teacher import split_class
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def settings() -> Pretrain:
    return params.load(ROOT / "params.yaml").pretrain


@pytest.fixture(scope="module")
def data() -> ClassImages:
    """Seven classes of 16x16 images that differ by colour: learnable in an epoch or two."""
    g = torch.Generator().manual_seed(0)
    images = []
    for c in range(7):
        colour = torch.tensor([(c >> bit & 1) * 160 + 40 for bit in range(3)])
        noise = torch.randint(-30, 30, (20, 16, 16, 3), generator=g)
        images.append((colour + noise).clamp(0, 255).to(torch.uint8))
    names = [f"class{c}" for c in range(7)]
    norm = Normalisation((0.5,) * 3, (0.25,) * 3)
    return ClassImages("tiny", list(range(10, 17)), names, images, 16, norm)


@given(
    n_classes=st.integers(2, 70),
    n_way=st.integers(2, 12),
    size=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_every_class_is_taught_before_any_is_taught_twice(n_classes, n_way, size, seed) -> None:
    hands = teacher_classes(n_classes, n_way, size, seed, "tiny")
    per_round = -(-n_classes // n_way)
    assert len(hands) == size
    for start in range(0, len(hands), per_round):
        deal = [c for hand in hands[start : start + per_round] for c in hand]
        assert len(deal) == len(set(deal))
        if len(hands) >= start + per_round:
            assert set(deal) == set(range(n_classes))
    assert all(1 <= len(hand) <= n_way for hand in hands)


def test_the_papers_pool() -> None:
    data = [_colours("a", 64)]
    pools = {n: plan_pool(data, ["conv4"], n, "auto", 0) for n in (5, 10)}
    assert [len(lesson.classes) for lesson in pools[5]] == [5] * 12 + [4]
    assert [len(lesson.classes) for lesson in pools[10]] == [10] * 6 + [4]
    assert pools[5] != plan_pool(data, ["conv4"], 5, "auto", 1)
    assert plan_pool(data, ["conv4"], 5, 2, 0) == pools[5][:2]


def test_mixed_pools_draw_architecture_and_data_set_and_deal_each_deck() -> None:
    """SH and MH: every teacher's draws have streams of their own."""
    data = [_colours("a", 20), _colours("b", 9)]
    names = ["conv4", "resnet10", "resnet18"]
    lessons = plan_pool(data, names, 5, 40, 0)
    assert {lesson.architecture for lesson in lessons} == set(names)
    for part, per_round in zip(data, (4, 2), strict=True):
        hands = [lesson.classes for lesson in lessons if lesson.data is part]
        assert len(hands) > per_round
        for start in range(0, len(hands) - per_round, per_round):
            deal = [c for hand in hands[start : start + per_round] for c in hand]
            assert sorted(deal) == list(range(len(part.class_ids)))
    assert len(plan_pool(data, names, 5, "auto", 0)) == 4  # the larger data set, once
    assert plan_pool(data, names, 5, 7, 0) == lessons[:7]


def _colours(name: str, n_classes: int) -> ClassImages:
    norm = Normalisation((0.5,) * 3, (0.25,) * 3)
    names = [f"{name}{c}" for c in range(n_classes)]
    return ClassImages(name, list(range(n_classes)), names, [], 16, norm)


def _length(epochs: int) -> PretrainBudget:
    return PretrainBudget(epochs=epochs, resnet_epochs=epochs, batch_size=128)


def test_train_fraction_leaves_both_parts() -> None:
    assert split_class(600, 0.8) == 480
    with pytest.raises(BadInput, match="0 of 1 images would train"):
        split_class(1, 0.8)


def test_teachers_learn_and_the_manifest_says_what(
    data: ClassImages, settings: Pretrain, tmp_path: Path
) -> None:
    lessons = plan_pool([data], ["conv4"], 3, "auto", 0)
    infos = train_pool(tmp_path, lessons, settings, _length(4), n_way=3, seed=0, device="cpu")
    assert [len(info.class_ids) for info in infos] == [3, 3, 1]
    pool = load_pool(tmp_path / "pool")
    taught = [c for info in infos for c in info.class_ids]
    assert sorted(taught) == data.class_ids
    for teacher in pool[:2]:
        info = teacher.info
        assert info.val_accuracy > 80
        for output, (class_id, name) in enumerate(
            zip(info.class_ids, info.class_names, strict=True)
        ):
            position = data.class_ids.index(class_id)
            assert data.class_names[position] == name
            x = info.normalisation.apply(data.images[position])
            right = (teacher.net(x).logits.argmax(1) == output).float().mean()
            assert right > 0.7


def test_interrupted_and_continued_gives_the_same_bytes(
    data: ClassImages, settings: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path) -> None:
        lessons = plan_pool([data], ["conv4"], 3, "auto", 3)
        train_pool(folder, lessons, settings, _length(2), n_way=3, seed=3, device="cpu")

    run(tmp_path / "whole")
    save = pool_module.save_teacher

    def stop_at_the_second(path: Path, *rest: object) -> None:
        if "01" in path.name:
            raise KeyboardInterrupt
        save(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pool_module, "save_teacher", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    assert len(list((tmp_path / "cut" / "pool").iterdir())) == 1
    monkeypatch.setattr(pool_module, "save_teacher", save)
    run(tmp_path / "cut")
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole" / "pool").iterdir()}
    assert whole == {p.name: p.read_bytes() for p in (tmp_path / "cut" / "pool").iterdir()}
    assert len(whole) == 4


@pytest.mark.parametrize("architecture", ["conv4", "resnet10"])  # Adam; SGD with momentum
def test_a_teacher_goes_on_from_its_checkpoint(
    architecture: str,
    data: ClassImages,
    settings: Pretrain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_module, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    epochs, saved = [], []
    train_epoch = teacher_module._train_epoch

    def run(folder: Path, stop_after: int = 99) -> bytes:
        def counted(*args: Any) -> float:
            if len(epochs) == stop_after:
                raise KeyboardInterrupt
            epochs.append(1)
            return train_epoch(*args)

        monkeypatch.setattr(teacher_module, "_train_epoch", counted)
        epochs.clear(), saved.clear()
        given = ([Lesson(architecture, data, [0, 1, 2])], settings, _length(6), 3, 3, "cpu")
        train_pool(folder, *given, saved=lambda: saved.append(1))
        return (folder / "pool" / "teacher-00.safetensors").read_bytes()

    whole = run(tmp_path / "whole")
    assert len(epochs) == 6
    for stop in (4, 1):  # after four epochs, which two milestones precede, then one more
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", stop)
        assert len(saved) == stop
    assert run(tmp_path / "cut") == whole
    assert len(epochs) == 1
    assert len(saved) == 2  # the last checkpoint and the teacher
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["pool"]


@pytest.mark.parametrize("architecture", ["resnet10", "conv4_64"])
def test_other_architectures_train(
    architecture: str, data: ClassImages, settings: Pretrain, tmp_path: Path
) -> None:
    lessons = [Lesson(architecture, data, [0, 1, 2])]
    (info,) = train_pool(tmp_path, lessons, settings, _length(2), n_way=3, seed=0, device="cpu")
    assert info.architecture == architecture
    assert load_pool(tmp_path / "pool")[0].info == info
