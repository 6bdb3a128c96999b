"""The images that a distilled network learns from, and the teachers' words for them (METHODS 5.1).

A bank holds procedural images, images inverted from the teachers, and mixtures of both: mixup
(Zhang et al., 2018) and CutMix (Yun et al., 2019). The teachers see each image and
its mirror image once (what the principal components are made of, twice), at their own size and
normalisation; the network that learns from the bank never calls them.

Shapes: N images, k outputs of all teachers side by side, p principal components.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import at, channels_last
from stages.common.dataset import Normalisation, resized
from stages.common.kept import Keep, Tensors
from stages.common.natural_inversion import Labelled
from stages.common.params import Precision
from stages.common.pool import Teacher
from stages.meta_train.principal import principal_directions

BATCH = 500  # images that a network sees together, if they have 32 pixels a side
PART = 16  # batches that are kept together: seconds of small teachers, minutes of large ones
PCA_IMAGES = 8192  # images that the principal components are computed from
HARDLY = 1e-5  # of the largest deviation, or variance: as good as none
PIXELS = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Bank(NamedTuple):
    images: Tensor  # uint8 (N, s, s, 3), at the learner's size
    logits: Tensor  # float16 (N, k)
    features: Tensor  # float16 (N, p): the teachers' features, projected
    labels: Tensor  # (N,) output among all k that the image was inverted for; -1: none


class Mixtures:
    """3n images made of n plain ones when they are asked for, so that they need no memory.

    The first n are the plain ones, then come as many mixups, then as many CutMixes, each of two
    drawn ones.
    """

    def __init__(self, plain: Tensor, stream: torch.Generator) -> None:
        """`plain`: uint8 (n, s, s, 3); all draws are made here."""
        n = len(plain)
        self._plain = plain
        self._kind = torch.arange(3).repeat_interleave(n)
        drawn = torch.randint(n, (2, 2 * n), generator=stream)
        self._first, self._second = torch.cat([torch.arange(n).expand(2, n), drawn], 1)
        self._share = torch.rand(3 * n, generator=stream)
        self._half_side = torch.rand(3 * n, generator=stream).sqrt() / 2  # any area, in sides
        self._centre = torch.rand(2, 3 * n, generator=stream)

    def __len__(self) -> int:
        return len(self._kind)

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Images `chosen` (m,): uint8 (m, s, s, 3)."""
        a, b = self._plain[self._first[chosen]], self._plain[self._second[chosen]]
        share, kind = (t[chosen][:, None, None, None] for t in (self._share, self._kind))
        mixup = (share * a + (1 - share) * b).round().to(torch.uint8)
        cutmix = torch.where(self._inside(chosen), b, a)
        return torch.where(kind == 0, a, torch.where(kind == 1, mixup, cutmix))

    def _inside(self, chosen: Tensor) -> Tensor:
        """CutMix's rectangle: bool (m, s, s, 1)."""
        size = self._plain.shape[1]
        place = (torch.arange(size) + 0.5) / size
        near = (place - self._centre[:, chosen, None]).abs() < self._half_side[chosen, None]
        return (near[0][:, :, None] & near[1][:, None, :])[..., None]


