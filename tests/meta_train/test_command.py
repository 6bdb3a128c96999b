"""What a method is handed, and that it is the one it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stages.common.pool import load_pool
from stages.interface import params
from stages.interface.errors import BadInput
from stages.interface.provenance import IMAGE_PRIOR, NO_DATA
from stages.meta_train.command import app
from stages.meta_train.methods import METHODS
from stages.meta_train.starts import drawn
from tests.conftest import ROOT
from tests.meta_train.test_episode_inversion import setting


def test_a_method_is_handed_what_was_asked_for(
    tiny_pool: Path, at_project: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_project({"seed": 5, "n_query": 4})
    seen: list[Any] = []

    def start(pool: Any, shared: Any, own: Any, given: Any) -> None:
        seen.append((len(pool), given.n_way, given.n_shot, given.n_query, given.seed))
        raise BadInput("enough")

    monkeypatch.setitem(METHODS, "eci_pool2", replace(METHODS["eci_pool2"], start=start))
    task = "--scenario ss --n-way 3 --n-shot 1 --budget quick --method eci_pool2 --out out"
    CliRunner().invoke(app, [*task.split(), "--pool", str(tiny_pool)])
    assert seen == [(2, 3, 1, 4, 5)]


def test_fixed_learners_are_what_they_are_called(tiny_pool: Path) -> None:
    pool = load_pool(tiny_pool)
    given = [setting(pool, seed=seed) for seed in range(4)]
    made = METHODS["random"].start(pool, None, None, given[1]).snapshot()
    expected = drawn(pool, given[1])
    assert all(torch.equal(p, expected[name]) for name, p in made.items())
    fused = [METHODS["ota"].start(pool, None, None, one).snapshot() for one in given]
    # the teacher that the others are aligned to is drawn by the seed
    assert len({theta["convs.0.weight"].numpy().tobytes() for theta in fused}) > 1


def test_who_uses_the_hand_made_prior_says_so() -> None:
    sections = params.load(ROOT / "params.yaml").meta_train
    said = {name: row.data_used(getattr(sections, name)) for name, row in METHODS.items()}
    prior = {name for name, words in said.items() if words == IMAGE_PRIOR}
    distilled = {name for name in METHODS if name.startswith("distill")}
    assert prior == distilled - {"distill_no_prior"} | {"eci_distilled"}
    assert all(said[name] == NO_DATA for name in METHODS.keys() - prior)
