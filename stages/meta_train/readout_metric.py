"""How a distilled network weighs the directions of its readout (METHODS 5).

Directions in which images of one class differ say little of a class, directions in which classes
differ say much. The inverted images have classes, so both are known without any data:

    z' = (I + c W)^-alpha z        W: covariance of the readout within their classes
    z'' = (I + c B)^beta z'        B: covariance of their class means of z'

W and B are scaled to a mean variance of 1 over the d directions; only the leading directions of
each are changed, so that the learner's file stays small. This is the within-class covariance
normalisation of speaker recognition (Hatch et al., 2006), softened, and its counterpart.

Shapes: n images, d features of the readout, r directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.common.distilled import ReadoutMetric, damp
from stages.meta_train.params import Metric
from stages.meta_train.principal import principal_directions

MIN_IMAGES = 5  # of a class that takes part: fewer say too little of what varies within it


def readout_metric(
    features: Tensor, labels: Tensor, params: Metric, n_directions: int
) -> ReadoutMetric:
    """Of readouts (n, d) of images with labels (n,); zeros if no class has enough images."""
    _, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    enough = counts[labels] >= MIN_IMAGES
    features = features[enough]
    _, labels = labels[enough].unique(return_inverse=True)
    means = _class_means(features, labels)
    within, c = features - means[labels], params.strength
    damped = _scaled_directions(within, c, -params.within, n_directions)
    means = damp(means, damped)
    between = means - means.mean(0)
    return ReadoutMetric(damped, _scaled_directions(between, c, params.between, n_directions))


def _class_means(features: Tensor, labels: Tensor) -> Tensor:
    """(classes, d) of labels 0, 1, ..."""
    counts = labels.bincount()
    sums = features.new_zeros(len(counts), features.shape[1])
    return sums.index_add(0, labels, features) / counts[:, None]


def _scaled_directions(rows: Tensor, c: float, exponent: float, n_directions: int) -> Tensor:
    """Leading directions of centred rows (m, d), each times sqrt(|(1 + c v)^exponent - 1|).

    v is a direction's variance when that of all is 1 on average. Zeros (d, n_directions) where
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
