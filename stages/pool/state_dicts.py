"""State dicts as others save them: read without running code, named as a network names them."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.common.files import open_tensors
from stages.common.networks import namesake
from stages.interface.errors import BadInput, check_name, first_of

_SCALAR = np.float64(0).__reduce__()[0]
# What training scripts save beside tensors and what runs nothing: options, single numbers of NumPy.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")},
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
# Heads that GoogLeNet and Inception have for their training only; their networks are made without.
AUXILIARY = {
    "torchvision/googlenet": ("aux1.", "aux2."),
    "torchvision/inception_v3": ("AuxLogits.",),
}
COUNTER = "num_batches_tracked"  # of a BatchNorm: files from before PyTorch 0.4.1 have none
# What torchvision's own DenseNet files call denselayer1.norm1.weight: denselayer1.norm.1.weight
DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
REFUSED = re.compile(r"GLOBAL (\S+)")  # what weights_only=True would have to run


def read_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt or .pth read with weights_only=True.

    A checkpoint may hold its state dict under a key, however deep, beside what else training saved.
    `key` says under which, "model" or "ema.model", if there are several.

    Raises BadInput for a file that is missing, not whole, or holds code, for one without a state
    dict, and for one with several if `key` is none of theirs.
    """
    if path.suffix == ".safetensors":
        if key is not None:
            raise BadInput(f"key = {key!r}: {path} is a .safetensors file, which has no keys")
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    content = _unpickled(path)
    found = _state_dicts(content)
    if key is not None:
        if found.keys() <= {""}:
            raise BadInput(f"key = {key!r}: {path} has no keys with a state dict")
        check_name(f"{path}: key", key, found)
        return _plain(found[key], path)
    if not found:
        raise BadInput(f"{path}: {_instead(content)}: allowed: a state dict of tensors")
    if len(found) > 1:
        raise BadInput(
            f"{path}: holds several state dicts: {first_of(found, 5)}; say which with --key, as"
            f" --key {next(iter(found))}"
        )
    return _plain(next(iter(found.values())), path)


def _plain(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state`, if its tensors are numbers side by side: safetensors and networks know no others."""
    for name, tensor in state.items():
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else tensor.layout
        if kind is not torch.strided:
            raise BadInput(f"{path}: {name} is a tensor of kind {kind}: allowed: dense ones")
    return state


def _state_dicts(content: Any, key: str = "") -> dict[str, dict[str, Tensor]]:
    """What is a state dict in a checkpoint, by dotted key; "": the whole of it."""
    if not isinstance(content, Mapping) or not content:
        return {}
    if all(isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items()):
        # Random states and scores of a training are no network.
        weights = not key or any(t.is_floating_point() and t.dim() > 1 for t in content.values())
        return {key: dict(content)} if weights else {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in content.items():
        if isinstance(name, str):
            found |= _state_dicts(value, f"{key}.{name}" if key else name)
    return found


def _instead(content: Any) -> str:
    """What a checkpoint without a state dict holds."""
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}"
    for name, value in content.items():
        if not isinstance(name, str):
            return f"the name {name!r} is a {type(name).__name__}"
        if not isinstance(value, Tensor):
            return f"{name!r} is a {type(value).__name__}"
    return "holds nothing"


def _unpickled(path: Path) -> Any:
    allowed = "Allowed: torch.save(net.state_dict(), ...)"
    try:
        with torch.serialization.safe_globals(HARMLESS):
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
    model. of Lightning) and what else is there then (a loss's own weights, a counter of
    AveragedModel), without heads that only training uses, with counters at zero where a file is
    older than they are.

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
            f" {first_of(expected, 3)}{namesake(architecture)}"
        )
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(COUNTER)}
    return counters | found


def _without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Any:
    """`state` without what hides the network's names, if no name is known as it is.

    That is the one prefix under which all of them are, counters apart; or the first parts that all
    names share.
    """
    if not expected.keys().isdisjoint(state):
        return state
    needed = [name for name in expected if not name.endswith(COUNTER)]
    prefixes = {n.removesuffix(needed[0]) for n in state if n.endswith(f".{needed[0]}")}
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in needed)]
    if len(whole) == 1:
        return {n.removeprefix(whole[0]): state[n] for n in state if n.startswith(whole[0])}
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
