from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from stages.common.architectures import ARCHITECTURES, batch_moments, bn_layers, build
from stages.common.seeds import generator
from stages.interface.errors import BadInput


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        # conv 3->32: 896, three conv 32->32: 9,248 each, four BatchNorm: 64 each, head 128x5 + 5
        ("conv4", 896 + 3 * 9_248 + 4 * 64 + 645),
        # stem, four stages of one block (convolutions, BatchNorm, shortcut), head 512x5 + 5
        ("resnet10", 1_856 + 73_984 + 230_144 + 919_040 + 3_673_088 + 2_565),
        # torchvision's without its head, a 3x3 instead of a 7x7 stem
        ("resnet18", 11_176_512 - 3 * 64 * 49 + 3 * 64 * 9 + 2_565),
    ],
)
def test_parameter_counts_by_hand(name: str, n_parameters: int) -> None:
    net = build(name, 5, 32)
    assert sum(p.numel() for p in net.parameters()) == n_parameters


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bn_inputs_come_in_the_order_of_the_layers(name: str) -> None:
    net = build(name, 5, 32).eval()
    seen: list[torch.Tensor] = []
    for _, layer in bn_layers(net):
        layer.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
    order = [layer.num_features for _, layer in bn_layers(net)]
    with torch.no_grad():
        output = net(torch.randn(2, 3, 32, 32))
    assert [x.shape[1] for x in output.bn_inputs] == order
    assert all(torch.equal(a, b) for a, b in zip(output.bn_inputs, seen, strict=True))
    assert output.logits.shape == (2, 5)
    assert torch.allclose(net.head(output.features), output.logits)


@pytest.mark.parametrize("name", ["conv4", "resnet10"])
def test_teacher_and_learner_share_parameter_names(name: str) -> None:
    teacher = build(name, 5, 32)
    learner = build(name, 5, 32, batch_statistics=True)
    assert [n for n, _ in teacher.named_parameters()] == [n for n, _ in learner.named_parameters()]
    assert not list(learner.buffers())


def test_moments_are_mean_and_biased_variance(double: None) -> None:
    x = torch.randn(4, 3, 5, 6)
    ((mean, var),) = batch_moments([x])
    assert torch.allclose(mean, x.mean((0, 2, 3)))
    assert torch.allclose(var, x.var((0, 2, 3), correction=0))


def test_weights_come_from_the_stream_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = build("conv4", 5, 32, generator=generator(0, "a"))
    assert torch.equal(torch.rand(1), expected)
    two = build("conv4", 5, 32, generator=generator(0, "a"))
    other = build("conv4", 5, 32, generator=generator(0, "b"))
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_conv4_is_convolution_batch_norm_relu_and_pooling_in_any_equal_order() -> None:
    """It pools before the ReLU; outputs and gradients are those of the usual order, to the bit."""
    torch.manual_seed(0)
    net = build("conv4", 5, 20).train()
    for norm in net.norms:  # type: ignore[union-attr]
        torch.nn.init.normal_(norm.weight)  # of both signs
    x = torch.randn(8, 3, 20, 20, requires_grad=True)

    def usual() -> torch.Tensor:
        z = x
        for conv, norm in zip(net.convs, net.norms, strict=True):  # type: ignore[arg-type]
            z = F.max_pool2d(F.relu(norm(conv(z))), 2)
        return z.flatten(1)

    found, expected = net(x).features, usual()
    assert torch.equal(found, expected)
    wanted = [x, *(p for name, p in net.named_parameters() if not name.startswith("head"))]
    gradients = [torch.autograd.grad(z.square().sum(), wanted) for z in (found, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(BadInput, match=r"image_size = 8: Conv4 .* allowed: 16 or more"):
        build("conv4", 5, 8)


def test_resnet18_computes_what_torchvisions_does(double: None) -> None:
    torch.manual_seed(0)
    ours, theirs = build("resnet18", 5, 32), models.resnet18(num_classes=5)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    theirs.train()(torch.randn(8, 3, 32, 32))  # statistics of some batch
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(ours.eval()(x).logits, theirs.eval()(x))
