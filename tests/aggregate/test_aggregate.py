from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages.aggregate.cells import load_cell
from stages.aggregate.figures import save_bars, save_training
from stages.aggregate.markdown import markdown
from stages.aggregate.tables import OF_THE_POOL, PUBLISHED, paired_difference, results
from stages.interface.errors import BadInput

N = 40


def make_cell(root: Path, key: str, shift: float = 0.0, batch_norm: str = "transductive") -> Path:
    """A cell's folder with invented accuracies; harder and easier episodes are shared."""
    rng = np.random.default_rng(0)
    hard = rng.normal(40, 10, N)
    rows = {
        "one_step": hard + shift,
        "icfil": hard + shift + 2 + rng.normal(0, 1, N),
        "nearest_class_mean": hard + 3,
        "pool_features": hard + 10,
        "single_teacher": hard + 1,
    }
    evaluation, learner = root / "models/evaluations" / key, root / "models/learners" / key
    for folder in (evaluation, learner, root / "reports/quick/cells"):
        folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        name: {
            "accuracy": values.mean(),
            "ci95": 1.96 * values.std(ddof=1) / math.sqrt(N),
            "std": values.std(ddof=1),
            "n_episodes": N,
            "batch_norm": "inductive" if name in OF_THE_POOL else batch_norm,
        }
        for name, values in rows.items()
    }
    (root / "reports/quick/cells" / f"{key}.json").write_text(json.dumps(metrics))
    pd.DataFrame({"episode": range(N), **rows}).to_parquet(evaluation / "episodes.parquet")
    pd.DataFrame(
        {"iteration": [5, 10], "one_step": [30.0, 35.0], "nearest_class_mean": [31.0, 33.0]}
    ).to_parquet(evaluation / "selection.parquet")
    pd.DataFrame(
        {
            "iteration": range(1, 11),
            "outer_accuracy": np.linspace(0.2, 0.8, 10),
            "feedback": [0.0] * 8 + [1.0, 0.0],
        }
    ).to_parquet(learner / "history.parquet")
    provenance = {
        "seed": 0,
        "commit": "abc",
        "hardware": "a machine",
        "device": "cpu",
        "minutes": 12.0,
    }
    (evaluation / "provenance.json").write_text(json.dumps(provenance))
    (root / "models/learners" / f"{key}.provenance.json").write_text(json.dumps(provenance))
    return evaluation


def load(root: Path, *keys: str):
    return [load_cell(key, "quick", root) for key in keys]


def test_paired_difference_by_hand() -> None:
    ours, reference = np.array([10.0, 20.0, 60.0]), np.array([8.0, 19.0, 57.0])
    found = paired_difference(ours, reference)
    assert found["difference"] == 2.0
    assert found["difference_ci95"] == round(1.96 * 1.0 / math.sqrt(3), 4)
    with pytest.raises(BadInput, match="3 episodes against 2"):
        paired_difference(ours, reference[:2])


def test_the_table_puts_the_published_beside_ours(tmp_path: Path) -> None:
    keys = [f"ss-cifar_fs-5way-{s}shot-{m}" for s in (1, 5) for m in ("ei", "eci")]
    for key in keys:
        make_cell(tmp_path, key, shift=-1.0 if key.endswith("-ei") else 0.0)
    cells = load(tmp_path, *keys)
    table = results(cells, "quick")
    # two methods x three adaptations x two shots, and two rows of the pool a shot, once
    assert len(table) == 12 + 4
    purer = table[(table["method"] == "eci") & (table["adaptation"] == "icfil")]
    assert purer.set_index("n_shot")["published"].to_dict() == {1: 38.66, 5: 51.95}
    assert (purer["difference"] == 0).all()
    ei = table[(table["method"] == "ei") & (table["adaptation"] == "icfil")]
    assert ei["difference"].tolist() == [-1.0, -1.0]
    assert (ei["difference_ci95"] < 0.01).all()  # paired: the episodes' spread cancels
    assert table["published"].notna().sum() == 2

    text = markdown(table, cells)
    line = next(line for line in text.splitlines() if "(PURER)" in line)
    assert "38.66 ± 0.78" in line
    assert "51.95 ± 0.79" in line
    assert "commit abc, a machine (cpu), meta-training 12 min" in text
    assert "transductive" in text
    assert f"over {N} fixed meta-test episodes" in text

    save_bars(tmp_path / "bars.png", table)
    save_training(tmp_path / "training.png", cells)
    for name in ("bars.png", "training.png"):
        assert Image.open(tmp_path / name).size[0] > 500
    again = tmp_path / "again.png"
    save_bars(again, table)
    assert again.read_bytes() == (tmp_path / "bars.png").read_bytes()


def test_missing_shots_say_not_run_and_no_reference_means_no_difference(tmp_path: Path) -> None:
    make_cell(tmp_path, "ss-cifar_fs-5way-1shot-ei")
    make_cell(tmp_path, "ss-cifar_fs-5way-5shot-eci")
    cells = load(tmp_path, "ss-cifar_fs-5way-1shot-ei", "ss-cifar_fs-5way-5shot-eci")
    text = markdown(results(cells, "quick"), cells)
    line = next(line for line in text.splitlines() if line.startswith("| EI + one step"))
    assert line.count("not run") == 3
    assert "–" in line


def test_bad_cells_end_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no cells to make a table of"):
        results([], "quick")
    folder = make_cell(tmp_path, "ss-glyphs-5way-1shot-ei")
    (folder / "episodes.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="not a whole Parquet file"):
        load(tmp_path, folder.name)
    pd.DataFrame({"one_step": [1.0]}).to_parquet(folder / "episodes.parquet")
    with pytest.raises(BadInput, match=r"one_step is 1.0000 % in .* not one run"):
        load(tmp_path, folder.name)
    pd.DataFrame({"other": [1.0]}).to_parquet(folder / "episodes.parquet")
    with pytest.raises(BadInput, match=r"episodes.parquet: no column one_step"):
        load(tmp_path, folder.name)
    pd.DataFrame({"one_step": []}).to_parquet(folder / "episodes.parquet")
    with pytest.raises(BadInput, match="no episodes in it"):
        load(tmp_path, folder.name)
    (tmp_path / "reports/quick/cells/ss-glyphs-5way-1shot-ei.json").unlink()
    with pytest.raises(BadInput, match=r"1shot-ei.json: no such file"):
        load(tmp_path, folder.name)
    make_cell(tmp_path, "something")
    with pytest.raises(BadInput, match="something: not a cell"):
        load(tmp_path, "something")
    make_cell(tmp_path, "ss-glyphs-5way-5shot-ei", batch_norm="inductive")
    make_cell(tmp_path, "ss-glyphs-5way-5shot-eci")
    with pytest.raises(BadInput, match="different batch_norm in one table: inductive, trans"):
        results(load(tmp_path, "ss-glyphs-5way-5shot-ei", "ss-glyphs-5way-5shot-eci"), "quick")


def test_published_values_are_whole_and_unique() -> None:
    rows = YAML(typ="safe").load(PUBLISHED)
    keys = [
        tuple(v for k, v in row.items() if k not in ("accuracy", "ci95", "table")) for row in rows
    ]
    assert len(set(keys)) == len(keys)
    assert all(10 < row["accuracy"] < 60 and 0.3 < row["ci95"] < 1 for row in rows)
