from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.episodes import Episode
from stages.common.learner import Learner, Theta, initial_theta
from stages.common.meta_learners import (
    META_LEARNERS,
    Outer,
    OuterLoop,
    adam_state,
    load_adam_state,
    outer_loss,
)
from stages.common.seeds import generator

LR = 0.1


@pytest.fixture
def learner(double: None) -> Learner:
    return Learner("conv4", 3, 16)


@pytest.fixture
def theta(double: None) -> Theta:
    drawn = initial_theta("conv4", 3, 16, generator(0, "theta"))
    return {n: p.double().contiguous().requires_grad_() for n, p in drawn.items()}


@pytest.fixture
def episode(double: None) -> Episode:
    g, labels = generator(0, "episode"), torch.arange(3)
    support, query = torch.randn(6, 3, 16, 16, generator=g), torch.randn(9, 3, 16, 16, generator=g)
    return Episode(support, labels.repeat_interleave(2), query, labels.repeat_interleave(3))


@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("name", META_LEARNERS)
def test_the_meta_gradient_equals_finite_differences(
    name: str, inner_steps: int, learner: Learner, theta: Theta, episode: Episode
) -> None:
    """At two coordinates of each tensor: the steepest, and a drawn one."""
    loss = outer_loss(name, learner, theta, episode, LR, inner_steps).loss
    found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
    gradient = dict(zip(theta, found, strict=True))
    stream, eps = generator(1, "coordinates"), 1e-6
    for key in ("convs.0.weight", "convs.3.weight", "norms.1.weight", "norms.2.bias", "head.bias"):
        known, p = gradient[key], theta[key].detach()
        slope = torch.zeros_like(p) if known is None else known
        for i in (int(slope.abs().argmax()), int(torch.randint(p.numel(), (), generator=stream))):
            ends = []
            for sign in (1, -1):
                moved = p.clone()
                moved.view(-1)[i] += sign * eps
                at = {**theta, key: moved}
                ends.append(outer_loss(name, learner, at, episode, LR, inner_steps).loss.item())
            numeric = (ends[0] - ends[1]) / (2 * eps)
            assert slope.flatten()[i].item() == pytest.approx(numeric, rel=1e-5, abs=2e-9), key


def _anil_by_hand(learner: Learner, theta: Theta, episode: Episode, steps: int) -> Tensor:
    """Query logits: linear regression on fixed features, its gradient written out."""
    z = learner.forward(theta, episode.support_x).features
    targets = F.one_hot(episode.support_y, 3).double()
    weight, bias = theta["head.weight"], theta["head.bias"]
    for _ in range(steps):
        error = ((z @ weight.T + bias).softmax(1) - targets) / len(z)
        weight, bias = weight - LR * error.T @ z, bias - LR * error.sum(0)
    return learner.forward(theta, episode.query_x).features @ weight.T + bias


