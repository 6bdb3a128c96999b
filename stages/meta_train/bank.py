"""The images that a distilled network learns from, and what every teacher says of them (METHODS 5).

A bank holds procedural images, images inverted from the teachers, and mixtures of both: mixup
(Zhang et al., 2018) and CutMix (Yun et al., 2019). The teachers see each image and
its mirror image once, at their own size and normalisation; the network that learns from the bank
never calls them.

Shapes: N images, k outputs of all teachers side by side, p principal components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import at, channels_last
from stages.common.dataset import Normalisation, resized
from stages.common.natural_inversion import Labelled
from stages.common.params import Precision
from stages.common.pool import Teacher
from stages.meta_train.principal import principal_directions

BATCH = 500  # images that a teacher sees together
PCA_IMAGES = 8192  # images that the principal components are computed from
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
        drawn = torch.randint(max(n, 1), (2, 2 * n), generator=stream)
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


def plain_images(
    procedural: Tensor, inverted: Sequence[Labelled], canvas: int
) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (n, canvas, canvas, 3), and who an image was inverted from and for: (n, 2).

    That is teacher and output, -1 and -1 for a procedural image.
    """
    parts = [_resized(procedural, canvas), *(_resized(part.images, canvas) for part in inverted)]
    origin = [torch.full((len(procedural), 2), -1)]
    for i, part in enumerate(inverted):
        origin.append(torch.stack([torch.full_like(part.labels, i), part.labels], 1))
    return torch.cat(parts), torch.cat(origin)


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 (n, h, w, 3) at another size."""
    if images.shape[1] == size:
        return images
    pixels = [resized(PIXELS.apply(part), size) for part in images.split(BATCH)]
    return torch.cat([PIXELS.invert(part) for part in pixels])


def fill(
    pool: Sequence[Teacher],
    plain: Tensor,
    origin: Tensor,
    size: int,
    n_components: int,
    precision: Precision,
    stream: torch.Generator,
    device: str,
    done: Callable[[int], None] = lambda n: None,
) -> Bank:
    """What the teachers say of the plain images and of their mixtures, kept at side `size`."""
    mixtures = Mixtures(plain, stream)
    starts = torch.tensor([0, *(teacher.info.n_outputs for teacher in pool)]).cumsum(0)
    labels = torch.full((len(mixtures),), -1)
    labels[: len(plain)] = torch.where(origin[:, 0] < 0, -1, starts[origin[:, 0]] + origin[:, 1])
    sample = torch.randperm(len(mixtures), generator=stream)[:PCA_IMAGES]
    seen = [_seen(pool, mixtures[part], precision, device)[1] for part in sample.split(BATCH)]
    projection = PrincipalComponents.of(torch.cat(seen), n_components)
    images, logits, features = [], [], []
    for part in torch.arange(len(mixtures)).split(BATCH):
        pixels = mixtures[part]
        words, whole = _seen(pool, pixels, precision, device)
        images.append(_resized(pixels, size))
        logits.append(words.half().cpu())
        features.append(projection(whole).half().cpu())
        done(int(part[-1]) + 1)
    return Bank(torch.cat(images), torch.cat(logits), torch.cat(features), labels)


def _seen(
    pool: Sequence[Teacher], pixels: Tensor, precision: Precision, device: str
) -> tuple[Tensor, Tensor]:
    """Logits (n, k) and unit features (n, D) of all teachers side by side.

    Each is the mean over an image and its mirror image: such a pool is a better one (README).
    """
    logits, features = [], []
    with torch.inference_mode(), at(precision, device):
        for teacher in pool:
            x = channels_last(teacher.info.view.of(pixels.to(device)))
            outputs = [teacher.net(seen) for seen in (x, channels_last(x.flip(3)))]
            logits.append(torch.stack([o.logits.float() for o in outputs]).mean(0))
            z = torch.stack([F.normalize(o.features.float()) for o in outputs]).mean(0)
            features.append(F.normalize(z))
    return torch.cat(logits, 1), torch.cat(features, 1)


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
        variance, directions = principal_directions(standard, n_components)
        scale = variance.pow(-0.25) / variance.sqrt().mean().sqrt()
        return PrincipalComponents(mean, directions * scale / (deviation[:, None] + 1e-6))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix
