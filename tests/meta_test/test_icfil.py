"""ICFIL against a transcription of METHODS 1.4."""

from __future__ import annotations

import pytest
import torch

from stages.common.architectures import batch_moments
from stages.common.inversion import inversion_loss
from stages.common.learner import Learner, Theta, adapt, initial_theta
from stages.common.seeds import generator
from stages.meta_test import icfil
from stages.meta_test.one_step import outputs
from tests.conftest import learner_info
from tests.meta_test.test_adaptations import SETTINGS, _episode

NORM = learner_info().normalisation


def _learner() -> tuple[Learner, Theta]:
    theta = initial_theta("conv4", 3, 16, generator(0, "x"))
    return Learner("conv4", 3, 16), {name: p.double() for name, p in theta.items()}


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_features_are_those_of_the_calibrated_learner(double: None, batch_norm: str) -> None:
    """Inner loop, pseudo images of what it gives, calibration of that by them."""
    own, episode, (net, theta) = SETTINGS.icfil, _episode(torch.float64), _learner()
    loop = SETTINGS.one_step.model_copy(update={"inner_lr": 0.3})
    x, y = episode.support_x, episode.support_y
    adapted = adapt(net, theta, x, y, 0.3, loop.inner_steps)
    pseudo_y = torch.arange(3).repeat_interleave(own.pseudo_per_class)
    pseudo = icfil.synthesize(net, adapted, x, pseudo_y, NORM, own, generator(0, "n"))
    moved = icfil.calibrate(net, adapted, x, y, pseudo, pseudo_y, own)
    expected = outputs(net, moved, episode, batch_norm)  # type: ignore[arg-type]
    stream = generator(0, "n")
    given = (net, theta, episode, NORM, loop, own, batch_norm, stream)
    for part, wanted in zip(icfil.calibrated_features(*given), expected, strict=True):  # type: ignore[arg-type]
        assert torch.allclose(part, wanted.features, atol=1e-12)


def test_pseudo_images_of_one_step_equal_a_transcription(double: None) -> None:
    own = SETTINGS.icfil.model_copy(update={"inversion_steps": 1})
    x, (net, theta) = _episode(torch.float64).support_x, _learner()
    y = torch.arange(3).repeat_interleave(4)
    found = icfil.synthesize(net, theta, x, y, NORM, own, generator(0, "n"))
    stream = generator(0, "n")
    begun = torch.randn(12, 3, 16, 16, generator=stream).requires_grad_()
    (roll,) = torch.randint(-own.max_roll, own.max_roll + 1, (1, 2), generator=stream).tolist()
    assert any(roll)
    seen = begun.roll(roll, (2, 3))
    reference = batch_moments(net.forward(theta, x).bn_inputs)
    inversion_loss(net.forward(theta, seen), seen, y, reference, own.weights).total.backward()
    assert begun.grad is not None
    step = own.inversion_lr * begun.grad / (begun.grad.abs() + 1e-8)  # Adam's first
    assert torch.allclose(found, (begun - step).detach(), atol=1e-6)
