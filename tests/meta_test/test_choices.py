"""What is chosen where, and that what was chosen is what is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from stages.common.dataset import ClassImages
from stages.common.episodes import Episode
from stages.common.files import save_json, save_table
from stages.common.learner import Learner, Theta
from stages.interface.errors import BadInput
from stages.interface.provenance import provenance_of
from stages.meta_test import evaluate, icfil
from stages.meta_test.adaptations import ADAPTATIONS
from stages.meta_test.episodes import RealEpisodes, fixed_tasks, right
from stages.meta_test.evaluate import Tasks
from stages.meta_test.nearest_class_mean import nearest
from stages.meta_test.one_step import outputs
from tests.conftest import nine_classes
from tests.meta_test.test_adaptations import SETTINGS, _model
from tests.meta_test.test_command import refusal

FAST = SETTINGS.model_copy(
    update={"icfil": SETTINGS.icfil.model_copy(update={"head_steps": 3})},
)


def _quiet(done: int) -> None:
    pass


def test_snapshots_are_chosen_on_meta_validation(
    tiny_pool: Path, learner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in (tiny_pool, learner):
        save_json(provenance_of(made), {})
    save_table(learner / "history.parquet", pd.DataFrame({"iteration": [1]}))

    def said(models: Any, val: Tasks, *rest: Any) -> None:
        raise BadInput("chosen on " + " ".join(val.data[0].class_names))

    monkeypatch.setattr(evaluate, "select", said)
    cell, classes = "ss-glyphs-3way-2shot-ei", nine_classes(tmp_path / "glyphs.safetensors")
    found = refusal(monkeypatch, cell, tiny_pool, "--learner", str(learner), data=classes)
    assert "chosen on c3 c4 c5" in found


def test_tuned_steps_are_chosen_on_validation_and_used(
    pair: list[ClassImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = _model(0, meta_learner="none"), []
    val, test = (Tasks(pair, fixed_tasks(pair, split, 6, 3, 2, 4)) for split in ("val", "test"))
    tuned = FAST.tuned_steps.model_copy(update={"max_steps": 4, "lr_high": 0.5})
    settings = FAST.model_copy(update={"tuned_steps": tuned})
    row = ADAPTATIONS["tuned_steps"]
    assert row.tune is not ADAPTATIONS["one_step"].tune

    def tune(model: Any, episodes: Any, params: Any) -> Any:
        given.append(episodes._tasks)
        return row.tune(model, episodes, params)

    monkeypatch.setitem(ADAPTATIONS, "tuned_steps", replace(row, tune=tune))
    selection = evaluate.select([model], val, settings, "cpu")
    found = evaluate.judge_learner([model], selection, val, test, settings, "cpu")["tuned_steps"]
    assert given == [val.tasks]
    own = row.tune(model, val.seen_by(model, "cpu"), settings)
    labels, plain = (
        row.predict(model, test.seen_by(model, "cpu"), params, _quiet) for params in (own, settings)
    )
    assert torch.equal(found.share, right(labels, test.tasks))
    assert not torch.equal(plain, labels)


def test_every_row_is_that_of_its_own_chosen_snapshot(data: ClassImages) -> None:
    models = [_model(i, iteration=10 * (i + 1)) for i in range(3)]
    tasks = Tasks([data], fixed_tasks([data], "test", 3, 3, 2, 3))
    accuracies = ((10, 50.0, 1.0), (20, 40.0, 70.0), (30, 30.0, 60.0))
    selection = [{"iteration": i, "one_step": a, "nearest_class_mean": b} for i, a, b in accuracies]
    found = evaluate.judge_learner(models, selection, tasks, tasks, FAST, "cpu")
    assert {name: row.snapshot for name, row in found.items()} == {
        "one_step": 10,
        "icfil": 10,
        "nearest_class_mean": 20,
        "linear_probe": 20,
    }


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
@pytest.mark.parametrize("name", ["one_step", "nearest_class_mean", "icfil"])
def test_queries_are_normalised_as_the_protocol_says(
    name: str, batch_norm: str, pair: list[ClassImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []

    def noted(net: Learner, theta: Theta, episode: Episode, mode: Any) -> Any:
        modes.append(mode)
        return outputs(net, theta, episode, mode)

    monkeypatch.setattr("stages.meta_test.one_step.outputs", noted)
    monkeypatch.setattr(icfil, "outputs", noted)
    settings = FAST.model_copy(update={"batch_norm": batch_norm})
    model, tasks = _model(0), fixed_tasks(pair, "test", 2, 3, 2, 4)
    episodes = RealEpisodes(pair, tasks, model.info.view, "cpu")
    ADAPTATIONS[name].predict(model, episodes, settings, _quiet)
    assert modes == [batch_norm] * 2


def test_a_prototypical_network_is_judged_as_it_was_trained(pair: list[ClassImages]) -> None:
    tasks, model = fixed_tasks(pair, "test", 6, 3, 2, 4), _model(0, meta_learner="protonet")
    episodes = RealEpisodes(pair, tasks, model.info.view, "cpu")
    row = ADAPTATIONS["nearest_class_mean"]
    found = row.predict(model, episodes, SETTINGS, _quiet)
    for labels, episode in zip(found, episodes, strict=True):
        s, q = outputs(model.learner, model.theta, episode, SETTINGS.batch_norm)
        assert torch.equal(labels, nearest(s.features, q.features, 3, "euclidean"))
    assert row.protocol(model, SETTINGS).startswith("no step, euclidean")


def test_every_episode_of_icfil_has_noise_of_its_own(
    pair: list[ClassImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    plain: Callable[..., Tensor] = icfil.calibrated_features

    def noted(*given: Any) -> Any:
        (stream,) = (part for part in given if isinstance(part, torch.Generator))
        begun.append(stream.initial_seed())
        return plain(*given)

    monkeypatch.setattr(icfil, "calibrated_features", noted)
    model, tasks = _model(0), fixed_tasks(pair, "test", 3, 3, 2, 4)
    for _ in range(2):
        episodes = RealEpisodes(pair, tasks, model.info.view, "cpu")
        ADAPTATIONS["icfil"].predict(model, episodes, FAST, _quiet)
    assert len(set(begun)) == 3
    assert begun[:3] == begun[3:]
