from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from stages.aggregate.cells import load_cell
from stages.aggregate.command import _metrics, app
from stages.aggregate.layouts import OURS, PAPER, cells_of
from tests.aggregate.fakes import fake_cell, write_cell

CELL = "ss-cifar_fs-5way-1shot-eci"
GIVEN = {
    "scenario": "ss",
    "dataset": "cifar_fs",
    "n_way": 5,
    "n_shot": 1,
    "method": "eci",
    "adaptation": "icfil",
    "budget": "quick",
    "seed": 0,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return re.sub(r"\s+", " ", result.output)


def select(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setattr("stages.interface.params.read", lambda keys: {**GIVEN, **changes})


def test_table_is_whole_or_refused(project: Path) -> None:
    keys = sorted(cells_of(PAPER["table_7"]))
    for key in keys[:-1]:
        write_cell(project, key, 3)
    arguments = ("table", "table_7", "--budget", "quick", "--seed", "3", "--out", "out")
    refusal = run(*arguments, code=2)
    assert f"reports/quick/seed-3/{keys[-1]}.json: no such file" in refusal
    assert "dvc repro stages/dvc.yaml:table_7" in refusal
    assert not Path("out").exists()
    write_cell(project, keys[-1], 3)
    write_cell(project, keys[-1], 4)  # another seed is not in the table
    assert "λ = 0.5" in run(*arguments)
    table = pd.read_parquet("out/table.parquet")
    assert len(table) == 8
    assert set(table["seed"]) == {"3"}
    assert set(table["method"][table["published"].isna()]) == {"pool"}
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    run(*arguments)
    assert first == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert 'did you mean "table_1"' in run("table", "tabel_1", *arguments[2:], code=2)


def test_pictures_of_the_very_run_are_kept(project: Path) -> None:
    """models/ may hold the images of another budget or seed by now."""
    runs = [{**run, "minutes": 7.25} for run in fake_cell(CELL, 0)["provenance"]]
    cells = [write_cell(project, CELL, 0, provenance=runs), write_cell(project, CELL, 1)]
    evaluation = Path("models/evaluations") / CELL
    evaluation.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(evaluation / "synthetic.png")
    own = {k: v for k, v in runs[-1].items() if k != "stage"}
    (evaluation / "provenance.json").write_text(json.dumps(own))
    run("report", "--budget", "quick")
    kept = [p.parent / "pictures" / f"{CELL}.png" for p in cells]
    assert [path.is_file() for path in kept] == [True, False]
    kept[0].unlink()
    run("report", "--budget", "quick", "--out", "elsewhere")
    assert not kept[0].is_file()  # nothing is written but there, and the picture is shown
    assert "Synthetic images (figure 5)" in Path("elsewhere/report.html").read_text()


def test_a_picture_that_is_none_is_refused_before_anything_is_replaced(project: Path) -> None:
    write_cell(project, CELL)
    run("report", "--budget", "quick")
    write_cell(project, CELL, 1)
    kept = Path("reports/quick/seed-1/pictures") / f"{CELL}.png"
    kept.parent.mkdir()
    kept.write_text("no picture")
    before = {p: p.read_bytes() for p in Path("reports/quick").rglob("*") if p.is_file()}
    assert f"{kept}: not a PNG file" in run("report", "--budget", "quick", code=2)
    assert before == {p: p.read_bytes() for p in Path("reports/quick").rglob("*") if p.is_file()}


def test_report_needs_a_cell(project: Path) -> None:
    refusal = run("report", "--budget", "quick", "--out", "reports/quick", code=2)
    assert "no cell" in refusal


def test_report_shows_everything_and_needs_nothing(project: Path) -> None:
    keys = [
        "ss-cifar_fs-5way-1shot-pool",
        "ss-cifar_fs-5way-1shot-ei",
        CELL,
        "ss-cifar_fs-5way-1shot-novel",
        "mh-cifar_fs-5way-5shot-random",
    ]
    paths = [write_cell(project, key) for key in keys]
    paths.append(write_cell(project, CELL, 1, command="evil <script>alert(1)</script> & co"))
    picture = paths[0].parent / "pictures" / f"{CELL}.png"
    picture.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(picture)
    arguments = ("report", "--budget", "quick", "--out", "reports/quick")
    assert "6 cells: reports/quick/report.html" in run(*arguments)

    out = Path("reports/quick")
    assert all(path.is_file() for path in paths)  # cells stand in the same folder
    tables = {path.name for path in (out / "tables").iterdir()}
    names = [*PAPER, *OURS, "every_row-ss-cifar_fs-5way", "every_row-mh-cifar_fs-5way"]
    assert tables == {f"{name}.{kind}" for name in names for kind in ("md", "parquet")}
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {
        "accuracy-ss-cifar_fs-5way.png",
        "accuracy-mh-cifar_fs-5way.png",
        "curriculum-ss-cifar_fs-5way.png",
        "training-ss-cifar_fs-5way.png",
        f"classes-{CELL}.png",
        f"similarity-{CELL}.png",
        "classes-mh-cifar_fs-5way-5shot-random.png",
    }
    assert all(Image.open(out / "figures" / name).size[0] > 300 for name in figures)

    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(figures) + 1
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)
    for path in paths[:-1]:
        assert json.loads(path.read_text())["command"] in page
    assert "evil &lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)
    assert '<td class="none">not run</td>' in page
    assert "(2 seeds: ±" in page
    assert all(layout.title in page.replace("&#x27;", "'") for layout in PAPER.values())

    first = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    run(*arguments)
    assert first == {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    picture.write_bytes(b"no picture")
    assert "not a PNG file" in run(*arguments, code=2)


def test_publish_puts_the_selected_cell_at_fixed_paths(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(monkeypatch)
    write_cell(project, CELL)
    refusal = run("publish", CELL, code=2)
    assert "reports/quick/seed-0/ss-cifar_fs-5way-1shot-pool.json: no such file" in refusal
    write_cell(project, "ss-cifar_fs-5way-1shot-pool")
    images = project / "models/evaluations" / CELL
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(images / "synthetic.png")
    run("publish", CELL)

    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert GIVEN.items() <= metrics.items()
    assert metrics.keys() - GIVEN.keys() == {
        "accuracy",
        "ci95",
        "std",
        "n_episodes",
        "protocol",
        "snapshot",
        "val_accuracy",
    }
    selected = Path("reports/selected")
    text = (selected / "table.md").read_text()
    assert "Pool: all teachers' features" in text
    assert "**ECI + ICFIL (PURER)**" in text
    assert "5-shot" not in text
    accuracy = pd.read_csv(selected / "accuracy.csv")
    assert list(accuracy) == ["method", "adaptation", "accuracy", "ci95", "protocol"]
    assert len(accuracy) == 7
    assert pd.read_csv(selected / "history.csv")["outer_accuracy"].iloc[-1] == 0.9
    assert list(pd.read_csv(selected / "selection.csv")["one_step"]) == [35, 40]
    assert (selected / "synthetic.png").read_bytes() == (images / "synthetic.png").read_bytes()

    refusal = run("publish", "ss-cifar_fs-5way-1shot-pool", code=2)
    assert f"not what params.yaml selects: allowed: {CELL}" in refusal

    select(monkeypatch, adaptation="magic")
    refusal = run("publish", CELL, code=2)
    assert "adaptation = 'magic': no such row in" in refusal
    assert "one_step, icfil, nearest_class_mean" in refusal


@pytest.mark.parametrize("method", ["random", "pool"])
def test_publish_without_meta_training_writes_the_same_files(
    project: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    cell = f"ss-cifar_fs-5way-1shot-{method}"
    row = "pool_features" if method == "pool" else "one_step"
    select(monkeypatch, method=method, adaptation=row)
    write_cell(project, "ss-cifar_fs-5way-1shot-pool")
    write_cell(project, cell)
    run("publish", cell)
    selected = Path("reports/selected")
    assert {path.name for path in selected.iterdir()} == {
        "table.md",
        "table.parquet",
        "accuracy.png",
        "training.png",
        "synthetic.png",
        "accuracy.csv",
        "history.csv",
        "selection.csv",
    }
    assert (selected / "history.csv").read_text() == "iteration,outer_accuracy\n"
    header = (selected / "selection.csv").read_text()
    assert header == "iteration,one_step,nearest_class_mean\n"


def test_metrics_are_those_of_the_row_that_was_asked_for(tmp_path: Path) -> None:
    cell = load_cell(write_cell(tmp_path, CELL))
    for name, row in cell.rows.items():
        assert _metrics(cell, name)["accuracy"] == row.accuracy