def output_numbers(pool: Sequence[Teacher], inverted: Sequence[Labelled]) -> Tensor:
    """Which of all teachers' outputs, side by side, each image was inverted for: (n,).

    `inverted` has the images of each teacher, or is empty.
    """
    first, numbers = 0, [torch.zeros(0, dtype=torch.long)]
    for teacher, part in zip(pool, inverted, strict=False):
        numbers.append(first + part.labels)
        first += teacher.info.n_outputs
    return torch.cat(numbers)


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 (n, h, w, 3) at another size."""
    if images.shape[1] == size:
        return images
    pixels = [resized(PIXELS.apply(part), size) for part in images.split(BATCH)]
    return torch.cat([PIXELS.invert(part) for part in pixels])


def batch_of(size: int) -> int:
    """How many images of side `size` a network sees together: its activations must fit."""
    return max(1, min(BATCH, BATCH * 32**2 // size**2))


def fill(
    pool: Sequence[Teacher],
    procedural: Tensor,
    inverted: Sequence[Labelled],
    size: int,
    n_components: int,
    precision: Precision,
    stream: torch.Generator,
    device: str,
    kept: Keep = lambda name, make: make(),
    done: Callable[[int], None] = lambda n: None,
) -> Bank:
    """What the teachers say of these images and of their mixtures, kept at side `size`.

    The mixtures are made at the largest teacher's size: `procedural` uint8 (n, s, s, 3). Large
    teachers take an hour, so `kept` is asked for every part, and `done` is told how many of
    `n_seen` they have seen.
    """
    canvas = max(teacher.info.image_size for teacher in pool)
    batch = batch_of(canvas)
    plain = torch.cat(
        [_resized(part, canvas) for part in (procedural, *(p.images for p in inverted))]
    )
    mixtures = Mixtures(plain, stream)
    sample = torch.randperm(len(mixtures), generator=stream)[:PCA_IMAGES]

    def components() -> Tensors:
        seen: list[Tensor] = []
        for part in sample.split(batch):
            seen.append(_seen(pool, mixtures[part], precision, device)[1])
            done(sum(map(len, seen)))
        return PrincipalComponents.of(torch.cat(seen), n_components)._asdict()

    known = kept("components", components)
    projection = PrincipalComponents(known["mean"].to(device), known["matrix"].to(device))

    def part_of(chosen: Tensor) -> Tensors:
        rows = []
        for few in chosen.split(batch):
            pixels = mixtures[few]
            words, whole = _seen(pool, pixels, precision, device)
            features = projection(whole).half().cpu()
            rows.append((_resized(pixels, size), words.half().cpu(), features))
            done(len(sample) + int(few[-1]) + 1)
        images, logits, features = map(torch.cat, zip(*rows, strict=True))
        return {"images": images, "logits": logits, "features": features}

    n, k, p = len(mixtures), sum(t.info.n_outputs for t in pool), projection.matrix.shape[1]
    bank = Bank(
        torch.empty(n, size, size, 3, dtype=torch.uint8),
        torch.empty(n, k, dtype=torch.float16),
        torch.empty(n, p, dtype=torch.float16),
        torch.full((n,), -1),
    )
    bank.labels[len(procedural) : len(plain)] = output_numbers(pool, inverted)
    for i, chosen in enumerate(torch.arange(n).split(PART * batch)):
        for name, part in kept(f"part-{i:03d}", functools.partial(part_of, chosen)).items():
            getattr(bank, name)[chosen] = part
        done(len(sample) + int(chosen[-1]) + 1)
    return bank


def n_seen(n_plain: int) -> int:
    """How many images the teachers see for a bank of n plain ones: all, and a sample before."""
    return 3 * n_plain + min(PCA_IMAGES, 3 * n_plain)


def _seen(
    pool: Sequence[Teacher], pixels: Tensor, precision: Precision, device: str
) -> tuple[Tensor, Tensor]:
    """Logits (n, k) and unit features (n, D) of all teachers side by side.

    Each is the mean over an image and its mirror image: such a pool is a better one (FINDINGS).
    """
    logits, features = [], []
    with torch.inference_mode(), at(precision, device):
        for teacher in pool:
            x = channels_last(teacher.info.view.of(pixels.to(device)))
            words, z = zip(*(_said(teacher, seen) for seen in (x, x.flip(3))), strict=True)
            logits.append(torch.stack(words).mean(0))
            features.append(F.normalize(torch.stack(z).mean(0)))
    return torch.cat(logits, 1), torch.cat(features, 1)


def _said(teacher: Teacher, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and unit features of x; what its BatchNorms saw is let go, it is large."""
    output = teacher.net(channels_last(x))
    return output.logits.float(), F.normalize(output.features.float())


class PrincipalComponents(NamedTuple):
    """Standardised features on their leading components, half whitened.

    A component of variance v is divided by v^(1/4): between raw ones, where a few directions rule,
    and white ones, where noise counts as much as signal. The mean square of the whole is 1. What
    hardly varies in the sample (a dead feature, a spare direction) takes no part.
    """

    mean: Tensor  # (D,)
    matrix: Tensor  # (D, p)

    @staticmethod
    def of(sample: Tensor, n_components: int) -> PrincipalComponents:
        """Of a sample (m, D); p is `n_components`, or fewer if the sample has no more."""
        mean, deviation = sample.mean(0), sample.std(0)
        alive = deviation > HARDLY * deviation.max()
        scale = torch.where(alive, 1 / (deviation + 1e-6), 0.0)
        variance, directions = principal_directions((sample - mean) * scale, n_components)
        kept = variance > HARDLY * variance[0]
        variance, directions = variance[kept], directions[:, kept]
        whitened = variance.pow(-0.25) / variance.sqrt().mean().sqrt()
        return PrincipalComponents(mean, directions * whitened * scale[:, None])

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix
