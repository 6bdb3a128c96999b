"""ECI that starts from a distilled learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from stages.common.files import load_json, save_json
from stages.common.learner import Learner, save_learner
from stages.common.params import Scenario
from stages.common.pool import Teacher, load_pool
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.interface.params import load
from stages.interface.provenance import provenance_of
from stages.meta_train.command import app
from stages.meta_train.episode_inversion import EpisodeInversionRun
from stages.meta_train.methods import METHODS, Setting
from stages.meta_train.params import MetaTrainBudget
from stages.meta_train.starts import distilled
from tests.common.test_distilled import info, network
from tests.conftest import ROOT

PARAMS = load(ROOT / "params.yaml")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    for iteration, scale in ((3, 0.5), (7, 1.0)):
        state = {name: tensor * scale for name, tensor in network().state_dict().items()}
        path = tmp_path / "start" / "snapshots" / f"iteration-{iteration:06d}.safetensors"
        save_learner(path, state, replace(info(), iteration=iteration))
    return tmp_path / "start"


@pytest.fixture
def pool(tiny_pool: Path) -> list[Teacher]:
    return load_pool(tiny_pool)


def setting(pool: list[Teacher], start: Path, **changes: object) -> Setting:
    given = Setting(
        architecture="conv4",
        view=pool[0].info.view,
        scenario=Scenario(architectures="conv4", start="average", teachers_per_step="all"),
        budget=MetaTrainBudget(n_iterations=4, curriculum_start=0, n_snapshots=1),
        n_way=3,
        n_shot=1,
        n_query=2,
        seed=0,
        device="cpu",
        start=start,
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def test_the_body_of_the_last_snapshot_is_taken_with_a_head_of_zeros(
    start: Path, pool: list[Teacher]
) -> None:
    theta = distilled(pool, setting(pool, start))
    net = network()
    x = torch.randn(5, 3, 16, 16, generator=generator(0, "x"))
    moments = [(layer.running_mean, layer.running_var) for layer in net.body.norms]
    found = Learner("conv4", 3, 16).forward(theta, x, moments)
    assert torch.allclose(found.features, net.body(x).features, atol=1e-6)
    assert found.logits.shape == (5, 3)
    assert not found.logits.any()


def test_eci_trains_on_from_there(start: Path, pool: list[Teacher]) -> None:
    shared = PARAMS.meta_train.episode_inversion.model_copy(update={"compile": "never"})
    run = EpisodeInversionRun(pool, shared, PARAMS.meta_train.eci_distilled, setting(pool, start))
    before = run.snapshot()["convs.0.weight"].clone()
    assert torch.equal(before, network().body.convs[0].weight)
    run.step(0)
    assert not torch.equal(run.snapshot()["convs.0.weight"], before)
    assert run.snapshot()["head.weight"].any()


def test_a_start_that_is_none_is_refused(start: Path, pool: list[Teacher], tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"nowhere: no snapshots/.* not a learner; meta_train makes one"
    ):
        distilled(pool, setting(pool, tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"a conv4 for 16 pixels .* a distilled conv4_64 for 16"):
        distilled(pool, setting(pool, start, architecture="conv4_64"))


def test_the_learner_tells_of_the_run_that_it_started_from(
    start: Path, tiny_pool: Path, at_project: Callable[..., None]
) -> None:
    length = {"n_iterations": 1, "curriculum_start": 0, "n_snapshots": 1}
    at_project({"n_query": 2, "budgets.quick.meta_train": length})
    task = ("--scenario", "ss", "--n-way", "3", "--n-shot", "1", "--budget", "quick")
    given = ("--pool", str(tiny_pool), "--start", str(start), "--out", "out")
    command = ("--method", "eci_distilled", *task, *given)
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, Path("out").exists()) == (2, False)
    assert "start.provenance.json: no such file" in refused.output
    save_json(provenance_of(start), {"commit": "before"})
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert load_json(Path("out.provenance.json"))["start"] == {"commit": "before"}


def test_only_methods_that_continue_another_have_a_start() -> None:
    continuing = {name: row.continues for name, row in METHODS.items() if row.continues}
    assert continuing == {"eci_distilled": "distill"}
