"""What is wrong with a pool, found without data: on procedural images.

- a file that is missing, truncated, foreign, or not what the manifest says (as `load_pool` does)
- a dead teacher: whatever it sees, it says the same
- numbers that are none, outputs that are probabilities
- a wrong normalisation: the first BatchNorm layer remembers the moments of what it saw in training;
  where another usual normalisation fits them much better than the manifest's, that one is named
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stages.common.architectures import bn_layers, channels_last
from stages.common.dataset import IMAGENET, Normalisation, View
from stages.common.pool import Teacher, TeacherInfo, load_manifest, load_teacher
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.pool.importing import PROBABILITIES, are_probabilities
from stages.pool.state_dicts import first_line

Moments = tuple[Tensor, Tensor]  # mean and biased variance of each channel, (c,) each

N_IMAGES = 256
CHUNK = 32  # images at once
# Deviation of a log-probability over all images, below which a teacher is dead. Not of a
# probability: one that is sure of everything has 1.0 of every image, and may tell them apart.
DEAD = 1e-3
# Another normalisation is named where the manifest's misfit is above MISFIT, the other's below half
# of it and below FITS: where none fits (X-rays, scans, digits), the images are unlike procedural
# ones, and nothing is known of the normalisation. Measured on 13 Conv4 teachers of CIFAR-FS: with
# "cifar", the right one, 0.06 to 0.22; "imagenet" 0.1 to 0.6, noticed in 8 of them; "quarter" 0.03
# to 0.26, in none; "half", "unit" and "bytes" 0.9 and more, in all. The first three are near each
# other: one may be named for another.
MISFIT = 0.2
BETTER = 0.5
FITS = 0.3
NORMALISATIONS = {
    "imagenet": IMAGENET,
    "cifar": Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "quarter": Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    "unit": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "bytes": Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


class Checked(NamedTuple):
    info: TeacherInfo
    findings: list[str]  # what is wrong; nothing: it is fine
    remembers: bool  # its BatchNorm remembers what it saw, so its normalisation could be checked


def check_pool(folder: Path) -> Iterator[Checked]:
    """Every teacher of the manifest, each file read once."""
    for info in load_manifest(folder):
        try:
            teacher = load_teacher(folder, info)
        except BadInput as error:
            yield Checked(info, [str(error)], False)
            continue
        try:
            found = findings(teacher)
        except Exception as error:  # of somebody's network, which may raise anything
            found = [f"it cannot see an image: {first_line(error)}"]
        yield Checked(info, found, bool(bn_layers(teacher.net)))


def findings(teacher: Teacher) -> list[str]:
    """What is wrong with a teacher whose file is whole."""
    found = []
    images = procedural_images(N_IMAGES, teacher.info.image_size, generator(0, "pool check"))
    logits, moments = answers(teacher, images, teacher.info.normalisation)
    if are_probabilities(logits):
        found.append(PROBABILITIES)
    spread = logits.log_softmax(1).std(0).max()
    if not spread > DEAD:
        found.append(f"dead: its log-probabilities vary by {spread:.1g} over {N_IMAGES} images")
    if moments is not None and (better := _better_normalisation(teacher, images, moments)):
        found.append(better)
    return found


def answers(
    teacher: Teacher, images: Tensor, normalisation: Normalisation
) -> tuple[Tensor, Moments | None]:
    """Logits (n, k), and the moments of what the first BatchNorm layer is given, if there is one.

    A few images at a time: of one at 224 pixels, the layers of a ResNet-50 are given 40 MB.
    """
    view = View(teacher.info.image_size, normalisation)
    logits, firsts, squares = [], [], []
    with torch.inference_mode():
        for part in images.split(CHUNK):
            output = teacher.net(channels_last(view.of(part)))
            logits.append(output.logits)
            for x in output.bn_inputs[:1]:
                firsts.append(x.mean((0, 2, 3)) * len(part))
                squares.append(x.square().mean((0, 2, 3)) * len(part))
    if not firsts:
        return torch.cat(logits), None
    mean, square = (torch.stack(sums).sum(0) / len(images) for sums in (firsts, squares))
    return torch.cat(logits), (mean, square - mean.square())


def misfit(teacher: Teacher, moments: Moments) -> float:
    """How far `moments` of the first BatchNorm layer's inputs are from those it remembers.

    Mean over channels of (difference of means)^2 / variance + (log ratio of variances)^2.
    """
    mean, var = moments
    layer = bn_layers(teacher.net)[0][1]
    mean_ref, var_ref = layer.running_mean, layer.running_var
    assert mean_ref is not None
    assert var_ref is not None
    live = var_ref > 1e-8
    if not live.any():
        return 0.0  # nothing to compare: no finding
    terms = (mean - mean_ref).square() / var_ref + (var.clamp(min=1e-12) / var_ref).log().square()
    return float(terms[live].mean())


def _better_normalisation(teacher: Teacher, images: Tensor, moments: Moments) -> str | None:
    """Which usual one fits much better than the manifest's, of which `moments` are."""
    own = misfit(teacher, moments)
    if own < MISFIT:
        return None
    others = {}
    for name, normalisation in NORMALISATIONS.items():
        _, seen = answers(teacher, images, normalisation)
        assert seen is not None
        others[name] = misfit(teacher, seen)
    best = min(others, key=lambda name: others[name])
    if others[best] > min(FITS, BETTER * own):
        return None
    wanted = NORMALISATIONS[best]
    return (
        f"mean = {teacher.info.mean}, std = {teacher.info.std} do not fit what its first BatchNorm"
        f" layer remembers (misfit {own:.2g}); {best!r} does: mean = {wanted.mean}, std ="
        f" {tuple(round(s, 4) for s in wanted.std)} ({others[best]:.2g})"
    )
