"""Networks of the paper: Conv4 and the ResNets, each returning what its BatchNorm layers saw.

Shapes: n images, c channels, h x w pixels, d features, k classes.

One convention serves teachers and learner: `net(x)` gives an `Output` with logits, features and
the *inputs of every BatchNorm layer* in forward order. The BN-statistics term of model inversion
(METHODS 1.1) reads them there; hooks would break the compiled graph (DESIGN 5).

`batch_statistics=True` builds the learner's form: BatchNorm always normalises with the statistics
of the batch it is given and keeps none (PURER's meta model, METHODS 1.2). Parameter names are the
same in both forms, so a teacher's weights load into a learner and the reverse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.interface.errors import BadInput

if TYPE_CHECKING:
    from stages.common.params import Precision


class Output(NamedTuple):
    logits: Tensor  # (n, k)
    features: Tensor  # (n, d)
    bn_inputs: list[Tensor]  # one (n, c_l, h_l, w_l) per BatchNorm layer, in forward order


class Conv4(nn.Module):
    """Four blocks of conv 3x3, BatchNorm, ReLU, max-pool 2 (PURER, appendix A: 32 filters)."""

    def __init__(
        self, n_classes: int, image_size: int, width: int = 32, batch_statistics: bool = False
    ) -> None:
        super().__init__()
        if image_size < 16:
            raise BadInput(
                f"image_size = {image_size}: Conv4 halves images four times: allowed: 16 or more"
            )
        channels = [3, width, width, width, width]
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, padding=1) for c_in, c_out in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(_batch_norm(width, batch_statistics) for _ in range(4))
        self.n_features = width * (image_size // 16) ** 2
        self.head = nn.Linear(self.n_features, n_classes)

    def forward(self, x: Tensor) -> Output:
        bn_inputs = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            bn_inputs.append(x)
            # The same as the ReLU before the maximum, on a quarter of the values.
            x = F.relu(F.max_pool2d(norm(x), 2))
        features = x.flatten(1)
        return Output(self.head(features), features, bn_inputs)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an identity or 1x1 shortcut (He et al., 2016)."""

    def __init__(self, c_in: int, c_out: int, stride: int, batch_statistics: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm1 = _batch_norm(c_out, batch_statistics)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = _batch_norm(c_out, batch_statistics)
        self.project = stride != 1 or c_in != c_out
        if self.project:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.shortcut_norm = _batch_norm(c_out, batch_statistics)

    def forward(self, x: Tensor, bn_inputs: list[Tensor]) -> Tensor:
        out = self.conv1(x)
        bn_inputs.append(out)
        out = self.conv2(F.relu(self.norm1(out)))
        bn_inputs.append(out)
        out = self.norm2(out)
        if self.project:
            x = self.shortcut(x)
            bn_inputs.append(x)
            x = self.shortcut_norm(x)
        return F.relu(out + x)


class ResNet(nn.Module):
    """3x3 stride-1 stem of 64, four stages of basic blocks 64-128-256-512, global average pooling.

    METHODS 1.5; one block a stage is ResNet-10, two are ResNet-18. Any image size from 8 pixels.
    """

    def __init__(
        self, n_classes: int, blocks_per_stage: int, batch_statistics: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm = _batch_norm(64, batch_statistics)
        blocks = []
        c_in = 64
        for c_out in (64, 128, 256, 512):
            for index in range(blocks_per_stage):
                stride = 2 if index == 0 and c_out > 64 else 1
                blocks.append(BasicBlock(c_in, c_out, stride, batch_statistics))
                c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.n_features = c_in
        self.head = nn.Linear(self.n_features, n_classes)

    def forward(self, x: Tensor) -> Output:
        x = self.conv(x)
        bn_inputs = [x]
        x = F.relu(self.norm(x))
        for block in self.blocks:
            x = block(x, bn_inputs)
        features = x.mean((2, 3))
        return Output(self.head(features), features, bn_inputs)


def _batch_norm(channels: int, batch_statistics: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=not batch_statistics)


Builder = Callable[[int, int, bool], nn.Module]  # (n_classes, image_size, batch_statistics)

ARCHITECTURES: dict[str, Builder] = {
    "conv4": lambda k, size, batch: Conv4(k, size, 32, batch),
    "conv4_64": lambda k, size, batch: Conv4(k, size, 64, batch),
    "resnet10": lambda k, size, batch: ResNet(k, 1, batch),
    "resnet18": lambda k, size, batch: ResNet(k, 2, batch),
}


def build(
    name: str,
    n_classes: int,
    image_size: int,
    *,
    batch_statistics: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A network of the table above, on the CPU.

    With `generator`, its weights are drawn from that stream by torch's default initialisation;
    torch's global stream is left as it was.

    Raises KeyError for a name that is not in `ARCHITECTURES`.
    """
    builder = ARCHITECTURES[name]
    if generator is None:
        return builder(n_classes, image_size, batch_statistics)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return builder(n_classes, image_size, batch_statistics)


def bn_layers(net: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """Names and BatchNorm layers of `net`, in the order of `Output.bn_inputs`.

    Only those that remember what they saw: others (track_running_stats=False) tell inversion
    nothing.
    """
    return [
        (name, layer)
        for name, layer in net.named_modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
    ]


def batch_moments(bn_inputs: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance over batch and space, each (c_l,), of each (n, c_l, h_l, w_l).

    E[x^2] - E[x]^2 instead of `var_mean`: two plain reductions, several times cheaper eagerly
    (DESIGN 5), and exact enough for activations of order one.
    """
    moments = []
    for x in bn_inputs:
        mean = x.mean((0, 2, 3))
        moments.append((mean, (x * x).mean((0, 2, 3)) - mean * mean))
    return moments


def at(precision: Precision, device: str) -> torch.autocast:
    """The context in which networks compute at `precision`."""
    half = precision == "bfloat16"
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=half)


def channels_last(tensor: Tensor) -> Tensor:
    """The same values; image batches and kernels laid out channels-last.

    Convolutions run faster so, on CPU and GPU alike (DESIGN 5).
    """
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return tensor.contiguous(memory_format=layout)
