"""Networks trained elsewhere as teachers: a state dict in, a row of a pool's manifest out."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.architectures import channels_last
from stages.common.dataset import View
from stages.common.files import kinds_of, load_tensors
from stages.common.networks import build_network, own_module
from stages.common.pool import (
    MANIFEST,
    TeacherInfo,
    load_into,
    load_manifest,
    save_manifest,
    save_teacher,
)
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.interface.provenance import origin, provenance_of, save_provenance
from stages.pool.state_dicts import first_line, named_as_in

PROBABILITIES = "gives probabilities: allowed: logits, what comes before a softmax"
N_COMPARED = 4  # images that a network and what is made again are compared on
_UNCOMPARED = "; allowed too: its state dict, which is not compared"
UNLIKE = 0.05  # of the largest output; a bfloat16 network differs by less from its float32 twin


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

    `net`: the network or its state dict; output j, a logit, stands for class_names[j].
    `architecture`: a name of stages/common/networks.py, from which the network is made again
    whenever the pool is read; "python/MODULE:FUNCTION" is a function of your own, called with
    `arguments`: here at once, later only where PURER_TRUST names its module. A network is compared
    with what is made again: strides or activations leave no trace in a state dict. Pixels p in
    [0, 1] were shown to it as (p - mean) / std, images as squares of `image_size`. `source`: what
    an error calls it.

    Raises BadInput for whatever does not fit together; the pool is then as it was.
    """
    start = time.monotonic()
    folder = Path(folder)
    outputs = len(class_names) if n_outputs is None else n_outputs
    _check_description(dataset, class_names, outputs, image_size, mean, std, source)
    kept_arguments = _as_json(arguments or {}, source)
    try:
        made = build_network(architecture, outputs, image_size, kept_arguments)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    state = net.state_dict() if isinstance(net, nn.Module) else net
    state = named_as_in(own_module(made), state, architecture, source)
    load_into(own_module(made), state, Path(source))
    _try_out(made, image_size, outputs, source)
    info = TeacherInfo(
        file="",  # this and class_ids: known when it joins the pool
        architecture=architecture,
        n_outputs=outputs,
        dataset=dataset,
        class_ids=(),
        class_names=tuple(class_names),
        image_size=int(image_size),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        val_accuracy=None,
        epoch=None,
        n_parameters=sum(p.numel() for p in made.parameters()),
        arguments=kept_arguments,
    )
    if isinstance(net, nn.Module):
        _check_same(net, made, info.view, source)
    with _alone(folder):
        return _joined(folder, info, state, source, start)


def _check_description(
    dataset: str,
    class_names: Sequence[str],
    outputs: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    source: str,
) -> None:
    """Raise BadInput unless these can be what a manifest says of a teacher."""
    for name in (dataset, *class_names):
        if not isinstance(name, str):
            raise BadInput(
                f"{source}: the name {name!r} is a {type(name).__name__}: allowed: text, as the"
                " name of a data set and of each class"
            )
    twice = [name for name, n in Counter(class_names).items() if n > 1]
    if twice:
        raise BadInput(f"{source}: the class {twice[0]!r} is named twice: allowed: once")
    if len(class_names) < 2:
        raise BadInput(f"{source}: classes {', '.join(class_names)}: allowed: two or more")
    if outputs < len(class_names):
        raise BadInput(f"{source}: {len(class_names)} classes for {outputs} outputs")
    numbers = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std)))
    if image_size < 1 or not numbers or not all(s > 0 for s in std):
        raise BadInput(
            f"{source}: image_size = {image_size}, mean = {tuple(mean)}, std = {tuple(std)}:"
            " allowed: a positive size, three means and three positive deviations"
        )


def _as_json(arguments: Mapping[str, Any], source: str) -> dict[str, Any]:
    """As the manifest will have them, so that what is tried out is what is made again."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(arguments), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"{source}: arguments = {arguments}: {error}: allowed: what JSON can say"
        ) from None
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time joins the pools of a parent folder, the others wait: all read, then write.

    The system gives the lock back however a process ends.
    """
    parent = folder.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    opened = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _joined(
    folder: Path, info: TeacherInfo, state: Mapping[str, Tensor], source: str, start: float
) -> TeacherInfo:
    """`info` with its file and class numbers in the pool, where it is written."""
    known = load_manifest(folder) if (folder / MANIFEST).exists() else []
    if folder.exists() and not known and "pool" not in kinds_of(folder):
        raise BadInput(f"{folder}: a folder with other files: allowed: a pool, or a new folder")
    own = (info.architecture, info.dataset, info.class_names)
    for other in known:
        said = (other.architecture, other.dataset, other.class_names)
        if said == own and _holds(folder / other.file, state):
            raise BadInput(f"{source}: the same network is there already: {folder / other.file}")
    files = (f"teacher-{i:02d}.safetensors" for i in itertools.count())
    taken = {other.file for other in known}
    first_id = max((i for other in known for i in other.class_ids), default=-1) + 1
    info = replace(
        info,
        file=next(name for name in files if name not in taken and not (folder / name).exists()),
        class_ids=tuple(range(first_id, first_id + len(info.class_names))),
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
            f" {first_line(error)}"
        ) from None
    if not isinstance(logits, Tensor):
        raise BadInput(f"{source}: gives a {type(logits).__name__}: allowed: one tensor of outputs")
    if logits.shape != (2, outputs):
        raise BadInput(
            f"{source}: gives outputs of shape {tuple(logits.shape[1:])}: allowed: ({outputs},)"
        )
    if are_probabilities(logits):
        raise BadInput(f"{source}: {PROBABILITIES}")


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (n, k) are a softmax's. (Its logarithm's are logits like any others.)"""
    whole = outputs.float().sum(1)
    return bool((outputs >= 0).all() and ((whole - 1).abs() < 1e-3).all())


def _check_same(net: nn.Module, made: nn.Module, view: View, source: str) -> None:
    """Raise BadInput unless both answer alike; `net` is left as it was."""
    images = procedural_images(N_COMPARED, view.image_size, generator(0, "pool import"))
    x = view.of(images).contiguous()
    like = next((p for p in net.parameters() if p.is_floating_point()), x)
    training = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad():
            answer = net.eval()(x.to(like.device, like.dtype))
            expected = made(channels_last(x)).logits
    except Exception as error:  # whatever somebody's network raises
        raise BadInput(f"{source}: {first_line(error)}{_UNCOMPARED}") from None
    finally:
        net.train(training[net])  # tells one that keeps something while it does not train
        for module, was in training.items():
            module.training = was
    given = getattr(answer, "logits", answer)
    if not isinstance(given, Tensor) or given.shape != expected.shape:
        raise BadInput(
            f"{source}: gives a {type(given).__name__} unlike its architecture's{_UNCOMPARED}"
        )
    difference = float((given.float().cpu() - expected).abs().max())
    largest = float(expected.abs().max())
    if not difference <= UNLIKE * largest:
        raise BadInput(
            f"{source}: what its architecture and arguments make again has the same parameters but"
            f" answers otherwise, by {difference:.2g} where outputs reach {largest:.2g}; allowed:"
            " arguments that make the same network (strides, activations and the like)"
        )
