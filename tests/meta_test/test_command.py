"""What the command refuses, before it evaluates anything."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from stages.common.dataset import IMAGENET, View
from stages.common.files import save_json, save_table
from stages.interface.provenance import provenance_of
from stages.meta_test.command import app
from stages.pseudo.classes import SPLITS, write
from tests.conftest import ROOT


def refusal(
    monkeypatch: pytest.MonkeyPatch, cell: str, pool: Path, *more: str, data: Path | None = None
) -> str:
    """The message of a 3-way 2-shot run; its data set, if none is given, is missing."""
    monkeypatch.chdir(ROOT)
    shape = ("--n-way", "3", "--n-shot", "2", "--budget", "quick")
    out = str(pool.parent / "out")
    given = data or f"{out}/no-data"
    arguments = (cell, "--pool", str(pool), *shape, "--data", str(given), *more)
    result = CliRunner().invoke(app, [*arguments, "--out", out, "--metrics", f"{out}.json"])
    assert result.exit_code == 2, result.output
    return re.sub(r"\s+", " ", result.output)


@pytest.mark.parametrize(
    "key", ["ss-glyphs-5way-2shot-ei", "ss-glyphs-3way-1shot-ei", "ss-glyphs-ei", "nonsense"]
)
def test_a_key_of_another_cell_is_refused(
    key: str, tiny_pool: Path, learner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = refusal(monkeypatch, key, tiny_pool, "--learner", str(learner))
    assert f"{key}: not the key of a 3-way 2-shot cell" in found


@pytest.mark.parametrize("method", ["eci", "eix", "pool"])
def test_a_learner_of_another_method_is_refused(
    method: str, tiny_pool: Path, learner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = f"ss-glyphs-3way-2shot-{method}"
    found = refusal(monkeypatch, cell, tiny_pool, "--learner", str(learner))
    assert f"{cell}: method {method}: the learner of" in found
    assert "is of ei" in found


def test_the_pool_is_judged_as_the_pool_alone(
    tiny_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = "ss-glyphs-3way-2shot-ei"
    assert f"{cell}: method ei: needs --learner" in refusal(monkeypatch, cell, tiny_pool)


def test_what_fits_is_refused_for_its_data_alone(
    tiny_pool: Path, learner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pool and the learner come from is asked for before."""
    cell = "ss-glyphs-3way-2shot-ei"
    for made in (tiny_pool, learner):
        found = refusal(monkeypatch, cell, tiny_pool, "--learner", str(learner))
        assert f"{made.name}.provenance.json: no such file" in found
        save_json(provenance_of(made), {})
    found = refusal(monkeypatch, cell, tiny_pool, "--learner", str(learner))
    assert "history.parquet: no such file" in found
    save_table(learner / "history.parquet", pd.DataFrame({"iteration": [1]}))
    found = refusal(monkeypatch, cell, tiny_pool, "--learner", str(learner))
    assert "no-data: no such file" in found
    mine = tiny_pool.parent / "out/mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    found = refusal(monkeypatch, cell, tiny_pool, "--learner", str(learner))
    assert "out: a folder with files of no evaluation" in found


def test_images_of_another_data_set_are_refused(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a table would call pseudo episodes CIFAR-FS."""
    save_json(provenance_of(tiny_pool), {})
    shape = (30, 16, 16, 3)
    classes = {
        name: {split: torch.zeros(shape, dtype=torch.uint8) for split in SPLITS} for name in "abc"
    }
    data = tmp_path / "none.safetensors"
    write(data, classes, View(16, IMAGENET))
    found = refusal(monkeypatch, "ss-cifar_fs-3way-2shot-pool", tiny_pool, data=data)
    assert "data set cifar_fs: " in found
    assert "none.safetensors is of none; allowed: cifar_fs" in found


def test_a_broken_teacher_is_found_before_the_evaluation(
    tiny_pool: Path, learner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = sorted(tiny_pool.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    cell = "ss-glyphs-3way-2shot-ei"
    found = refusal(monkeypatch, cell, tiny_pool, "--learner", str(learner))
    assert f"{last.name}: not a whole safetensors file" in found
