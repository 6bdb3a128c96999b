from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from stages.common import learner as learner_module
from stages.common.architectures import batch_moments
from stages.common.episodes import Episode
from stages.common.files import save_tensors
from stages.common.learner import (
    Learner,
    adapt,
    initial_theta,
    iteration_of,
    load_learner,
    save_learner,
    snapshots,
)
from stages.common.meta_learners import outer_loss
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from tests.common.test_distilled import info as distilled_info
from tests.common.test_distilled import network
from tests.conftest import learner_info

INFO = learner_info(iteration=7)


def _problem() -> tuple[Learner, dict[str, torch.Tensor], Episode]:
    g = generator(0, "test")
    theta = {n: p.double() for n, p in initial_theta("conv4", 3, 16, g).items()}
    support_x = torch.randn(6, 3, 16, 16, generator=g, dtype=torch.float64)
    query_x = torch.randn(9, 3, 16, 16, generator=g, dtype=torch.float64)
    labels = torch.arange(3)
    episode = Episode(support_x, labels.repeat_interleave(2), query_x, labels.repeat_interleave(3))
    return Learner("conv4", 3, 16), theta, episode


def test_adapt_is_gradient_descent(double: None) -> None:
    learner, theta, episode = _problem()
    expected = {n: p.clone().requires_grad_() for n, p in theta.items()}
    for _ in range(2):
        loss = F.cross_entropy(
            learner.forward(expected, episode.support_x).logits, episode.support_y
        )
        gradient = torch.autograd.grad(loss, list(expected.values()))
        expected = {
            n: (p - 0.1 * g).detach().requires_grad_()
            for (n, p), g in zip(expected.items(), gradient, strict=True)
        }
    adapted = adapt(learner, theta, episode.support_x, episode.support_y, 0.1, 2)
    assert all(torch.allclose(adapted[n], expected[n], atol=1e-12) for n in theta)


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_meta_gradient_equals_finite_differences(double: None, inner_steps: int) -> None:
    """Second order, through affine BatchNorm with batch statistics: where vmap went wrong."""
    learner, theta, episode = _problem()
    theta = {n: p.requires_grad_() for n, p in theta.items()}
    loss = outer_loss("maml", learner, theta, episode, 0.1, inner_steps).loss
    gradient = torch.autograd.grad(loss, list(theta.values()))
    g = generator(1, "direction")
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in theta.values()]

    def at(eps: float) -> float:
        with torch.no_grad():
            moved = {n: p + eps * d for (n, p), d in zip(theta.items(), direction, strict=True)}
        return outer_loss("maml", learner, moved, episode, 0.1, inner_steps).loss.item()

    eps = 1e-6
    numeric = (at(eps) - at(-eps)) / (2 * eps)
    exact = sum((a * b).sum().item() for a, b in zip(gradient, direction, strict=True))
    assert exact == pytest.approx(numeric, rel=1e-5)
    # First order would not do: the test can tell the difference.
    adapted = adapt(learner, theta, episode.support_x, episode.support_y, 0.1, inner_steps)
    adapted = {n: p.detach().requires_grad_() for n, p in adapted.items()}
    first = F.cross_entropy(learner.forward(adapted, episode.query_x).logits, episode.query_y)
    first_order = sum(
        (a * b).sum().item()
        for a, b in zip(torch.autograd.grad(first, list(adapted.values())), direction, strict=True)
    )
    assert first_order != pytest.approx(numeric, rel=1e-2)


