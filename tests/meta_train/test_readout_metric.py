"""The metric of a distilled network's readout, against its formula with whole matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.common.seeds import generator
from stages.meta_train.params import Metric
from stages.meta_train.readout_metric import ReadoutMetric, readout_metric

PARAMS = Metric(strength=0.67, within=0.25, between=0.125)
N, D = 60, 7
LABELS = torch.arange(N) % 4 + 3  # any numbers


def readouts(labels: Tensor = LABELS) -> Tensor:
    """Classes differ in one direction, images of a class mostly in another."""
    stream = generator(0, "readouts")
    z = torch.randn(len(labels), D, generator=stream)
    z[:, 0] += labels
    z[:, 1] *= 5
    return z


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def formula(z: Tensor, labels: Tensor) -> Tensor:
    """(I + c B)^beta (I + c W)^-alpha, B of the means after the second factor."""
    identity = torch.eye(D)

    def plus(covariance: Tensor) -> Tensor:
        return identity + 0.67 * covariance * D / covariance.trace()

    means = {int(c): z[labels == c].mean(0) for c in labels.unique()}
    rest = torch.stack([row - means[int(c)] for row, c in zip(z, labels, strict=True)])
    first = power(plus(rest.T @ rest), -0.25)
    moved = torch.stack(list(means.values())) @ first
    moved = moved - moved.mean(0)
    return first @ power(plus(moved.T @ moved), 0.125)


def test_it_is_the_formula(double: None) -> None:
    z = readouts()
    found = readout_metric(z, LABELS, PARAMS)(z)
    assert torch.allclose(found, z @ formula(z, LABELS), rtol=1e-9)


def test_what_tells_classes_apart_grows_against_what_does_not(double: None) -> None:
    z = readouts()
    moved = readout_metric(z, LABELS, PARAMS)(torch.eye(D))
    lengths = moved.norm(dim=1)
    assert lengths.argmax() == 0
    assert lengths.argmin() == 1


@pytest.mark.parametrize(
    ("labels", "damps", "amplifies"),
    [(torch.arange(N), False, True), (torch.zeros(N).long(), True, False)],
)
def test_single_images_and_a_single_class_say_nothing(
    double: None, labels: Tensor, damps: bool, amplifies: bool
) -> None:
    found = readout_metric(readouts(labels), labels, PARAMS)
    assert bool(found.damped.any()) == damps
    assert bool(found.amplified.any()) == amplifies


def test_exponents_of_zero_change_nothing(double: None) -> None:
    z = readouts()
    found = readout_metric(z, LABELS, Metric(strength=0.67, within=0.0, between=0.0))
    assert torch.equal(found(z), z)


def test_more_features_than_images_are_fine() -> None:
    z = torch.randn(6, 300, generator=generator(0, "wide"))
    found = readout_metric(z, torch.arange(6) % 2, PARAMS)
    assert isinstance(found, ReadoutMetric)
    assert found.damped.shape == found.amplified.shape == (300, 128)
    assert torch.isfinite(found(z)).all()
