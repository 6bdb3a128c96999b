from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.common.files import save_tensors
from stages.common.pool import MANIFEST, load_pool, save_manifest, save_teacher
from stages.interface.errors import BadInput
from tests.conftest import random_state, teacher_info


def test_a_pool_loads_frozen_and_in_eval_mode(tiny_pool: Path) -> None:
    pool = load_pool(tiny_pool)
    assert [len(teacher.info.class_ids) for teacher in pool] == [3, 3, 2]
    assert all(teacher.info.n_outputs == 3 for teacher in pool)
    assert not any(p.requires_grad for teacher in pool for p in teacher.net.parameters())
    assert not any(teacher.net.training for teacher in pool)
    state = random_state(pool[0].info)
    assert all(torch.equal(t, state[n]) for n, t in pool[0].net.state_dict().items())


def test_bad_pools_end_in_one_sentence(tiny_pool: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such pool folder"):
        load_pool(tmp_path / "nowhere")

    manifest = tiny_pool / MANIFEST
    good = manifest.read_text()
    manifest.write_text('{"teachers": []}')
    with pytest.raises(BadInput, match="lists no teachers"):
        load_pool(tiny_pool)

    content = json.loads(good)
    content["teachers"][1]["class_names"][0] = "zebra"
    manifest.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"teacher-01.*its class_names\[0\] is .* says 'zebra'"):
        load_pool(tiny_pool)

    content = json.loads(good)
    del content["teachers"][0]["mean"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="not a teacher of a pool"):
        load_pool(tiny_pool)

    manifest.write_text(good)
    file = tiny_pool / "teacher-02.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    with pytest.raises(BadInput, match=r"teacher-02.safetensors: not a whole safetensors file"):
        load_pool(tiny_pool)
    file.unlink()
    with pytest.raises(BadInput, match=r"teacher-02.safetensors: no such file"):
        load_pool(tiny_pool)


@pytest.mark.parametrize(
    "content",
    [
        *('"abc"', "[]", "7", "null", '{"a": 1}'),
        *('{"teachers": []}', '{"teachers": {"a": 1}}', '{"teachers": "abc"}', '{"teachers": 1}'),
    ],
)
def test_a_manifest_that_is_none_is_one_sentence(content: str, tiny_pool: Path) -> None:
    (tiny_pool / MANIFEST).write_text(content)
    with pytest.raises(BadInput, match="lists no teachers: allowed: "):
        load_pool(tiny_pool)


@pytest.mark.parametrize("row", [1, "abc", None, [1], {}, {"file": "teacher-00.safetensors"}])
def test_a_teacher_that_is_none_is_one_sentence(row: object, tiny_pool: Path) -> None:
    (tiny_pool / MANIFEST).write_text(json.dumps({"teachers": [row]}))
    with pytest.raises(BadInput, match=r"a teacher is .*: allowed: an object|not a teacher of a"):
        load_pool(tiny_pool)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": 1},
        {"n_outputs": "3"},
        {"n_outputs": 0},
        {"image_size": 16.5},
        {"class_ids": 3},
        {"class_ids": ["a", "b", "c"]},
        {"class_names": "abc"},
        {"mean": [0.5]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"mean": [0.5, 0.5, 10**400]},
        {"std": "half"},
        {"std": [0.5, 0.5, 0]},
        {"val_accuracy": "high"},
        {"epoch": 1.5},
        {"arguments": [1]},
        {"colour": "blue"},
    ],
)
def test_values_of_another_kind_are_refused(changes: dict[str, object], tiny_pool: Path) -> None:
    content = json.loads((tiny_pool / MANIFEST).read_text())
    content["teachers"][0] |= changes
    (tiny_pool / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=f"not a teacher of a pool: {next(iter(changes))}"):
        load_pool(tiny_pool)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"class_names": ["a"]}, "3 class_ids for 1 class_names: allowed: equally many"),
        ({"class_names": list("abcd")}, "4 classes for 3 outputs: allowed: 1 to as many"),
        ({"file": "teacher-01.safetensors"}, "lists teacher-01.safetensors twice: allowed: once"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    row: dict[str, object], message: str, tiny_pool: Path
) -> None:
    content = json.loads((tiny_pool / MANIFEST).read_text())
    content["teachers"][0] |= row
    (tiny_pool / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        load_pool(tiny_pool)


def test_a_foreign_file_in_the_place_of_a_teacher_is_refused_and_beside_it_ignored(
    tiny_pool: Path,
) -> None:
    foreign = {"a": torch.ones(1)}
    save_file(foreign, tiny_pool / "other.safetensors")
    assert len(load_pool(tiny_pool)) == 3
    save_file(foreign, tiny_pool / "teacher-01.safetensors")
    with pytest.raises(BadInput, match=r"teacher-01.safetensors: not written by purer"):
        load_pool(tiny_pool)
    save_tensors(tiny_pool / "teacher-01.safetensors", foreign, {"commit": "abc"})
    with pytest.raises(BadInput, match=r"teacher-01.safetensors: not a teacher of a pool"):
        load_pool(tiny_pool)


def test_arguments_that_the_maker_refuses_are_one_sentence(tmp_path: Path) -> None:
    info = teacher_info(0, architecture="torchvision/resnet18", arguments={"depth": 7})
    save_teacher(tmp_path / info.file, info, random_state(teacher_info(0)))
    save_manifest(tmp_path, [info])
    with pytest.raises(BadInput, match=r"teacher-00.*: no torchvision/resnet18 of 3 .*depth"):
        load_pool(tmp_path)


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    info = teacher_info(0, architecture="resnet10")
    save_teacher(tmp_path / info.file, info, random_state(teacher_info(0)))
    save_manifest(tmp_path, [info])
    with pytest.raises(BadInput, match="its architecture"):
        load_pool(tmp_path)
    unknown = teacher_info(0, architecture="conv5")
    save_teacher(tmp_path / unknown.file, unknown, random_state(teacher_info(0)))
    save_manifest(tmp_path, [unknown])
    with pytest.raises(BadInput, match=r"architecture = 'conv5': allowed: conv4.*did you mean"):
        load_pool(tmp_path)
