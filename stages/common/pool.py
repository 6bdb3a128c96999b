"""A teacher pool: a folder with one safetensors file a teacher and a manifest of them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stages.common.dataset import Normalisation, View
from stages.common.files import load_json, load_tensors, save_json, save_tensors
from stages.common.networks import build_network, own_module
from stages.interface.errors import BadInput

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TeacherInfo:
    """One row of the manifest."""

    file: str
    architecture: str  # a name that stages/common/networks.py knows
    n_outputs: int  # may exceed the number of classes: the last teacher of a pool (METHODS 1.5)
    dataset: str
    class_ids: tuple[int, ...]  # output j stands for class_ids[j]
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    val_accuracy: float | None  # percent, on the held-out part of its own classes; None: unknown
    epoch: int | None  # the chosen one; None: unknown
    n_parameters: int
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of a network from elsewhere

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.mean, self.std)

    @property
    def view(self) -> View:
        return View(self.image_size, self.normalisation)


@dataclass(frozen=True)
class Teacher:
    info: TeacherInfo
    net: nn.Module  # frozen, in eval mode


def save_teacher(path: Path, info: TeacherInfo, state: Mapping[str, Tensor]) -> None:
    save_tensors(path, dict(state), asdict(info))


def load_info(path: Path) -> TeacherInfo:
    """The manifest row that a teacher's file carries."""
    return _info(load_tensors(path)[1], path)


def save_manifest(folder: Path, teachers: list[TeacherInfo]) -> None:
    save_json(folder / MANIFEST, {"teachers": [asdict(info) for info in teachers]})


def load_manifest(folder: Path) -> list[TeacherInfo]:
    """Raises BadInput if the folder is no pool, naming what is wrong."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such pool folder")
    content = load_json(folder / MANIFEST)
    if not isinstance(content, dict) or not content.get("teachers"):
        raise BadInput(f"{folder / MANIFEST}: lists no teachers")
    return [_info(row, folder / MANIFEST) for row in content["teachers"]]


def load_pool(folder: Path, device: str = "cpu") -> list[Teacher]:
    """All teachers, frozen and in eval mode, each checked against the manifest.

    Raises BadInput for a missing, truncated or foreign file, for a file that disagrees with the
    manifest, and for an unknown architecture.
    """
    return [load_teacher(folder, info, device) for info in load_manifest(folder)]


def load_teacher(folder: Path, info: TeacherInfo, device: str = "cpu") -> Teacher:
    """One teacher of the manifest; BadInput as `load_pool`."""
    path = folder / info.file
    tensors, metadata = load_tensors(path)
    own = _info(metadata, path)
    for name, value in asdict(info).items():
        if getattr(own, name) != value:
            raise BadInput(
                f"{path}: its {name} is {getattr(own, name)!r}, the manifest says {value!r}"
            )
    try:
        net = build_network(info.architecture, info.n_outputs, info.image_size, info.arguments)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    load_into(own_module(net), tensors, path)
    return Teacher(info, net.to(device).eval().requires_grad_(False))


def load_into(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """`load_state_dict` whose refusal is one sentence (BadInput) instead of a page."""
    expected = net.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise BadInput(f"{path}: no tensor {name!r}, which its architecture has")
        if name not in expected:
            raise BadInput(f"{path}: tensor {name!r} is not of its architecture")
        if tensors[name].shape != expected[name].shape:
            raise BadInput(
                f"{path}: {name} has shape {tuple(tensors[name].shape)},"
                f" its architecture {tuple(expected[name].shape)}"
            )
    net.load_state_dict(dict(tensors))


def _info(row: dict[str, Any], path: Path) -> TeacherInfo:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    try:
        return TeacherInfo(**values)
    except TypeError:
        raise BadInput(
            f"{path}: not a teacher of a pool (its metadata has {sorted(row)})"
        ) from None