@pytest.mark.parametrize("steps", [1, 3])
def test_anil_adapts_the_head_alone(
    steps: int, learner: Learner, theta: Theta, episode: Episode
) -> None:
    found = META_LEARNERS["anil"].query_logits(learner, theta, episode, LR, steps)
    expected = _anil_by_hand(learner, theta, episode, steps)
    assert torch.allclose(found, expected, atol=1e-10)
    maml = META_LEARNERS["maml"].query_logits(learner, theta, episode, LR, steps)
    assert not torch.allclose(found, maml, atol=1e-3)
    # Second order: the inner steps' own dependence on the backbone is in the gradient.
    of = list(theta.values())
    gradients = [
        torch.autograd.grad(F.cross_entropy(logits, episode.query_y), of)
        for logits in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_a_prototypical_network_measures_distances(
    learner: Learner, theta: Theta, episode: Episode
) -> None:
    found = META_LEARNERS["protonet"].query_logits(learner, theta, episode, LR, 1)
    support = learner.forward(theta, episode.support_x).features
    query = learner.forward(theta, episode.query_x).features
    means = [support[episode.support_y == k].mean(0) for k in range(3)]
    expected = torch.stack([torch.stack([-(z - c).square().sum() for c in means]) for z in query])
    constant = (found - expected).detach()
    assert torch.allclose(constant, constant[:, :1].expand_as(constant), atol=1e-10)
    assert torch.allclose(found.softmax(1), expected.softmax(1), atol=1e-10)

    outer = outer_loss("protonet", learner, theta, episode, LR, 1)
    assert outer.loss.item() == pytest.approx(F.cross_entropy(expected, episode.query_y).item())
    right = (expected.argmax(1) == episode.query_y).sum().item()
    assert outer.accuracy.item() == pytest.approx(right / 9)
    gradient = torch.autograd.grad(outer.loss, list(theta.values()), allow_unused=True)
    without = {n for n, g in zip(theta, gradient, strict=True) if g is None}
    assert without == {"head.weight", "head.bias"}


def _line(theta: Theta, episode: Episode) -> Outer:
    """(w . x - 1)^2, and (late - 1)^2 where the query labels say so; `never` has no part."""
    loss = ((theta["w"] * episode.support_x).sum() - 1) ** 2
    if episode.query_y.any():
        loss = loss + ((theta["late"] - 1) ** 2).sum()
    return Outer(loss, episode.support_x.mean())


def _start() -> OuterLoop:
    theta = {"w": torch.tensor([0.5, -2.0]), "late": torch.zeros(1), "never": torch.ones(3)}
    return OuterLoop(theta, _line, 0.01)


def _points(t: int) -> list[Episode]:
    """Two episodes of iteration t; `late` matters from iteration 4 on."""
    late, none = torch.tensor([t >= 4]), torch.zeros(0)
    xs = torch.randn(2, 2, generator=generator(t, "points"))
    return [Episode(x, none, none, late) for x in xs]


def test_an_outer_step_is_one_adam_step_on_the_sum_of_losses(double: None) -> None:
    loop = _start()
    w, m, v = loop.theta["w"].detach().clone(), torch.zeros(2), torch.zeros(2)
    for t in range(3):
        points = _points(t)
        record = loop.step(points)
        residuals = [(w @ e.support_x - 1).item() for e in points]
        gradient = sum(2 * r * e.support_x for r, e in zip(residuals, points, strict=True))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        scale = v / (1 - 0.999 ** (t + 1))
        w = w - 0.01 * m / (1 - 0.9 ** (t + 1)) / (scale.sqrt() + 1e-8)
        assert loop.theta["w"].grad is not None
        assert torch.allclose(loop.theta["w"].grad, gradient)  # Adam itself hardly sees a scale
        assert torch.allclose(loop.snapshot()["w"], w, rtol=0, atol=1e-13)
        assert record["outer_loss"] == pytest.approx(sum(r * r for r in residuals) / 2)
        accuracy = sum(e.support_x.mean().item() for e in points) / 2
        assert record["outer_accuracy"] == pytest.approx(accuracy)
    assert torch.equal(loop.theta["never"], torch.ones(3))
    assert not loop.snapshot()["w"].requires_grad


@pytest.mark.parametrize("pause", [0, 3, 5])
def test_adam_goes_on_exactly_from_its_state(pause: int) -> None:
    """Paused at 0 nothing has moments, at 3 only `w` has, at 5 `late` too."""
    whole, first, second = _start(), _start(), _start()
    records = [whole.step(_points(t)) for t in range(8)]
    for t in range(pause):
        first.step(_points(t))
    state = {name: t.clone() for name, t in adam_state({"theta": first.optimizer}).items()}
    stepped = {name.split(".")[1] for name in state if name.endswith(".step")}
    assert stepped == {0: set(), 3: {"0"}, 5: {"0", "1"}}[pause]
    with torch.no_grad():
        for p in second.theta.values():
            p.fill_(math.nan)
    load_adam_state({"theta": second.optimizer}, state)
    assert [second.step(_points(t)) for t in range(pause, 8)] == records[pause:]
    expected = adam_state({"theta": whole.optimizer})
    found = adam_state({"theta": second.optimizer})
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_each_optimizer_gets_its_own_state() -> None:
    def optimizers() -> dict[str, torch.optim.Adam]:
        return {name: torch.optim.Adam([torch.ones(2)], 0.1) for name in ("images", "theta")}

    ours, theirs = optimizers(), optimizers()
    for value, optimizer in enumerate(ours.values(), start=1):
        (p,) = optimizer.param_groups[0]["params"]
        p.grad = torch.full((2,), float(value))
        optimizer.step()
    load_adam_state(theirs, adam_state(ours))
    for value, optimizer in enumerate(theirs.values(), start=1):
        (p,) = optimizer.param_groups[0]["params"]
        assert torch.allclose(optimizer.state[p]["exp_avg"], torch.full((2,), 0.1 * value))
        assert torch.allclose(p, torch.full((2,), 0.9))
