"""State dicts as others save them: read without running code, named as a network names them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.files import open_tensors
from stages.interface.errors import BadInput, first_of

WRAPPERS = ("state_dict", "model", "model_state_dict", "net")  # keys that checkpoints hide it under
# Heads that GoogLeNet and Inception have for their training only; their networks are made without.
AUXILIARY = {
    "torchvision/googlenet": ("aux1.", "aux2."),
    "torchvision/inception_v3": ("AuxLogits.",),
}
COUNTER = "num_batches_tracked"  # of a BatchNorm: files from before PyTorch 0.4.1 have none
# What torchvision's own DenseNet files call denselayer1.norm1.weight: denselayer1.norm.1.weight
DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
REFUSED = re.compile(r"GLOBAL (\S+)")  # what weights_only=True would have to run


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt or .pth read with weights_only=True.

    Raises BadInput for a file that is missing, not whole, or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    content = _unpickled(path)
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{path}: holds a {type(content).__name__}: allowed: a state dict")
    for name, value in content.items():
        if not isinstance(name, str):
            raise BadInput(
                f"{path}: the name {name!r} is a {type(name).__name__}: allowed: a state dict of"
                " tensors"
            )
        if not isinstance(value, Tensor):
            raise BadInput(
                f"{path}: {name!r} is a {type(value).__name__}: allowed: a state dict of tensors"
            )
    return dict(content)


def _unpickled(path: Path) -> Any:
    allowed = "Allowed: torch.save(net.state_dict(), ...)"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = REFUSED.search(str(error))
        raise BadInput(
            f"{path}: holds {found[1]} besides tensors, which is code; it is not run. {allowed}"
            if found
            else f"{path}: holds code, not tensors alone, or is no checkpoint; it is not run."
            f" {allowed}"
        ) from None
    except Exception as error:  # whatever torch makes of a broken file
        raise BadInput(f"{path}: not a whole checkpoint: {first_line(error)}") from None


def named_as_in(
    net: nn.Module, state: Mapping[str, Tensor], architecture: str, source: str
) -> dict[str, Tensor]:
    """`state`, cloned (tied weights share memory, which safetensors refuses), as `net` names it.

    Without what comes before all names (module. of DataParallel, _orig_mod. of torch.compile,
    model. of Lightning), without heads that only training uses, with counters at zero where a file
    is older than they are.

    Raises BadInput if no name is the network's. Whether the rest fits is not looked at here.
    """
    expected = net.state_dict()
    extra = AUXILIARY.get(architecture, ())
    found = {
        name if name in expected else DENSE.sub(r"\1\2", name): tensor.detach().cpu().clone()
        for name, tensor in _without_prefix(state, expected).items()
        if not name.startswith(extra)
    }
    if expected.keys().isdisjoint(found):
        raise BadInput(
            f"{source}: its tensors are called {first_of(found, 3)}: {architecture} has"
            f" {first_of(expected, 3)}"
        )
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(COUNTER)}
    return counters | found


def _without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Any:
    """`state` without the first parts that all its names share, if that makes one of them known."""
    stripped = dict(state)
    while expected.keys().isdisjoint(stripped):
        parts = [name.partition(".") for name in stripped]
        if len({first for first, _, _ in parts}) != 1 or not all(rest for _, _, rest in parts):
            return state
        stripped = dict(zip([rest for _, _, rest in parts], stripped.values(), strict=True))
    return stripped


def first_line(error: Exception) -> str:
    """Of its message; its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
