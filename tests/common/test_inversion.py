from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stages.common.architectures import bn_layers, build
from stages.common.inversion import (
    bn_statistics_distance,
    inversion_loss,
    total_variation,
)
from stages.common.params import InversionWeights
from stages.common.seeds import generator
from stages.common.teachers import shown_to, teacher_loss
from tests.conftest import teacher_info

WEIGHTS = InversionWeights(tv=1e-2, l2=1e-2, bn_statistics=0.1)


def test_total_variation_of_two_by_two_by_hand() -> None:
    x = torch.tensor([[1.0, 4.0], [3.0, 10.0]]).view(1, 1, 2, 2)
    # columns: (-3, -7); rows: (-2, -6); diagonal: -9; anti-diagonal: 3 - 4 = -1
    expected = (9 + 49) ** 0.5 + (4 + 36) ** 0.5 + 9 + 1
    assert total_variation(x).item() == pytest.approx(expected)


def test_total_variation_is_one_norm_over_the_whole_batch() -> None:
    x = torch.randn(1, 3, 6, 6)
    twice = torch.cat([x, x])
    assert total_variation(twice).item() == pytest.approx(2**0.5 * total_variation(x).item())


def test_bn_distance_by_hand() -> None:
    moments = [(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0]))]
    reference = [(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]))]
    assert bn_statistics_distance(moments, reference).item() == pytest.approx(5 + 2)
    assert bn_statistics_distance(moments, moments).item() == 0


def _teacher(size: int = 16) -> torch.nn.Module:
    g = generator(0, "test")
    net = build("conv4", 3, size, generator=g)
    net.train()(torch.randn(16, 3, size, size, generator=g))
    return net.eval().requires_grad_(False)


def test_loss_equals_a_transcription_with_hooks(double: None) -> None:
    """DeepInversion's way: forward hooks that read each BatchNorm's input."""
    net = _teacher()
    x, y = torch.randn(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2])
    terms: list[torch.Tensor] = []

    def hook(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        flat = inputs[0].permute(1, 0, 2, 3).flatten(1)
        mean, var = flat.mean(1), flat.var(1, unbiased=False)
        terms.append((layer.running_mean - mean).norm() + (layer.running_var - var).norm())

    handles = [layer.register_forward_hook(hook) for _, layer in bn_layers(net)]
    expected = F.cross_entropy(net(x).logits, y)
    expected = expected + WEIGHTS.bn_statistics * sum(terms) + WEIGHTS.tv * total_variation(x)
    expected = expected + WEIGHTS.l2 * x.norm()
    for handle in handles:
        handle.remove()
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    loss = teacher_loss(build("conv4", 3, 16).eval(), WEIGHTS, "float32")(state, x, y)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-12)


def test_image_gradient_equals_finite_differences(double: None) -> None:
    net = _teacher()
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    loss = teacher_loss(build("conv4", 3, 16).eval(), WEIGHTS, "float32")
    x, y = torch.randn(3, 3, 16, 16, requires_grad=True), torch.tensor([0, 1, 2])
    (gradient,) = torch.autograd.grad(loss(state, x, y).total, x)
    direction = torch.randn_like(x)
    eps = 1e-6
    with torch.no_grad():
        ahead = loss(state, x + eps * direction, y).total
        behind = loss(state, x - eps * direction, y).total
    numeric = (ahead - behind).item() / (2 * eps)
    assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("deviation", [0.25, 1 / 255])
def test_compiled_equals_eager(deviation: float, double: None) -> None:
    """Also for a teacher that takes pixels of 0 to 255, whose images are converted."""
    net, info = _teacher(), teacher_info(0, std=(deviation,) * 3)
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    eager = teacher_loss(build("conv4", 3, 16).eval(), WEIGHTS, "float32", shown_to(info))
    compiled = torch.compile(eager, dynamic=False)
    x, y = torch.randn(4, 3, 16, 16, requires_grad=True), torch.tensor([0, 1, 2, 2])
    losses, gradients = [], []
    for loss in (eager, compiled):
        value = loss(state, x, y).total
        losses.append(value.item())
        gradients.append(torch.autograd.grad(value, x)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_compiled_half_precision_is_near_eager() -> None:
    net = _teacher()
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    eager = teacher_loss(build("conv4", 3, 16).eval(), WEIGHTS, "bfloat16")
    x = torch.randn(8, 3, 16, 16, generator=generator(0, "x")).requires_grad_()
    y = torch.arange(8) % 3
    found = []
    for loss in (eager, torch.compile(eager, dynamic=False)):
        value = loss(state, x, y).total
        found.append((value.item(), *torch.autograd.grad(value, x)))
    (one, near), (other, right) = found
    assert one == pytest.approx(other, rel=0.01)
    assert F.cosine_similarity(near.flatten(), right.flatten(), dim=0) > 0.99


def test_half_precision_is_the_forward_pass_alone() -> None:
    """Moments and terms are those of the half-precise outputs, computed exactly."""
    net = _teacher()
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    x = torch.randn(8, 3, 16, 16, generator=generator(0, "x")).requires_grad_()
    y = torch.arange(8) % 3
    found = teacher_loss(build("conv4", 3, 16).eval(), WEIGHTS, "bfloat16")(state, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x)
    assert output.logits.dtype == torch.bfloat16
    seen = [z.detach().double() for z in output.bn_inputs]
    reference = [(layer.running_mean, layer.running_var) for _, layer in bn_layers(net)]
    moments = [(z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)) for z in seen]
    distance = bn_statistics_distance(moments, reference)
    assert found.total.dtype == torch.float32
    assert found.bn_statistics.item() == pytest.approx(distance.item(), rel=1e-4)
    expected = F.cross_entropy(output.logits.float(), y)
    assert found.cross_entropy.item() == pytest.approx(expected.item(), rel=1e-5)
    exact = teacher_loss(build("conv4", 3, 16).eval(), WEIGHTS, "float32")(state, x, y)
    assert found.bn_statistics.item() != exact.bn_statistics.item()
    (near,), (right,) = (torch.autograd.grad(loss.total, x) for loss in (found, exact))
    assert F.cosine_similarity(near.flatten(), right.flatten(), dim=0) > 0.99


def test_without_reference_there_is_no_bn_term() -> None:
    net = _teacher()
    x, y = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    loss = inversion_loss(net(x), x, y, [], WEIGHTS)
    assert loss.bn_statistics.item() == 0
