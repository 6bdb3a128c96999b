"""Networks trained elsewhere as teachers: a state dict in, a row of a pool's manifest out."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.files import load_tensors, open_tensors
from stages.common.networks import build_network, own_module
from stages.common.pool import (
    MANIFEST,
    TeacherInfo,
    load_into,
    load_manifest,
    save_manifest,
    save_teacher,
)
from stages.interface.errors import BadInput
from stages.interface.provenance import origin, provenance_of, save_provenance

WRAPPERS = ("state_dict", "model", "model_state_dict", "net")  # keys that checkpoints hide it under
PREFIX = "module."  # of a network that was trained by DataParallel
# Heads that GoogLeNet and Inception have for their training only; their networks are made without.
AUXILIARY = {
    "torchvision/googlenet": ("aux1.", "aux2."),
    "torchvision/inception_v3": ("AuxLogits.",),
}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt or .pth read with weights_only=True.

    Raises BadInput for a file that is missing, not whole, or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        with open_tensors(path) as file:
            return _plain({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path}: holds code, not tensors alone, or is no checkpoint; it is not run"
            f" ({_first_line(error)}). Allowed: torch.save(net.state_dict(), ...)"
        ) from None
    except Exception as error:  # whatever torch makes of a broken file
        raise BadInput(f"{path}: not a whole checkpoint: {_first_line(error)}") from None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{path}: holds a {type(content).__name__}: allowed: a state dict")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"{path}: {name!r} is a {type(value).__name__}: allowed: a state dict of tensors"
            )
    return _plain(dict(content))


def _first_line(error: Exception) -> str:
    """Of its message; its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    return state


def add_teacher(
    folder: str | Path,
    net: nn.Module | Mapping[str, Tensor],
    architecture: str,
    class_names: Sequence[str],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    dataset: str = "own",
    n_outputs: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    source: str = "net",
) -> TeacherInfo:
    """Add a classifier to the pool in `folder`, which is made if it is not there.

    Beside the folder its provenance is written, as every stage does.

    `net`: the network or its state dict; output j stands for class_names[j]. `architecture`: a
    name of stages/common/networks.py, from which the network is made again whenever the pool is
    read; "python/MODULE:FUNCTION" is a function of your own, called with `arguments`: here at
    once, later only where PURER_TRUST names its module. Pixels p in [0, 1] were shown to it as
    (p - mean) / std, images as squares of `image_size`. `source`: what an error calls it.

    Raises BadInput for whatever does not fit together; the pool is then as it was.
    """
    start = time.monotonic()
    folder = Path(folder)
    known = load_manifest(folder) if (folder / MANIFEST).exists() else []
    if folder.exists() and not known and any(folder.iterdir()):
        raise BadInput(f"{folder}: a folder with other files: allowed: a pool, or a new folder")
    if len(set(class_names)) != len(class_names) or len(class_names) < 2:
        raise BadInput(f"{source}: classes {', '.join(class_names)}: allowed: two or more, unlike")
    outputs = n_outputs or len(class_names)
    if outputs < len(class_names):
        raise BadInput(f"{source}: {len(class_names)} classes for {outputs} outputs")
    if image_size < 1 or not all(s > 0 for s in std) or not len(mean) == len(std) == 3:
        raise BadInput(
            f"{source}: image_size = {image_size}, mean = {tuple(mean)}, std = {tuple(std)}:"
            " allowed: a positive size, three means and three positive deviations"
        )
    # Cloned: tied weights share memory, which safetensors refuses.
    state = net.state_dict() if isinstance(net, nn.Module) else net
    extra = AUXILIARY.get(architecture, ())
    state = {n: t.detach().cpu().clone() for n, t in state.items() if not n.startswith(extra)}
    try:
        made = build_network(architecture, outputs, image_size, arguments)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    load_into(own_module(made), state, Path(source))
    _try_out(made, image_size, outputs, source)
    for info in known:
        own = (info.architecture, info.dataset, info.class_names)
        if own == (architecture, dataset, tuple(class_names)) and _holds(folder / info.file, state):
            raise BadInput(f"{source}: the same network is there already: {folder / info.file}")
    taken = {info.file for info in known}
    index = next(i for i in range(len(known) + 1) if f"teacher-{i:02d}.safetensors" not in taken)
    first_id = max((i for info in known for i in info.class_ids), default=-1) + 1
    info = TeacherInfo(
        file=f"teacher-{index:02d}.safetensors",
        architecture=architecture,
        n_outputs=outputs,
        dataset=dataset,
        class_ids=tuple(range(first_id, first_id + len(class_names))),
        class_names=tuple(class_names),
        image_size=image_size,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        val_accuracy=None,
        epoch=None,
        n_parameters=sum(p.numel() for p in made.parameters()),
        arguments=dict(arguments or {}),
    )
    beside = provenance_of(folder.absolute())  # "." has no name
    seconds = time.monotonic() - start
    save_provenance(beside, seconds, "cpu", origin(), stage="own_pool", source=str(folder))
    save_teacher(folder / info.file, info, state)
    save_manifest(folder, [*known, info])  # last: a pool is what its manifest says
    return info


def _holds(path: Path, state: Mapping[str, Tensor]) -> bool:
    """Whether a teacher's file has exactly these tensors; a broken one has not."""
    try:
        tensors, _ = load_tensors(path)
    except BadInput:
        return False
    return tensors.keys() == state.keys() and all(torch.equal(tensors[n], state[n]) for n in state)


def _try_out(net: nn.Module, image_size: int, outputs: int, source: str) -> None:
    """Raise BadInput unless the network takes such images and returns so many outputs."""
    try:
        with torch.inference_mode():
            logits = net.eval()(torch.zeros(2, 3, image_size, image_size)).logits
    except Exception as error:  # whatever somebody's network raises
        raise BadInput(
            f"{source}: does not take images of {image_size} x {image_size} pixels:"
            f" {_first_line(error)}"
        ) from None
    if not isinstance(logits, Tensor):
        raise BadInput(f"{source}: gives a {type(logits).__name__}: allowed: one tensor of outputs")
    if logits.shape != (2, outputs):
        raise BadInput(
            f"{source}: gives outputs of shape {tuple(logits.shape[1:])}: allowed: ({outputs},)"
        )
