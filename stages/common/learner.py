"""The learner: a network whose BatchNorm normalises with a batch's statistics.

theta are its parameters by name. One network structure, two forms of BatchNorm:
`forward(theta, x)` normalises x with x's own statistics (PURER; transductive where x is a query
batch), `forward(theta, x, moments)` with given ones (inductive: the support set's). A distilled
learner (distilled.py) has statistics of its own, in theta, and uses these.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call, grad

from stages.common.architectures import ARCHITECTURES, Output, bn_layers, build, channels_last
from stages.common.dataset import Normalisation, View
from stages.common.distilled import Distilled, DistilledForm
from stages.common.files import load_tensors, save_tensors
from stages.common.pool import TeacherInfo, check_fits
from stages.common.records import EXACT, Deviations, Triple, record
from stages.interface.errors import BadInput

Theta = dict[str, Tensor]


@dataclass(frozen=True)
class LearnerInfo:
    """What a learner's file says of it besides its weights."""

    __pydantic_config__ = EXACT

    architecture: str
    n_way: PositiveInt
    image_size: PositiveInt
    mean: Triple
    std: Deviations
    method: str
    meta_learner: str  # how it was trained to adapt: maml, anil, protonet; none: not at all
    iteration: NonNegativeInt
    distilled: DistilledForm | None = None
    class_names: tuple[tuple[str, ...], ...] = ()  # of the teachers it learned from, of each
    provenance: Mapping[str, Any] = field(default_factory=dict)  # of its making, once exported

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.mean, self.std)

    @property
    def view(self) -> View:
        return View(self.image_size, self.normalisation)

    @property
    def euclidean(self) -> bool:
        """Whether it was trained to compare features by their Euclidean distance."""
        return self.meta_learner == "protonet"


class Learner:
    """The network of `architecture` with n_way outputs, without weights of its own."""

    def __init__(
        self,
        architecture: str,
        n_way: int,
        image_size: int,
        device: str = "cpu",
        distilled: DistilledForm | None = None,
    ) -> None:
        self.n_way = n_way
        self.keeps_statistics = distilled is not None
        if distilled is not None:
            net: nn.Module = Distilled(architecture, distilled, n_way, image_size)
            self._batch = self._fixed = net.to(device).eval()
        else:
            self._batch = build(architecture, n_way, image_size, batch_statistics=True).to(device)
            self._fixed = build(architecture, n_way, image_size).to(device).eval()
        self._bn_names = [name for name, _ in bn_layers(self._fixed)]
        self.parameters = frozenset(name for name, _ in self._batch.named_parameters())

    def network(self, theta: Theta) -> nn.Module:
        """The network with theta in it, in eval mode; of a learner that keeps its statistics."""
        net = copy.deepcopy(self._fixed)
        net.load_state_dict(theta)
        return net

    def forward(
        self, theta: Theta, x: Tensor, moments: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> Output:
        """Logits, features and BatchNorm inputs of x (n, 3, h, w).

        `moments`: mean and biased variance per BatchNorm layer; None: those of x itself. A
        distilled learner has its own, in theta, and normalises with these always.
        """
        if moments is None or self.keeps_statistics:
            output: Output = functional_call(self._batch, theta, (x,))
            return output
        state = dict(theta)
        for name, (mean, var) in zip(self._bn_names, moments, strict=True):
            state[f"{name}.running_mean"], state[f"{name}.running_var"] = mean, var
        output = functional_call(self._fixed, state, (x,))
        return output


def learner_view(pool: Sequence[TeacherInfo], image_size: str | int) -> View:
    """How the learner of a pool sees images: as the teachers of the smallest or largest side do.

    A number of pixels: at that side, normalised as the smallest's.

    A batch is one tensor, and its BatchNorm statistics are of the whole batch, so images of two
    data sets (MH) must be brought to one size before the learner sees them.
    """
    best = max if image_size == "largest" else min
    return sized(best((info.view for info in pool), key=lambda view: view.image_size), image_size)


def sized(view: View, image_size: str | int) -> View:
    """The view at that many pixels a side; as it is where a word says which teachers' they are."""
    return View(image_size, view.normalisation) if isinstance(image_size, int) else view


def initial_theta(
    architecture: str, n_way: int, image_size: int, generator: torch.Generator
) -> Theta:
    """Freshly drawn parameters (torch's default initialisation), on the CPU."""
    net = build(architecture, n_way, image_size, batch_statistics=True, generator=generator)
    return {name: channels_last(p.detach()) for name, p in net.named_parameters()}


def episode_loss(learner: Learner, theta: Theta, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the learner on x (n, 3, h, w) with episode labels y (n,)."""
    return F.cross_entropy(learner.forward(theta, x).logits, y)


def adapt(
    learner: Learner,
    theta: Theta,
    x: Tensor,
    y: Tensor,
    inner_lr: float,
    inner_steps: int,
    part: str = "",
) -> Theta:
    """Inner loop: theta' = theta - inner_lr * grad L(theta; support), inner_steps times.

    PURER, equation 1b (MAML). Differentiable to second order: gradients of a function of the
    result flow through the steps to theta and to x. Only parameters whose names start with `part`
    move: all of them by default, "head." for ANIL (Raghu et al., 2020).
    """
    for _ in range(inner_steps):
        names = [name for name in theta if name.startswith(part) and name in learner.parameters]
        moving = {name: theta[name] for name in names}
        still = {name: p for name, p in theta.items() if name not in moving}
        gradient = grad(lambda t, s=still: episode_loss(learner, {**s, **t}, x, y))(moving)
        moved = {name: p - inner_lr * gradient[name] for name, p in moving.items()}
        theta = {name: moved.get(name, p) for name, p in theta.items()}
    return theta


def snapshots(folder: Path) -> list[Path]:
    """The snapshots of a learner's folder, by iteration; what else is called alike is none.

    Raises BadInput if there are none.
    """
    paths = (folder / "snapshots").glob("iteration-*.safetensors")
    found = [path for path in paths if path.stem.partition("-")[2].isdecimal()]
    if not found:
        raise BadInput(
            f"{folder}: no snapshots/iteration-*.safetensors: not a learner; meta_train makes one"
        )
    return sorted(found, key=iteration_of)


def iteration_of(snapshot: Path) -> int:
    """After which iteration it was taken, as its file's name says."""
    return int(snapshot.stem.partition("-")[2])


def save_learner(path: Path, theta: Mapping[str, Tensor], info: LearnerInfo) -> None:
    save_tensors(path, dict(theta), asdict(info))


def load_learner(path: Path, device: str = "cpu") -> tuple[Learner, Theta, LearnerInfo]:
    """A snapshot, checked against its own metadata.

    Raises BadInput for a file that is missing, truncated, foreign or of another architecture.
    """
    tensors, metadata = load_tensors(path)
    info = record(LearnerInfo, metadata, path, "a learner")
    if info.architecture not in ARCHITECTURES:
        raise BadInput(
            f"{path}: architecture = {info.architecture!r}: allowed: {', '.join(ARCHITECTURES)}"
        )
    learner = Learner(info.architecture, info.n_way, info.image_size, device, info.distilled)
    check_fits(learner._batch, tensors, path)
    theta = {name: channels_last(t.to(device)) for name, t in sorted(tensors.items())}
    return learner, theta, info
