"""Inversion that may start from a procedural image instead of noise (METHODS 5).

    x <- Adam step on  CE(f(x), y) + w * R_feature(x) + a_tv * TV(x),   x clamped to valid pixels

A procedural image already has natural statistics, so about a hundred steps suffice to make it
look, to the teacher, like class y. Started from noise the same steps give textures.

Shapes: n images of side s; labels are the teacher's outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.kept import Keep, Tensors
from stages.common.params import NaturalInversion
from stages.common.pool import TeacherInfo
from stages.common.procedural import procedural_images
from stages.common.teachers import State, TeacherLoss

BATCH = 200  # images inverted together; R_feature compares their common moments
FULL = 84  # pixels a side up to which it is as many: the activations of larger ones must fit too


class Labelled(NamedTuple):
    """Images of one teacher and the outputs they were made for."""

    images: Tensor  # uint8 (n, s, s, 3)
    labels: Tensor  # (n,)


def invert(
    info: TeacherInfo,
    state: State,
    loss: TeacherLoss,
    labels: Tensor,
    start: str,
    params: NaturalInversion,
    n_steps: int,
    stream: torch.Generator,
    device: str,
    kept: Keep = lambda name, make: make(),
    done: Callable[[int], None] = lambda steps: None,
) -> Labelled:
    """An image for each of `labels` (n,); `done(steps so far)` after each step.

    `start`: "procedural" images or "noise". Large teachers take minutes a batch, so `kept` is
    asked for every batch: its images, and where the random stream stands after it.
    """
    parts: list[Tensor] = []

    def batch_of(y: Tensor) -> Tensors:
        x = channels_last(_start(len(y), info, start, stream).to(device)).requires_grad_()
        optimizer = torch.optim.Adam([x], params.lr)
        for t in range(n_steps):
            optimizer.param_groups[0]["lr"] = params.lr * (1 + math.cos(math.pi * t / n_steps)) / 2
            _step(x, y.to(device), info, state, loss, optimizer, params.max_roll, stream)
            done(len(parts) * n_steps + t + 1)
        return {"images": info.inverted_as.invert(x.detach()).cpu(), "stream": stream.get_state()}

    for i, y in enumerate(labels.split(_batch_size(info.image_size))):
        batch = kept(f"batch-{i:03d}", functools.partial(batch_of, y))
        stream.set_state(batch["stream"])
        parts.append(batch["images"])
    return Labelled(torch.cat(parts), labels)


def n_batches(n_images: int, image_size: int) -> int:
    """How many batches `invert` makes of so many images of that side."""
    return math.ceil(n_images / _batch_size(image_size))


def _batch_size(image_size: int) -> int:
    return max(1, min(BATCH, BATCH * FULL**2 // image_size**2))


def _start(n: int, info: TeacherInfo, start: str, stream: torch.Generator) -> Tensor:
    """Normalised pixels to start from (n, 3, s, s)."""
    if start == "noise":
        return torch.randn(n, 3, info.image_size, info.image_size, generator=stream)
    return info.inverted_as.apply(procedural_images(n, info.image_size, stream))


def _step(
    x: Tensor,
    y: Tensor,
    info: TeacherInfo,
    state: State,
    loss: TeacherLoss,
    optimizer: torch.optim.Optimizer,
    max_roll: int,
    stream: torch.Generator,
) -> None:
    """One step on x, rolled and mirrored anew, so that no pixel alone counts; x stays valid."""
    dy, dx = torch.randint(-max_roll, max_roll + 1, (2,), generator=stream).tolist()
    seen = torch.roll(x, (dy, dx), (2, 3))
    if torch.rand((), generator=stream) < 0.5:
        seen = seen.flip(3)
    optimizer.zero_grad()
    loss(state, channels_last(seen), y).total.backward()
    optimizer.step()
    low, high = info.inverted_as.pixel_range(x)
    with torch.no_grad():
        x.copy_(torch.maximum(torch.minimum(x, high), low))
