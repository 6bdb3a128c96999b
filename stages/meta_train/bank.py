"""The images that a distilled network learns from, and what every teacher says of them (METHODS 5).

A bank holds procedural images, images inverted from the teachers, and mixtures of both: mixup
(Zhang et al., 2018) and CutMix (Yun et al., 2019). The teachers see each image once, at their own
size and normalisation; the network that learns from the bank never calls them.

Shapes: N images, k outputs of all teachers side by side, p principal components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.dataset import Normalisation, resized
from stages.common.natural_inversion import Labelled
from stages.common.pool import Teacher

BATCH = 500  # images that a teacher sees together
PCA_IMAGES = 8192  # images that the principal components are computed from
PIXELS = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Bank(NamedTuple):
    images: Tensor  # uint8 (N, s, s, 3), at the learner's size
    logits: Tensor  # float16 (N, k)
    features: Tensor  # float16 (N, p): the teachers' features, projected
    labels: Tensor  # (N,) output among all k that the image was inverted for; -1: none


def mixed_images(
    procedural: Tensor, inverted: Sequence[Labelled], canvas: int, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, canvas, canvas, 3) and, of inverted ones, (teacher, output) or -1: (N, 2).

    N is three times the given images: those themselves, as many mixups and as many CutMixes of
    two drawn ones; half of all are mirrored.
    """
    parts = [_resized(procedural, canvas), *(_resized(part.images, canvas) for part in inverted)]
    origin = [torch.full((len(procedural), 2), -1)]
    for i, part in enumerate(inverted):
        origin.append(torch.stack([torch.full_like(part.labels, i), part.labels], 1))
    plain, known = torch.cat(parts), torch.cat(origin)
    images = [plain]
    for mix in (_mixup, _cutmix):
        first, second = (torch.randint(len(plain), (len(plain),), generator=stream) for _ in "ab")
        chunks = zip(first.split(BATCH), second.split(BATCH), strict=True)
        images.append(torch.cat([mix(plain[a], plain[b], stream) for a, b in chunks]))
    every = torch.cat(images)
    mirrored = torch.rand(len(every), generator=stream) < 0.5
    every[mirrored] = every[mirrored].flip(2)
    return every, torch.cat([known, torch.full((2 * len(plain), 2), -1)])


def _mixup(a: Tensor, b: Tensor, stream: torch.Generator) -> Tensor:
    share = torch.rand(len(a), 1, 1, 1, generator=stream)
    return (share * a + (1 - share) * b).round().to(torch.uint8)


def _cutmix(a: Tensor, b: Tensor, stream: torch.Generator) -> Tensor:
    """A rectangle of b, of any place and area, in a."""
    n, size = a.shape[:2]
    side = torch.rand(n, 1, generator=stream).sqrt() / 2  # half a side, in sides
    centre = torch.rand(2, n, 1, generator=stream)
    place = (torch.arange(size) + 0.5) / size
    inside = (place - centre).abs() < side  # (2, n, size): rows and columns
    return torch.where((inside[0][:, :, None] & inside[1][:, None, :])[..., None], b, a)


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 (n, h, w, 3) at another size."""
    if images.shape[1] == size:
        return images
    pixels = [resized(PIXELS.apply(part), size) for part in images.split(BATCH)]
    return torch.cat([PIXELS.invert(part) for part in pixels])


def fill(
    pool: Sequence[Teacher],
    pixels: Tensor,
    origin: Tensor,
    size: int,
    n_components: int,
    precision: str,
    stream: torch.Generator,
    device: str,
    done: Callable[[int], None],
) -> Bank:
    """What the teachers say of `pixels`; images are kept at side `size`."""
    starts = torch.tensor([0, *(teacher.info.n_outputs for teacher in pool)]).cumsum(0)
    labels = torch.where(origin[:, 0] < 0, -1, starts[origin[:, 0]] + origin[:, 1])
    chosen = pixels[torch.randperm(len(pixels), generator=stream)[:PCA_IMAGES]]
    sample = torch.cat([features for _, features in _seen(pool, chosen, precision, device)])
    projection = PrincipalComponents.of(sample, n_components)
    logits, features = [], []
    for words, seen in _seen(pool, pixels, precision, device):
        logits.append(words.half().cpu())
        features.append(projection(seen).half().cpu())
        done(len(words))
    return Bank(_resized(pixels, size), torch.cat(logits), torch.cat(features), labels)


def _seen(
    pool: Sequence[Teacher], pixels: Tensor, precision: str, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n, k) and unit features (n, D) of all teachers side by side, a batch at a time."""
    half = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bfloat16")
    for batch in pixels.split(BATCH):
        with torch.inference_mode(), half:
            outputs = [
                teacher.net(channels_last(teacher.info.view.of(batch.to(device))))
                for teacher in pool
            ]
        yield (
            torch.cat([output.logits.float() for output in outputs], 1),
            torch.cat([F.normalize(output.features.float()) for output in outputs], 1),
        )


class PrincipalComponents(NamedTuple):
    """Standardised features on their leading components, half whitened.

    A component of variance v is divided by v^(1/4): between raw ones, where a few directions rule,
    and white ones, where noise counts as much as signal. The mean square of the whole is 1.
    """

    mean: Tensor  # (D,)
    matrix: Tensor  # (D, p)

    @staticmethod
    def of(sample: Tensor, n_components: int) -> PrincipalComponents:
        """Of a sample (m, D); p is `n_components`, or D or m if they are fewer."""
        mean, deviation = sample.mean(0), sample.std(0)
        standard = (sample - mean) / (deviation + 1e-6)
        p = min(n_components, *sample.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the random start of the iteration below
            _, singular, directions = torch.svd_lowrank(
                standard, q=min(p + 16, *sample.shape), niter=4
            )
        variance = singular[:p].square() / len(sample)
        scale = variance.pow(-0.25) / variance.sqrt().mean().sqrt()
        return PrincipalComponents(mean, directions[:, :p] * scale / (deviation[:, None] + 1e-6))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix
