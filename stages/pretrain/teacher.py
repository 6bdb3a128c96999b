"""Training of one teacher: plain supervised learning on its own few classes (METHODS 1.5).

Shapes: n images of k classes, uint8 (n, h, w, 3) or normalised float32 (n, 3, h, w).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.architectures import at, build
from stages.common.files import written_whole
from stages.common.kept import SECONDS_BETWEEN_CHECKPOINTS
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.pretrain.params import Optimizer, Pretrain, PretrainBudget


class Stateful(Protocol):
    """A network, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(frozen=True)
class TrainedTeacher:
    state: dict[str, Tensor]  # of the epoch with the best validation accuracy
    epoch: int
    val_accuracy: float  # percent
    n_parameters: int


@dataclass(frozen=True)
class Checkpoint:
    """Where a teacher in training is kept after an epoch, once a minute."""

    path: Path
    saved: Callable[[], None] = lambda: None  # called after each, so that its minutes count

    def save(
        self,
        changing: Mapping[str, Stateful],
        batches: torch.Generator,
        done: int,
        best: TrainedTeacher,
    ) -> None:
        """All that later epochs depend on, after `done` of them."""
        states = {name: part.state_dict() for name, part in changing.items()}
        more = {"batches": batches.get_state(), "done": done, "best": asdict(best)}
        content = io.BytesIO()  # saved to a file directly, a full disk would be no OSError
        torch.save({**states, **more}, content)
        with written_whole(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())
        self.saved()

    def load(
        self, changing: Mapping[str, Stateful], batches: torch.Generator
    ) -> tuple[int, TrainedTeacher]:
        """Set all of it as it was; the epochs done and the best teacher so far."""
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in changing.items():
            part.load_state_dict(content[name])
        batches.set_state(content["batches"])
        return content["done"], TrainedTeacher(**content["best"])


def split_class(n_images: int, train_fraction: float) -> int:
    """How many of a class's images train; the rest selects the epoch.

    Raises BadInput if either part would be empty.
    """
    n_train = int(train_fraction * n_images)
    if not 0 < n_train < n_images:
        raise BadInput(
            f"train_fraction = {train_fraction}: {n_train} of {n_images} images would train;"
            " at least one must train and one must remain"
        )
    return n_train


def train_teacher(
    images: list[Tensor],
    n_outputs: int,
    architecture: str,
    params: Pretrain,
    length: PretrainBudget,
    seed: int,
    index: int,
    device: str,
    report: Callable[[int, float, float], None],
    checkpoint: Checkpoint,
) -> TrainedTeacher:
    """Train teacher `index` on its classes: `images[j]` (n_j, 3, h, w) is what output j stands for.

    The first `train_fraction` of each class trains, the rest selects the epoch. The learning rate
    falls by `lr_decay` at 1/2, 2/3 and 5/6 of the epochs. No augmentation, as published.
    Where the checkpoint is, training goes on from it.
    """

    def stream(purpose: str) -> torch.Generator:
        return generator(seed, "pretrain", purpose, index)

    # The canonical order within a class is by content, so "first" must be drawn.
    shuffle = stream("validation images")
    images = [x[torch.randperm(len(x), generator=shuffle)] for x in images]
    cuts = [split_class(len(x), params.train_fraction) for x in images]
    train_x, train_y = _labelled([x[:cut] for x, cut in zip(images, cuts, strict=True)], device)
    val_x, val_y = _labelled([x[cut:] for x, cut in zip(images, cuts, strict=True)], device)

    net = build(architecture, n_outputs, train_x.shape[-1], generator=stream("initialisation"))
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(net, getattr(params.optimizers, architecture))
    epochs = length.epochs_of(architecture)
    milestones = [max(1, int(epochs * part)) for part in (1 / 2, 2 / 3, 5 / 6)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, params.lr_decay)
    batches = stream("batches")
    best = TrainedTeacher({}, -1, -1.0, sum(p.numel() for p in net.parameters()))
    changing = {"net": net, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if checkpoint.path.exists():
        done, best = checkpoint.load(changing, batches)
    saved_at = time.monotonic()
    for epoch in range(done, epochs):
        loss = _train_epoch(net, optimizer, train_x, train_y, params, length.batch_size, batches)
        schedule.step()
        accuracy = evaluate(net, val_x, val_y)
        if accuracy > best.val_accuracy:
            state = {name: t.detach().cpu().clone() for name, t in net.state_dict().items()}
            best = TrainedTeacher(state, epoch + 1, accuracy, best.n_parameters)
        if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            checkpoint.save(changing, batches, epoch + 1, best)
            saved_at = time.monotonic()
        report(epoch + 1, loss, accuracy)
    return best


def evaluate(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy in percent on x (n, 3, h, w), y (n,), with running BatchNorm statistics."""
    net.eval()
    with torch.inference_mode():
        right = [
            net(images).logits.argmax(1) == labels
            for images, labels in zip(x.split(100), y.split(100), strict=True)
        ]
    return 100 * float(torch.cat(right).double().mean())


def _train_epoch(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    params: Pretrain,
    batch_size: int,
    stream: torch.Generator,
) -> float:
    """One pass over the images in random order; the mean loss."""
    net.train()
    losses = []
    order = torch.randperm(len(x), generator=stream).to(x.device)
    for batch in order.split(batch_size):
        if len(batch) == 1:
            continue  # BatchNorm has no variance of one image
        optimizer.zero_grad()
        with at(params.precision, x.device.type):
            logits = net(x[batch]).logits
        loss = F.cross_entropy(logits.float(), y[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), params.max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _labelled(images: list[Tensor], device: str) -> tuple[Tensor, Tensor]:
    """All images in one channels-last tensor, and their labels."""
    x = torch.cat(images).to(device, memory_format=torch.channels_last)
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(i) for i in images]))
    return x, labels.to(device)


def _optimizer(net: nn.Module, params: Optimizer) -> torch.optim.Optimizer:
    if params.name == "adam":
        return torch.optim.Adam(net.parameters(), params.lr, weight_decay=params.weight_decay)
    return torch.optim.SGD(
        net.parameters(), params.lr, params.momentum, weight_decay=params.weight_decay
    )
