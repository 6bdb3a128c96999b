from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.common.learner import initial_theta, load_learner, save_learner
from stages.common.pool import Teacher, load_pool
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_train.dro import DroRun, flat
from stages.meta_train.params import Dro
from tests.conftest import learner_info

PARAMS = Dro(embedding_dim=50, penalty=2.0, lr=0.03, support_fraction=0.8)


@pytest.fixture
def pool(tiny_pool: Path) -> list[Teacher]:
    return load_pool(tiny_pool)


def make_run(pool: list[Teacher], seed: int = 1, **changes: float) -> DroRun:
    params = PARAMS.model_copy(update=changes)
    return DroRun(pool, "conv4", params, n_way=3, image_size=16, seed=seed, device="cpu")


def test_one_step_equals_a_derivation_by_hand(double: None, pool: list[Teacher]) -> None:
    for teacher in pool:
        teacher.net.double()
    run = make_run(pool, embedding_dim=2, lr=0.1)
    support, query = run._parts
    assert (len(support), len(query)) == (2, 1)
    assert sorted(support + query) == [0, 1, 2]
    table, weight, bias = (t.clone() for t in run.state().values())
    assert (weight == 0).all()
    weight.copy_(torch.randn(weight.shape, generator=generator(0, "W")) / 100)
    run.load_state({"embeddings": table, "weight": weight, "bias": bias})
    thetas = [flat(dict(teacher.net.named_parameters())) for teacher in pool]
    before = table.clone()
    record = run.step(0)
    moved_rows = (run.state()["embeddings"] != before).any(1).nonzero().flatten().tolist()
    assert len(moved_rows) == 1
    (i,) = moved_rows
    (j,) = query
    assert i in support

    # d/dW of ||W e + b - theta||^2 / 2 is r e^T, d/db is r, d/de is W^T r (2 / dim(e) = 1 here).
    r = weight @ table[i] + bias - thetas[i]
    assert record["likelihood_loss"] == pytest.approx((r @ r).item() / 2)
    embedding = table[i] - 0.1 * weight.T @ r
    weight = weight - 0.1 * torch.outer(r, table[i])
    bias = bias - 0.1 * r
    table[i] = embedding
    r = weight @ table[j] + bias - thetas[j]
    moved = table[j] + 0.1 * weight.T @ r  # away from theta; the penalty is flat here
    shift = (moved - table[j]).norm()
    assert record["embedding_shift"] == pytest.approx(shift.item())
    assert shift > 0
    r = weight @ moved + bias - thetas[j]
    assert record["robust_loss"] == pytest.approx((r @ r / 2 - 2 * shift**2).item())
    after = run.state()
    assert torch.allclose(after["embeddings"], table, rtol=1e-12)
    assert torch.allclose(after["weight"], weight - 0.1 * torch.outer(r, moved), rtol=1e-12)
    assert torch.allclose(after["bias"], bias - 0.1 * r, rtol=1e-12)


def test_the_penalty_is_flat_after_one_step_from_the_centre(pool: list[Teacher]) -> None:
    weak, strong = make_run(pool, penalty=0.0), make_run(pool, penalty=100.0)
    for t in range(5):
        a, b = weak.step(t), strong.step(t)
    assert a["robust_loss"] > b["robust_loss"]
    for name, p in weak.snapshot().items():
        assert torch.equal(p, strong.snapshot()[name])


def test_it_starts_at_a_fresh_learner_and_goes_to_the_average(pool: list[Teacher]) -> None:
    run = make_run(pool)
    fresh = initial_theta("conv4", 3, 16, generator(1, "meta_train", "dro initialisation"))
    assert all(torch.equal(p, fresh[name]) for name, p in run.snapshot().items())
    mean = torch.stack([flat(dict(t.net.named_parameters())) for t in pool]).mean(0)
    start = (flat(run.snapshot()) - mean).norm()
    records = [run.step(t) for t in range(300)]
    assert set(records[0]) == {"likelihood_loss", "robust_loss", "embedding_shift"}
    assert all(list(r) == list(records[0]) for r in records)
    for name in ("likelihood_loss", "robust_loss"):
        assert records[-1][name] < 0.01 * records[0][name]
    assert (flat(run.snapshot()) - mean).norm() < 0.05 * start
    history = {name: [r[name] for r in records] for name in records[0]}
    assert all(isinstance(value, float) for value in run.progress(history).values())
    assert run.synthetic() == []


def test_resumed_equals_uninterrupted(pool: list[Teacher]) -> None:
    whole = make_run(pool)
    expected = [whole.step(t) for t in range(8)]
    first = make_run(pool)
    records = [first.step(t) for t in range(3)]
    second = make_run(pool)
    second.load_state({name: t.clone() for name, t in first.state().items()})
    records += [second.step(t) for t in range(3, 8)]
    assert records == expected
    for name, t in whole.state().items():
        assert torch.equal(t, second.state()[name]), name
    assert make_run(pool, seed=2).step(0) != expected[0]


def test_a_snapshot_is_a_learner(pool: list[Teacher], tmp_path: Path) -> None:
    run = make_run(pool)
    run.step(0)
    theta = run.snapshot()
    fresh = initial_theta("conv4", 3, 16, generator(0, "fresh"))
    assert {n: p.shape for n, p in theta.items()} == {n: p.shape for n, p in fresh.items()}
    info = learner_info(method="dro", meta_learner=run.meta_learner)
    save_learner(tmp_path / "learner.safetensors", theta, info)
    learner, loaded, _ = load_learner(tmp_path / "learner.safetensors")
    assert all(torch.equal(p, loaded[name]) for name, p in theta.items())
    assert learner.forward(loaded, torch.randn(2, 3, 16, 16)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("architecture", "n_way", "image_size", "learner"),
    [
        ("conv4_64", 3, 16, "a conv4_64 with 3 for 16"),
        ("conv4", 5, 16, "a conv4 with 5 for 16"),
        ("conv4", 3, 32, "a conv4 with 3 for 32"),
    ],
)
def test_other_shapes_are_refused(
    pool: list[Teacher], architecture: str, n_way: int, image_size: int, learner: str
) -> None:
    message = f"is a conv4 with 3 outputs for 16 pixels and the learner {learner};"
    with pytest.raises(BadInput, match=message):
        DroRun(pool, architecture, PARAMS, n_way=n_way, image_size=image_size, seed=1, device="cpu")


def test_one_teacher_is_refused(pool: list[Teacher]) -> None:
    with pytest.raises(BadInput, match="1 teacher cannot be divided into S and Q"):
        make_run(pool[:1])
