from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.common.architectures import build
from stages.common.learner import Learner, Theta
from stages.common.pool import Teacher, load_pool
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_train.ota import assignment, fuse
from tests.conftest import random_state, teacher_info


def make_teacher(index: int, n_pixels: int = 16, **changes: object) -> Teacher:
    """Every parameter is drawn, so that a bias or BatchNorm weight left behind shows."""
    info = teacher_info(index, image_size=n_pixels, **changes)
    net = build(info.architecture, info.n_outputs, info.image_size).double()
    net.load_state_dict(random_state(info))
    g = generator(index, "test")
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 1:
                p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    return Teacher(info, net.requires_grad_(False).eval())


def shuffled(teacher: Teacher, seed: int) -> Teacher:
    """The same function, every layer's units in another order."""
    g = generator(seed, "shuffle")
    state = {name: p.clone() for name, p in teacher.net.named_parameters()}
    order = torch.arange(3)
    for layer in range(4):
        weight = state[f"convs.{layer}.weight"][:, order]
        order = torch.randperm(len(weight), generator=g)
        state[f"convs.{layer}.weight"] = weight[order]
        for name in (f"convs.{layer}.bias", f"norms.{layer}.weight", f"norms.{layer}.bias"):
            state[name] = state[name][order]
    head = state["head.weight"]
    size = head.shape[1] // len(order)
    columns = [int(channel) * size + s for channel in order for s in range(size)]
    state["head.weight"] = head[:, columns]
    net = build(teacher.info.architecture, teacher.info.n_outputs, teacher.info.image_size)
    net.double().load_state_dict(state, strict=False)
    return Teacher(teacher.info, net.requires_grad_(False).eval())


def logits(theta: Theta, teacher: Teacher) -> Tensor:
    info = teacher.info
    x = torch.randn(6, 3, info.image_size, info.image_size, generator=generator(0, "x"))
    learner = Learner(info.architecture, info.n_outputs, info.image_size)
    return learner.forward(theta, x.double()).logits


def parameters(teacher: Teacher) -> Theta:
    return dict(teacher.net.named_parameters())


@pytest.mark.parametrize(("architecture", "n_pixels"), [("conv4", 16), ("conv4_64", 32)])
def test_a_network_and_its_shufflings_fuse_to_the_network(architecture: str, n_pixels: int) -> None:
    reference = make_teacher(0, n_pixels, architecture=architecture)
    pool = [shuffled(reference, 1), reference, shuffled(reference, 2)]
    expected = logits(parameters(reference), reference)
    assert torch.allclose(logits(parameters(pool[0]), reference), expected, atol=1e-9)
    fused = fuse(pool, 1)
    assert list(fused) == list(parameters(reference))
    for name, p in fused.items():
        assert torch.allclose(p, parameters(reference)[name], rtol=1e-14), name
    assert torch.allclose(logits(fused, reference), expected, atol=1e-10)
    plain = {n: torch.stack([parameters(t)[n] for t in pool]).mean(0) for n in fused}
    assert not torch.allclose(logits(plain, reference), expected, atol=1e-2)


def test_the_order_of_a_teachers_units_does_not_matter() -> None:
    pool = [make_teacher(i) for i in range(3)]
    fused = fuse(pool, 0)
    again = fuse([pool[0], shuffled(pool[1], 5), shuffled(pool[2], 6)], 0)
    for name, p in fused.items():
        assert torch.equal(p, again[name]), name
    plain = torch.stack([parameters(t)["convs.0.weight"] for t in pool]).mean(0)
    assert not torch.allclose(fused["convs.0.weight"], plain, atol=1e-2)
    head_bias = torch.stack([parameters(t)["head.bias"] for t in pool]).mean(0)
    assert torch.allclose(fused["head.bias"], head_bias)  # outputs are not aligned


def test_it_is_closer_to_the_reference_than_the_average_and_changes_nothing() -> None:
    pool = [make_teacher(i) for i in range(2)]
    before = {name: p.clone() for name, p in parameters(pool[1]).items()}
    fused = fuse(pool, 0)["convs.0.weight"]
    weights = [parameters(t)["convs.0.weight"] for t in pool]
    assert (fused - weights[0]).norm() < ((weights[0] + weights[1]) / 2 - weights[0]).norm()
    assert all(torch.equal(p, before[name]) for name, p in parameters(pool[1]).items())


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_the_assignment_is_the_best_of_all(width: int) -> None:
    for seed in range(10):
        target, rows = torch.randn(2, width, 3, generator=generator(seed, "rows"))
        costs = {
            p: (target - rows[list(p)]).square().sum().item()
            for p in itertools.permutations(range(width))
        }
        assert tuple(assignment(target, rows).tolist()) == min(costs, key=costs.__getitem__)


def test_resnets_are_refused() -> None:
    pool = [make_teacher(i, architecture="resnet10") for i in range(2)]
    with pytest.raises(BadInput, match="is a resnet10; allowed: conv4, conv4_64"):
        fuse(pool, 0)


def test_a_loaded_pool_fuses_to_a_learner(tiny_pool: Path) -> None:
    pool = load_pool(tiny_pool)
    fused = fuse(pool, 2)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in fused.values())
    assert fused["convs.1.weight"].is_contiguous(memory_format=torch.channels_last)
    learner = Learner("conv4", 3, 16)
    assert learner.forward(fused, torch.randn(2, 3, 16, 16)).logits.isfinite().all()
