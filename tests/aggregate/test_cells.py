from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.aggregate.cells import load_budget, load_cell
from stages.interface.errors import BadInput
from tests.aggregate.fakes import N_EPISODES, fake_cell, write_cell

KEY = "ss-cifar_fs-5way-1shot-eci"


def test_a_cell_is_read_whole(tmp_path: Path) -> None:
    cell = load_cell(write_cell(tmp_path, KEY))
    assert cell.task == ("ss", "cifar_fs", 5)
    assert cell.iterations == 10
    assert cell.validation_curve == [(5, 35.0), (10, 40.0)]
    percent = cell.percent("icfil")
    assert percent.shape == (N_EPISODES,)
    assert percent.mean() == pytest.approx(cell.rows["icfil"].accuracy, abs=1e-3)


def test_a_cell_without_meta_training_has_no_curves(tmp_path: Path) -> None:
    cell = load_cell(write_cell(tmp_path, "ss-cifar_fs-5way-1shot-pool"))
    assert cell.iterations == 0
    assert cell.validation_curve == []


def _row(**changes: Any) -> dict[str, Any]:
    rows = fake_cell(KEY)["rows"]
    return {"rows": {**rows, "icfil": {**rows["icfil"], **changes}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {}}, "rows: Dictionary should have at least 1 item"),
        ({"n_episodes": 0}, "n_episodes: Input should be greater than 0"),
        ({"seed": "0"}, "seed: Input should be a valid integer .*'0'"),
        ({"n_episodes": 41}, r"correct has 40 episodes: allowed is n_episodes = 41"),
        (_row(accuracy=50.0), r"rows.icfil.accuracy = 50.0: the mean of its episodes is 4"),
        (_row(correct=[76] * N_EPISODES), "rows.icfil.correct: allowed are 0 to 75 query images"),
        (_row(ci95=float("nan")), "rows.icfil.ci95: Input should be a finite number"),
        ({"n_shot": 5}, "say 'ss-cifar_fs-5way-5shot-eci'"),
        ({"key": "x"}, "key = 'x': its scenario"),
        (
            {"history": {"iteration": [1], "outer_accuracy": [], "switches": []}},
            "history has 1 iterations and 0 accuracies",
        ),
        (
            {"similarity": {**fake_cell(KEY)["similarity"], "matrix": [[1.0]]}},
            "similarity.matrix: allowed is 4 x 4",
        ),
    ],
)
def test_bad_cells_end_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_cell(tmp_path, KEY, **changes)
    with pytest.raises(BadInput, match=message) as refusal:
        load_cell(path)
    assert str(path) in str(refusal.value)


def test_a_cell_in_another_place_is_refused(tmp_path: Path) -> None:
    path = write_cell(tmp_path, KEY)
    elsewhere = tmp_path / "reports/paper/seed-0" / path.name
    elsewhere.parent.mkdir(parents=True)
    path.rename(elsewhere)
    with pytest.raises(BadInput, match=rf"another cell: .*quick/seed-0/{path.name}"):
        load_cell(elsewhere)


def test_files_that_are_no_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cell.json"
    with pytest.raises(BadInput, match="no such file"):
        load_cell(path)
    path.write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        load_cell(path)
    path.write_text("[]")
    with pytest.raises(BadInput, match="the file: Input should be"):
        load_cell(path)
    cell = fake_cell(KEY)
    del cell["command"]
    path.write_text(json.dumps(cell))
    with pytest.raises(BadInput, match="command: Field required"):
        load_cell(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"reports/quick: no cell"):
        load_budget("quick")


def test_cells_are_in_the_order_of_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        "ss-cifar_fs-5way-1shot-pool",
        "ss-cifar_fs-5way-1shot-random",
        "ss-cifar_fs-5way-1shot-eci",
        "ss-cifar_fs-5way-1shot-novel",  # no table knows it
        "ss-cifar_fs-5way-1shot-real_maml",
        "ss-cifar_fs-10way-1shot-random",
        "sh-cifar_fs-5way-1shot-eci",
        "mh-cifar_fs-5way-1shot-eci",
    ]
    for key in keys:
        write_cell(tmp_path, key)
    write_cell(tmp_path, keys[0], 1)
    monkeypatch.chdir(tmp_path)
    assert [(c.key, c.seed) for c in load_budget("quick")] == [
        (keys[0], 0),
        (keys[0], 1),
        *((key, 0) for key in keys[1:]),
    ]
