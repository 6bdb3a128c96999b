"""Shared by all tests: small pools and data sets, and where real images are if they are."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from stages.common.architectures import build
from stages.common.dataset import Normalisation
from stages.common.files import save_tensors
from stages.common.learner import LearnerInfo
from stages.common.pool import TeacherInfo, save_manifest, save_teacher
from stages.common.seeds import generator

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
HALF = Normalisation((0.5,) * 3, (0.25,) * 3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole experiments first: they take longest, and no process should end with them alone."""
    items.sort(key=lambda item: "pipeline" not in item.path.parts)


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 by default, for comparisons with exact truth."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data here: real images are tested where they are (CI has them)")
    return SHARED


def teacher_info(index: int, n_classes: int = 3, **changes: object) -> TeacherInfo:
    ids = tuple(range(3 * index, 3 * index + n_classes))
    info = TeacherInfo(
        file=f"teacher-{index:02d}.safetensors",
        architecture="conv4",
        n_outputs=3,
        dataset="tiny",
        class_ids=ids,
        class_names=tuple(f"class{i}" for i in ids),
        image_size=16,
        **asdict(HALF),
        val_accuracy=50.0,
        epoch=1,
        n_parameters=0,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def learner_info(**changes: object) -> LearnerInfo:
    """Of a 3-way Conv4 for 16 pixels that EI made."""
    info = LearnerInfo("conv4", 3, 16, (0.5,) * 3, (0.25,) * 3, "ei", "maml", 10)
    return replace(info, **changes)  # type: ignore[arg-type]


def random_state(info: TeacherInfo, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights with BatchNorm statistics of some batch, so that every loss term is alive."""
    g = generator(seed, "test teacher", info.file)
    net = build(info.architecture, info.n_outputs, info.image_size, generator=g)
    net.train()
    with torch.no_grad():
        net(torch.randn(32, 3, info.image_size, info.image_size, generator=g))
    return net.state_dict()


@pytest.fixture
def tiny_pool(tmp_path: Path) -> Path:
    """Three random Conv4 teachers on 16x16 images; the last knows two classes of three outputs."""
    folder = tmp_path / "pool"
    infos = [teacher_info(0), teacher_info(1), teacher_info(2, n_classes=2)]
    for info in infos:
        save_teacher(folder / info.file, info, random_state(info))
    save_manifest(folder, infos)
    return folder


def save_classes(
    path: Path,
    dataset: str,
    splits: dict[str, list[str]],
    images: Sequence[torch.Tensor],
    normalisation: Normalisation = HALF,
) -> Path:
    """A canonical file: `images[i]`, uint8 (n_i, s, s, 3), are those of the i-th sorted class."""
    metadata = {
        "dataset": dataset,
        "class_names": sorted(name for names in splits.values() for name in names),
        "class_starts": [0, *itertools.accumulate(map(len, images))],
        "splits": splits,
        "image_size": images[0].shape[1],
        **asdict(normalisation),
    }
    save_tensors(path, {"images": torch.cat([*images])}, metadata)
    return path


def nine_classes(path: Path) -> Path:
    """A data set that says it is glyphs: c0 to c8 of 20 black images, three classes a split."""
    names = [f"c{i}" for i in range(9)]
    splits = {"train": names[:3], "val": names[3:6], "test": names[6:]}
    return save_classes(path, "glyphs", splits, torch.zeros(9, 20, 16, 16, 3).byte().unbind())


@pytest.fixture
def at_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Work in a folder with this params.yaml but for changes by dotted key, on the CPU."""

    def begin(changes: Mapping[str, object]) -> None:
        yaml = YAML()
        document = yaml.load(ROOT / "params.yaml")
        for key, value in {"device": "cpu", **changes}.items():
            *parents, last = key.split(".")
            functools.reduce(operator.getitem, parents, document)[last] = value
        yaml.dump(document, tmp_path / "params.yaml")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("DVC_ROOT", raising=False)

    return begin
