"""How a distilled network weighs the directions of its readout (METHODS 5).

Directions in which images of one class differ say little of a class, directions in which classes
differ say much. The inverted images have classes, so both are known without any data:

    z' = (I + c W)^-alpha z        W: covariance of the readout within their classes
    z'' = (I + c B)^beta z'        B: covariance of their class means of z'

W and B are scaled to a mean variance of 1 over the d directions. This is the within-class
covariance normalisation of speaker recognition (Hatch et al., 2006), softened, and its counterpart.

Shapes: n images, d features of the readout, r directions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from stages.common.distilled import DIRECTIONS
from stages.meta_train.params import Metric
from stages.meta_train.principal import principal_directions


class ReadoutMetric(NamedTuple):
    """z' = z - (z damped) damped^T, z'' = z' + (z' amplified) amplified^T.

    Each (d, DIRECTIONS): a direction times the root of how much it changes, zeros where there are
    fewer. A matrix (d, d) would not fit for pools of thousands of classes.
    """

    damped: Tensor
    amplified: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        z = z - (z @ self.damped) @ self.damped.T
        return z + (z @ self.amplified) @ self.amplified.T


def readout_metric(features: Tensor, labels: Tensor, params: Metric) -> ReadoutMetric:
    """Of readouts (n, d) of images with labels (n,).

    Without a class of two images nothing is damped, without two classes nothing amplified.
    """
    none = features.new_zeros(features.shape[1], DIRECTIONS)
    _, labels = labels.unique(return_inverse=True)
    means = _class_means(features, labels)
    damped = _scaled(none, features - means[labels], params.strength, -params.within)
    means = ReadoutMetric(damped, none)(means)
    amplified = _scaled(none, means - means.mean(0), params.strength, params.between)
    return ReadoutMetric(damped, amplified)


def _class_means(features: Tensor, labels: Tensor) -> Tensor:
    """(classes, d) of labels 0, 1, ..."""
    sums = features.new_zeros(int(labels.max()) + 1, features.shape[1])
    return sums.index_add(0, labels, features) / labels.bincount()[:, None]


def _scaled(none: Tensor, rows: Tensor, strength: float, exponent: float) -> Tensor:
    """Leading directions of the rows' covariance C, times sqrt(|(1 + c v)^exponent - 1|).

    v is a direction's variance when that of all is 1 on average.
    """
    total = rows.square().sum()
    if total == 0:
        return none
    variance, directions = principal_directions(rows, DIRECTIONS)
    change = (1 + strength * variance * none.shape[0] * len(rows) / total) ** exponent - 1
    scaled = none.clone()
    scaled[:, : len(variance)] = directions * change.abs().sqrt()
    return scaled
