"""A teacher pool: a folder with one safetensors file a teacher and a manifest of them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from torch import Tensor, nn

from stages.common.dataset import Normalisation, View
from stages.common.files import KINDS, load_json, load_tensors, save_json, save_tensors
from stages.common.networks import build_network, check_trusted, own_module
from stages.common.records import EXACT, Deviations, Triple, record
from stages.interface.errors import BadInput

MANIFEST, FILES = KINDS["pool"]


@dataclass(frozen=True)
class TeacherInfo:
    """One row of the manifest."""

    __pydantic_config__ = EXACT

    file: str
    architecture: str  # a name that stages/common/networks.py knows
    n_outputs: PositiveInt  # may exceed the classes: the last teacher of a pool (METHODS 1.5)
    dataset: str
    class_ids: tuple[int, ...]  # output j stands for class_ids[j]
    class_names: tuple[str, ...]
    image_size: PositiveInt
    mean: Triple
    std: Deviations
    val_accuracy: float | None  # percent, on the held-out part of its own classes; None: unknown
    epoch: int | None  # the chosen one; None: unknown
    n_parameters: int
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of a network from elsewhere

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.mean, self.std)

    @property
    def inverted_as(self) -> Normalisation:
        """In which its images are inverted (`Normalisation.for_inversion`)."""
        return self.normalisation.for_inversion

    @property
    def view(self) -> View:
        return View(self.image_size, self.normalisation)

    @property
    def classes(self) -> list[tuple[str, str]]:
        """Its classes in the order of its outputs, as all teachers know them: (data set, name)."""
        return [(self.dataset, name) for name in self.class_names]


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
    rows = content.get("teachers") if isinstance(content, dict) else None
    if not rows or not isinstance(rows, list):
        raise BadInput(f'{folder / MANIFEST}: lists no teachers: allowed: {{"teachers": [...]}}')
    infos = [_info(row, folder / MANIFEST) for row in rows]
    twice = [file for file, n in Counter(info.file for info in infos).items() if n > 1]
    if twice:
        raise BadInput(f"{folder / MANIFEST}: lists {twice[0]} twice: allowed: once")
    return infos


def load_pool(folder: Path, device: str = "cpu") -> list[Teacher]:
    """All teachers, frozen and in eval mode, each checked against the manifest.

    Only files that the manifest names are read; others in the folder do not matter.

    Raises BadInput for a missing, truncated or foreign file, for a file that disagrees with the
    manifest, for an architecture that is unknown or cannot be made, and for one whose code is not
    trusted (stages/common/networks.py).
    """
    return [load_teacher(folder, info, device) for info in load_manifest(folder)]


def load_teacher(folder: Path, info: TeacherInfo, device: str = "cpu") -> Teacher:
    """One teacher of the manifest; BadInput as `load_pool`."""
    path = folder / info.file
    tensors, metadata = load_tensors(path)
    own = _info(metadata, path)
    for name, value in asdict(info).items():
        if getattr(own, name) != value:
            name, found, wanted = _first_difference(name, getattr(own, name), value)
            raise BadInput(f"{path}: its {name} is {found!r}, the manifest says {wanted!r}")
    try:
        check_trusted(info.architecture)
        net = build_network(info.architecture, info.n_outputs, info.image_size, info.arguments)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    load_into(own_module(net), tensors, path)
    return Teacher(info, net.to(device).eval().requires_grad_(False))


def _first_difference(name: str, own: Any, other: Any) -> tuple[str, Any, Any]:
    """The entry in which lists of equal length differ: of a thousand classes not all are told."""
    if isinstance(own, tuple) and isinstance(other, tuple) and len(own) == len(other):
        for i, (a, b) in enumerate(zip(own, other, strict=True)):
            if a != b:
                return f"{name}[{i}]", a, b
    return name, own, other


def load_into(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """`load_state_dict` that refuses as `check_fits` does, and numbers that are not finite."""
    check_fits(net, tensors, path)
    check_finite(tensors, path)
    net.load_state_dict(dict(tensors))


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise BadInput if a tensor of `path` holds a number that is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BadInput(f"{path}: {name} holds numbers that are not finite")


def check_fits(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise BadInput, in one sentence, unless `tensors` of `path` are a state dict of `net`."""
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


def _info(row: Any, path: Path) -> TeacherInfo:
    info = record(TeacherInfo, row, path, "a teacher of a pool")
    if not fnmatch(info.file, FILES) or Path(info.file).name != info.file:
        raise BadInput(f"{path}: file = {info.file!r}: allowed: {FILES}, in the pool's folder")
    if not 0 < len(info.class_names) <= info.n_outputs:
        raise BadInput(
            f"{path}: {len(info.class_names)} classes for {info.n_outputs} outputs: allowed: 1 to"
            " as many as outputs"
        )
    if len(info.class_ids) != len(info.class_names):
        raise BadInput(
            f"{path}: {len(info.class_ids)} class_ids for {len(info.class_names)} class_names:"
            " allowed: equally many"
        )
    return info
