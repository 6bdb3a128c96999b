"""How a distilled network weighs the directions of its readout (METHODS 5.1).

Directions in which images of one class differ say little of a class, directions in which classes
differ say much, and what all images have in common brings some class means near to everything. The
inverted images have classes, so all of it is known without any data:

    z1 = (I + c W)^-alpha z        W: covariance of the readout within their classes
    z2 = (I + c B)^beta z1         B: covariance of their class means of z1
    z3 = (I + c T)^-gamma z2       T: second moment of z2, about zero

W, B and T are scaled to a mean variance of 1 over the d directions; only the leading directions of
each are changed, so that the learner's file stays small; of T two, which are close to the mean and
to the direction in which images differ most. W gives the within-class covariance normalisation of
speaker recognition (Hatch et al., 2006), softened, B its counterpart, T all-but-the-top (Mu &
Viswanath, 2018), softened. Each image takes part in several views, so that what differs between
them varies within classes: its colours, and which way is up.

Shapes: v views of n images, d features of the readout, r directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.common.distilled import N_COMMON, ReadoutMetric, amplify, damp
from stages.meta_train.params import Metric
from stages.meta_train.principal import principal_directions

MIN_IMAGES = 5  # of a class that takes part: fewer say too little of what varies within it
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def views(images: Tensor) -> list[Tensor]:
    """uint8 (n, h, w, 3) as they are, as grey copies (the luma), and turned by a right angle."""
    luma = (images.float() @ torch.tensor(LUMA, device=images.device)).round().to(torch.uint8)
    return [images, luma[..., None].expand(images.shape), images.rot90(1, (1, 2))]


def readout_metric(
    features: Tensor, labels: Tensor, params: Metric, n_directions: int
) -> ReadoutMetric:
    """Of readouts (v, n, d) of views of images with labels (n,).

    Zeros if no class has enough images.
    """
    enough, labels = of_enough(labels)
    labels, features = labels.repeat(len(features)), features[:, enough].flatten(0, 1)
    c = params.strength
    means = _class_means(features, labels)
    damped = _scaled_directions(features - means[labels], c, -params.within, n_directions)
    means = damp(means, damped)
    amplified = _scaled_directions(means - means.mean(0), c, params.between, n_directions)
    weighed = amplify(damp(features, damped), amplified)
    common = _scaled_directions(weighed, c, -params.common, N_COMMON)
    return ReadoutMetric(damped, amplified, common)


def of_enough(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the images with labels (n,) have a class of MIN_IMAGES or more: bool (n,).

    And the labels of these, numbered anew: 0, 1, ...
    """
    _, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    enough = counts[labels] >= MIN_IMAGES
    return enough, labels[enough].unique(return_inverse=True)[1]


def _class_means(features: Tensor, labels: Tensor) -> Tensor:
    """(classes, d) of labels 0, 1, ..."""
    counts = labels.bincount()
    sums = features.new_zeros(len(counts), features.shape[1])
    return sums.index_add(0, labels, features) / counts[:, None]


def _scaled_directions(rows: Tensor, c: float, exponent: float, n_directions: int) -> Tensor:
    """Leading directions of rows (m, d), each times sqrt(|(1 + c v)^exponent - 1|).

    v is a direction's mean square when that of all is 1 on average. Zeros (d, n_directions) where
    nothing varies, or where a student that diverged says nothing finite.
    """
    d = rows.shape[1]
    scaled = rows.new_zeros(d, n_directions)
    mean_square = rows.norm().square() / d
    if not (torch.isfinite(mean_square) and mean_square > 0):
        return scaled
    variance, directions = principal_directions(rows, n_directions)
    change = (1 + c * variance * len(rows) / mean_square) ** exponent - 1
    scaled[:, : len(variance)] = directions * change.abs().sqrt()
    return scaled
