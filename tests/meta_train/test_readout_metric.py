"""The metric of a distilled network's readout, against its formula with whole matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.common.distilled import N_COMMON
from stages.common.seeds import generator
from stages.meta_train.params import Metric
from stages.meta_train.readout_metric import MIN_IMAGES, readout_metric, views

PARAMS = Metric(strength=0.67, within=0.25, between=0.125, common=0.1)
NOTHING = Metric(strength=0.67, within=0.0, between=0.0, common=0.0)
N, D = 60, 7
LABELS = torch.arange(N) % 4 + 3  # any numbers


def readouts(labels: Tensor = LABELS) -> Tensor:
    """Classes differ in one direction, images of a class mostly in another."""
    stream = generator(0, "readouts")
    z = torch.randn(len(labels), D, generator=stream)
    z[:, 0] += labels
    z[:, 1] *= 5
    return z


def power(covariance: Tensor, exponent: float, n_directions: int) -> Tensor:
    """(I + c C)^exponent on the leading directions of C, scaled to a mean variance of 1."""
    values, vectors = torch.linalg.eigh(covariance * D / covariance.trace())
    factors = (1 + 0.67 * values) ** exponent
    factors[: D - n_directions] = 1
    return vectors @ torch.diag(factors) @ vectors.T


def formula(z: Tensor, labels: Tensor, n_directions: int) -> Tensor:
    """(I + c W)^-alpha (I + c B)^beta (I + c T)^-gamma for rows, each made of what comes before."""
    means = {int(c): z[labels == c].mean(0) for c in labels.unique()}
    rest = torch.stack([row - means[int(c)] for row, c in zip(z, labels, strict=True)])
    first = power(rest.T @ rest, -0.25, n_directions)
    moved = torch.stack(list(means.values())) @ first
    moved = moved - moved.mean(0)
    second = first @ power(moved.T @ moved, 0.125, n_directions)
    return second @ power((z @ second).T @ (z @ second), -0.1, N_COMMON)


@pytest.mark.parametrize("n_directions", [D, 2, 1])
def test_it_is_the_formula(double: None, n_directions: int) -> None:
    z = readouts()
    found = readout_metric(z[None], LABELS, PARAMS, n_directions)(z)
    assert torch.allclose(found, z @ formula(z, LABELS, n_directions), rtol=1e-9)


def test_views_count_as_images_of_the_same_class(double: None) -> None:
    z = readouts()
    other = z + torch.randn(z.shape, generator=generator(0, "views"))
    found = readout_metric(torch.stack([z, other]), LABELS, PARAMS, D)(z)
    both = formula(torch.cat([z, other]), LABELS.repeat(2), D)
    assert torch.allclose(found, z @ both, rtol=1e-9)


def test_views_do_not_make_a_class_larger() -> None:
    labels = torch.arange(N) % (N // (MIN_IMAGES - 1))
    z = readouts(labels)
    assert not any(part.any() for part in readout_metric(torch.stack([z, z]), labels, PARAMS, D))


def test_what_all_images_have_in_common_is_damped(double: None) -> None:
    """Their mean, by hand; the formula above has the other direction too."""
    z = readouts()
    z[:, 2] += 30
    found = readout_metric(z[None], LABELS, PARAMS.model_copy(update={"between": 0.0}), D)
    without = readout_metric(
        z[None], LABELS, PARAMS.model_copy(update={"between": 0.0, "common": 0.0}), D
    )
    assert not without.common.any()
    seen = without(z)
    mean = seen.mean(0) / seen.mean(0).norm()
    share = 1 - ((found(z) @ mean) / (seen @ mean)).mean()
    square = (seen.square().sum(1).mean() / D).item()
    expected = 1 - (1 + 0.67 * (seen @ mean).square().mean().item() / square) ** -0.1
    assert share.item() == pytest.approx(expected, rel=0.01)
    assert found.common[:, 0].abs().argmax() == 2


def test_a_view_is_the_image_its_luma_or_a_turn() -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]])
    images = colours.to(torch.uint8).reshape(5, 1, 1, 3)
    same, grey, _ = views(images)
    assert torch.equal(same, images)
    assert grey.flatten(1).tolist() == [[v] * 3 for v in (76, 150, 29, 255, 18)]
    corners = torch.tensor([[1, 2], [3, 4]]).to(torch.uint8)[None, ..., None].expand(1, 2, 2, 3)
    turned = views(corners)[2]
    assert turned[0, ..., 0].tolist() == [[2, 4], [1, 3]]


def test_what_tells_classes_apart_grows_against_what_does_not(double: None) -> None:
    z = readouts()
    moved = readout_metric(z[None], LABELS, PARAMS, D)(torch.eye(D))
    lengths = moved.norm(dim=1)
    assert lengths.argmax() == 0
    assert lengths.argmin() == 1


def test_a_class_of_few_images_takes_no_part(double: None) -> None:
    z, few = readouts(), torch.randn(MIN_IMAGES - 1, D)
    labels = torch.cat([LABELS, torch.full((len(few),), 99)])
    found = readout_metric(torch.cat([z, few])[None], labels, PARAMS, D)
    for one, other in zip(found, readout_metric(z[None], LABELS, PARAMS, D), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("labels", "damps"), [(torch.arange(N), False), (torch.zeros(N).long(), True)]
)
def test_single_images_say_nothing_and_a_single_class_not_what_tells_classes_apart(
    double: None, labels: Tensor, damps: bool
) -> None:
    found = readout_metric(readouts(labels)[None], labels, PARAMS, D)
    assert bool(found.damped.any()) == damps
    assert not found.amplified.any()
    assert found.damped.data_ptr() != found.amplified.data_ptr()  # safetensors refuses one tensor


def test_a_student_that_diverged_has_none() -> None:
    z = readouts()
    z[3, 2] = float("nan")
    assert not any(part.any() for part in readout_metric(z[None], LABELS, PARAMS, D))


def test_exponents_of_zero_change_nothing(double: None) -> None:
    z = readouts()
    found = readout_metric(z[None], LABELS, NOTHING, D)
    assert torch.equal(found(z), z)


def test_more_features_than_images_are_fine() -> None:
    z = torch.randn(12, 300, generator=generator(0, "wide"))
    found = readout_metric(z[None], torch.arange(12) % 2, PARAMS, 128)
    assert found.damped.shape == found.amplified.shape == (300, 128)
    assert found.common.shape == (300, N_COMMON)
    assert torch.isfinite(found(z)).all()