def test_image_gradient_of_the_outer_loss_equals_finite_differences(double: None) -> None:
    """What ECI's adversarial step needs: support images act through the inner step."""
    learner, theta, episode = _problem()
    support_x = episode.support_x.requires_grad_()
    loss = outer_loss("maml", learner, theta, episode, 0.1, 1).loss
    (gradient,) = torch.autograd.grad(loss, support_x)
    direction = torch.randn_like(support_x)

    def at(eps: float) -> float:
        moved = episode._replace(support_x=(support_x + eps * direction).detach())
        return outer_loss("maml", learner, theta, moved, 0.1, 1).loss.item()

    eps = 1e-6
    numeric = (at(eps) - at(-eps)) / (2 * eps)
    assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_given_moments_of_the_batch_itself_change_nothing(double: None) -> None:
    learner, theta, episode = _problem()
    own = learner.forward(theta, episode.query_x)
    again = learner.forward(theta, episode.query_x, batch_moments(own.bn_inputs))
    assert torch.allclose(own.logits, again.logits, atol=1e-9)
    support = learner.forward(theta, episode.support_x)
    inductive = learner.forward(theta, episode.query_x, batch_moments(support.bn_inputs))
    alone = learner.forward(theta, episode.query_x[:1], batch_moments(support.bn_inputs))
    assert torch.allclose(inductive.logits[:1], alone.logits)  # no image sees another
    assert not torch.allclose(inductive.logits, own.logits)


def test_a_saved_learner_loads_and_foreign_files_are_refused(tmp_path: Path) -> None:
    theta = initial_theta("conv4", 3, 16, generator(0, "x"))
    path = tmp_path / "learner.safetensors"
    save_learner(path, theta, INFO)
    _, loaded, info = load_learner(path)
    assert info == INFO
    assert all(torch.equal(loaded[n], theta[n]) for n in theta)
    assert set(load_file(path)) == set(theta)

    save_learner(path, {n: p for n, p in theta.items() if n != "head.bias"}, INFO)
    with pytest.raises(BadInput, match=r"no tensor 'head.bias'"):
        load_learner(path)
    save_learner(path, theta | {"head.bias": torch.zeros(4)}, INFO)
    with pytest.raises(BadInput, match=r"head.bias has shape \(4,\), its architecture \(3,\)"):
        load_learner(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        load_learner(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_way": "x"},
        {"n_way": 0},
        {"image_size": "16"},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, -1.0)},
        {"iteration": None},
        {"class_names": ("a", "b")},
        {"distilled": {"heads": ("a",), "n_components": 4, "readout": (), "mirror": True}},
        {"distilled": {"heads": (3,), "n_components": 4, "readout": ("z",), "mirror": True}},
        {"colour": "blue"},
    ],
)
def test_a_learner_of_odd_metadata_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "learner.safetensors"
    theta = initial_theta("conv4", 3, 16, generator(0, "x"))
    save_tensors(path, theta, asdict(INFO) | changes)
    with pytest.raises(
        BadInput, match=f"learner.safetensors: not a learner: {next(iter(changes))}"
    ):
        load_learner(path)


def test_snapshots_are_in_the_order_of_iterations_and_others_are_none(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    for name in ("500000", "1000000", "000007", "best", "7x", ""):
        (tmp_path / f"snapshots/iteration-{name}.safetensors").touch()
    found = [iteration_of(path) for path in snapshots(tmp_path)]
    assert found == [7, 500_000, 1_000_000]


def test_a_diverged_learner_loads(tmp_path: Path) -> None:
    """Meta-validation passes it over; a teacher of such numbers would be refused."""
    theta = initial_theta("conv4", 3, 16, generator(0, "test"))
    theta["head.bias"][0] = float("nan")
    save_learner(tmp_path / "learner.safetensors", theta, INFO)
    _, loaded, _ = load_learner(tmp_path / "learner.safetensors")
    assert loaded["head.bias"].isnan().tolist() == [True, False, False]


def test_a_network_is_made_once_to_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To draw its parameters is most of the time that loading takes."""
    path, made, plain = tmp_path / "x.safetensors", [], learner_module.Distilled
    save_learner(path, network().state_dict(), distilled_info())
    monkeypatch.setattr(
        learner_module, "Distilled", lambda *given: made.append(given) or plain(*given)
    )
    learner, theta, _ = load_learner(path)
    assert len(made) == 1
    state = network().state_dict()
    assert all(torch.equal(t, theta[n]) for n, t in state.items())
    assert all(torch.equal(t, state[n]) for n, t in learner.network(theta).state_dict().items())
