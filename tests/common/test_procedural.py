from __future__ import annotations

import pytest
import torch

from stages.common import procedural
from stages.common.procedural import one_over_f, procedural_images
from stages.common.seeds import generator


def test_images_are_drawn_from_the_stream_alone() -> None:
    torch.manual_seed(1)
    first = procedural_images(300, 20, generator(0, "x"))
    torch.manual_seed(2)
    again = procedural_images(300, 20, generator(0, "x"))
    other = procedural_images(300, 20, generator(1, "x"))
    assert first.shape == (300, 20, 20, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 300
    assert procedural_images(0, 20, generator(0, "x")).shape == (0, 20, 20, 3)


@pytest.mark.parametrize("size", [16, 32, 84])
def test_their_spectrum_falls_as_that_of_natural_images(size: int) -> None:
    """Amplitude goes as 1/f^a with a about 1; white noise has a = 0."""
    pixels = procedural_images(200, size, generator(0, "x")).float().mean(3)
    exponent = -_slope(pixels)
    assert 0.7 < exponent < 1.6
    assert 40 < pixels.std() < 90  # neither grey nor only black and white


def test_they_are_mostly_grey() -> None:
    pixels = procedural_images(200, 16, generator(0, "x")).float() / 255
    chroma = (pixels - pixels.mean(3, keepdim=True)).std()
    assert 0.03 < chroma < pixels.std() / 2


def test_noise_has_the_spectrum_it_is_named_for() -> None:
    noise = one_over_f(400, 64, generator(0, "noise"))
    assert noise.mean((1, 2)).abs().max() < 1e-4
    assert torch.allclose(noise.std((1, 2)), torch.ones(400), atol=1e-4)
    slopes = torch.tensor([-_slope(image[None]) for image in noise])
    assert 0.5 < slopes.min() < 0.75  # exponents are uniform in 0.6 .. 1.6
    assert 1.45 < slopes.max() < 1.7


def _slope(images: torch.Tensor) -> float:
    """Of the logarithm of the mean amplitude over the logarithm of the frequency."""
    size = images.shape[1]
    power = torch.fft.rfft2(images - images.mean()).abs().square().mean(0)
    f = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :])
    inside = (f > 0) & (f < 0.5)
    x, y = f[inside].log(), power[inside].log() / 2
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def test_radii_follow_their_power_law() -> None:
    """A density that falls as r^-2.5 between the smallest and the largest."""
    draw = procedural._Draw(20_000, generator(0, "r"))
    y, x = torch.meshgrid(*[(torch.arange(2) + 0.5) / 2] * 2, indexing="ij")
    radius = procedural._own_coordinates(draw, x, y)[2].flatten()
    low, high = (r**-1.5 for r in procedural.RADIUS)
    for share in (0.25, 0.5, 0.75):
        expected = (low + share * (high - low)) ** (-1 / 1.5)
        assert radius.quantile(share).item() == pytest.approx(expected, rel=0.03)


def test_they_stay_what_they_were() -> None:
    """Whoever changes them changes every number of distillation: then these, and METHODS 5."""
    means = procedural_images(64, 32, generator(0, "pin")).float().mean((1, 2, 3))[:8]
    expected = [145.6, 184.4, 160.3, 124.7, 112.7, 173.3, 150.1, 102.6]
    assert means.tolist() == pytest.approx(expected, abs=0.5)
