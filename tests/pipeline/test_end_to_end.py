"""One small experiment through every stage, as a user runs it: dvc repro, dvc exp run, diffs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages.aggregate.cells import load_cell
from stages.interface.provenance import flat
from tests.pipeline.conftest import BIN, POOL, Project, executed

CELL = "ss-glyphs-5way-5shot-eci"
POOL_CELL = f"{POOL}-5shot-pool"
CHAIN = [
    "split@glyphs",
    f"pretrain@{POOL}",
    f"meta_train@{CELL}",
    f"meta_test@{CELL}",
    f"meta_test_pool@{POOL_CELL}",
    "publish",
]


def test_what_a_run_leaves(project: Project) -> None:
    metrics = json.loads((project.root / "reports" / "metrics.json").read_text())
    selection = {
        "scenario": "ss",
        "dataset": "glyphs",
        "n_way": 5,
        "n_shot": 5,
        "method": "eci",
        "adaptation": "icfil",
        "budget": "quick",
        "seed": 0,
        "n_episodes": 6,
    }
    assert metrics.items() >= selection.items()
    assert 0 <= metrics["accuracy"] <= 100
    assert {"ci95", "std", "snapshot", "val_accuracy"} <= set(metrics)
    assert metrics["protocol"].startswith("1 step, lr 0.01, transductive; calibration")

    cell = load_cell(project.root / "reports/quick/seed-0" / f"{CELL}.json")
    given = flat(YAML(typ="safe").load(project.root / "params.yaml"))
    assert cell.params.items() <= given.items()
    parts = ("pretrain.", "scenarios.ss.", "budgets.quick.pretrain.", "learner.", "meta_train.eci.")
    parts += ("meta_train.episode_inversion.", "budgets.quick.meta_train.", "meta_test.icfil.")
    read = {part: sum(key.startswith(part) for key in cell.params) for part in parts}
    expected = {part: sum(key.startswith(part) for key in given) for part in parts}
    compiled = {"meta_train.episode_inversion.": 1}  # how it is run
    assert {part: n + compiled.get(part, 0) for part, n in read.items()} == expected
    assert "n_query" in cell.params
    assert "seed" not in cell.params

    episodes = pd.read_parquet(project.root / "models/evaluations" / CELL / "episodes.parquet")
    assert len(episodes) == 6
    assert set(episodes) == {
        "episode",
        "dataset",
        "classes",
        "one_step",
        "icfil",
        "nearest_class_mean",
        "linear_probe",
    }
    assert metrics["accuracy"] == pytest.approx(episodes["icfil"].mean(), abs=1e-3)

    selected = project.root / "reports/selected"
    table = (selected / "table.md").read_text()
    assert "ECI + ICFIL (PURER)" in table
    assert "all teachers' features" in table  # the pool's own rows stand beside every learner's
    for picture in ("accuracy.png", "training.png", "synthetic.png"):
        assert Image.open(selected / picture).size[0] > 300

    manifest = json.loads((project.root / "models/pools" / POOL / "manifest.json").read_text())
    assert [len(teacher["class_ids"]) for teacher in manifest["teachers"]] == [5, 5, 5]


def test_nothing_is_left_to_do(project: Project) -> None:
    assert "up to date" in project.run("dvc", "repro")
    assert not executed(project.run("dvc", "repro", "--dry"))
    assert [p.name for p in (project.root / ".work").iterdir()] == ["locks"]


def test_equal_inputs_give_equal_bytes(project: Project, tmp_path: Path) -> None:
    """Each command, run again with nothing but its declared dependencies, gives the same bytes.

    So no stage reads a file that the pipeline does not know of, and meta_train does without data/.
    """
    from dvc.repo import Repo

    for stage in Repo(str(project.root)).index.stages:
        name = stage.addressing.split(":")[-1]
        if name not in ("check", *CHAIN):
            continue
        sandbox = tmp_path / name.replace("@", "-")
        sandbox.mkdir()
        shutil.copy(project.root / "params.yaml", sandbox)
        for dep in stage.deps:
            source = Path(dep.fs_path)
            relative = source.relative_to(project.root)
            if str(relative).startswith("stages/") or str(relative) == "params.yaml":
                continue
            if (sandbox / relative).exists():  # named twice: a start that is the pool itself
                continue
            (sandbox / relative).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, sandbox / relative)
        command = Project(sandbox)
        command.run(*stage.cmd.split(), PYTHONPATH=str(project.root), DVC_ROOT=str(sandbox))
        for out in stage.outs:
            relative = Path(out.fs_path).relative_to(project.root)
            found, expected = _bytes(sandbox / relative), _bytes(project.root / relative)
            assert found == expected, (name, relative)


def _bytes(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {
        str(file.relative_to(path)): _without_provenance(file)
        for file in files
        if file.is_file() and "provenance" not in file.name  # time and date of a run
    }


def _without_provenance(file: Path) -> bytes:
    if "seed-" not in file.parent.name:
        return file.read_bytes()
    return json.dumps({**json.loads(file.read_text()), "provenance": []}).encode()


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"datasets__glyphs__images_per_class": 21}, ["split@glyphs"]),
        ({"pretrain__lr_decay": 0.3}, [f"pretrain@{POOL}"]),
        ({"budgets__quick__pretrain__epochs": 1}, [f"pretrain@{POOL}"]),
        ({"scenarios__sh__teachers_per_step": 1}, []),
        ({"meta_train__eci__curriculum_weight": 2.0}, [f"meta_train@{CELL}"]),
        ({"meta_train__eci_lambda2__curriculum_weight": 3.0}, []),
        ({"meta_train__episode_inversion__inner_lr": 0.02}, [f"meta_train@{CELL}"]),
        ({"budgets__quick__meta_train__n_iterations": 9}, [f"meta_train@{CELL}"]),
        ({"meta_test__icfil__head_lr": 0.02}, CHAIN[3:5]),
        ({"budgets__quick__meta_test__n_val_episodes": 4}, CHAIN[3:5]),
        ({"adaptation": "one_step"}, ["publish"]),
        ({"datasets__textures__images_per_class": 21}, []),
        ({"budgets__paper__pretrain__epochs": 61}, []),
        ({"data_based__real_maml__outer_lr": 0.01}, []),
    ],
    ids=str,
)
def test_a_changed_parameter_reruns_what_it_affects(
    project: Project,
    change: dict[str, object],
    first: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What DVC says is changed: the first stages of the chain; those before them are not."""
    from dvc.repo import Repo

    project.set(**change)
    monkeypatch.chdir(project.root)
    status = Repo().status(targets=[*(f"stages/dvc.yaml:{n}" for n in CHAIN[:-1]), "publish"])
    changed = [name for name in CHAIN if any(key.endswith(name) for key in status)]
    assert changed == first


def test_exp_run_selects_another_cell_and_shares_what_it_can(project: Project) -> None:
    """The issue's promise, in the order a user might try: each -S works alone."""
    output = project.run("dvc", "exp", "run", "-S", "n_shot=1")
    cell = "ss-glyphs-5way-1shot-eci"
    ran = {f"meta_train@{cell}", f"meta_test@{cell}", f"meta_test_pool@{POOL}-1shot-pool"}
    assert set(executed(output)) == {"check", "publish"} | ran
    assert json.loads((project.root / "reports/metrics.json").read_text())["n_shot"] == 1
    diff = project.run("dvc", "metrics", "diff", "--json", "HEAD")
    diff = json.loads(diff[diff.index("{") :])  # after a word on cells that were not run
    assert {"accuracy", "n_shot"} <= set(diff["reports/metrics.json"])
    project.restore()

    output = project.run("dvc", "exp", "run", "-S", "method=ei")
    cell = "ss-glyphs-5way-5shot-ei"
    assert executed(output) == ["check", f"meta_train@{cell}", f"meta_test@{cell}", "publish"]

    # Back: everything is in the run-cache, nothing is computed again.
    project.restore()
    output = project.run("dvc", "repro")
    assert not [name for name in executed(output) if name.startswith(("meta_", "pre", "split"))]


def test_the_report_shows_what_was_run_and_says_what_was_not(project: Project) -> None:
    output = project.run("python", "-m", "stages.aggregate", "report", "--budget", "quick")
    assert "report.html" in output
    tables = project.root / "reports/quick/tables"
    assert "not run" in (tables / "table_1.md").read_text()
    assert "ECI + ICFIL" in (tables / "every_row-ss-glyphs-5way.md").read_text()
    accuracy = json.loads((project.root / "reports/metrics.json").read_text())["accuracy"]
    assert f">{accuracy:.2f} ± " in (project.root / "reports/quick/report.html").read_text()


def test_another_seed_stands_beside_the_first(project: Project) -> None:
    project.run("dvc", "exp", "run", "-S", "seed=1")
    # DVC may take the other seed's files for outputs of a stage that moved; git has them.
    project.run("git", "checkout", "--", "reports/quick/seed-0")
    project.run("python", "-m", "stages.aggregate", "report", "--budget", "quick")
    table = project.root / "reports/quick/tables/every_row-ss-glyphs-5way.md"
    assert "2 seeds: ±" in table.read_text()


def test_plots_and_dag_show(project: Project, tmp_path: Path) -> None:
    page = project.run("dvc", "plots", "show", "-o", str(tmp_path / "plots"))
    assert "fail" not in page.lower()
    html = (tmp_path / "plots" / "index.html").read_text()
    for title in ("meta-test accuracy of the", "accuracy on training", "meta-validation accuracy"):
        assert title in html
    assert html.count(".png") >= 3
    assert "meta_train" in project.run(
        "dvc", "dag", "--collapse-foreach-matrix", "--md", "stages/dvc.yaml"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "sss"}, "scenario = 'sss': allowed: ss"),
        ({"n_way": 0}, "n_way = 0: input should be greater than or equal to 2"),
        ({"n_way": 17}, "n_way = 17: glyphs has only 16 classes in its smallest split"),
        ({"n_shot": 17}, "n_shot = 17, n_query = 4: an episode needs 21 images of a class"),
        ({"n_shot": 3}, "ss-glyphs-5way-3shot-eci is not a cell of stages/grid.yaml"),
        ({"method": "eii"}, "method = 'eii': allowed: random, average"),
        ({"scenario": "sh", "method": "ota"}, "method = 'ota' mixes the teachers' parameters"),
        ({"method": "dro", "adaptation": "icfil"}, "dro has no such row; allowed: auto, one_step"),
    ],
    ids=str,
)
def test_a_wrong_selection_is_refused_by_the_check(
    project: Project, changes: dict[str, object], message: str
) -> None:
    project.set(**changes)
    assert message in project.run("python", "-m", "stages.check", code=2)


def test_a_wrong_selection_is_refused_before_anything_runs(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-S", "budget=papr", code=255)
    assert "budget = 'papr': allowed: quick, five_minutes" in output
    assert "exited with 2" in output
    assert executed(output) == ["check"]
    project.restore()
    assert "exited" not in project.run("dvc", "repro")


def test_a_table_fails_on_a_missing_cell(project: Project) -> None:
    command = "python -m stages.aggregate table table_1 --budget quick --seed 0 --out x"
    output = project.run(*command.split(), code=2)
    assert "reports/quick/seed-0/ss-cifar_fs-5way-1shot-average.json: no such file" in output
    assert "dvc repro stages/dvc.yaml:table_1" in output
    assert not (project.root / "x").exists()


def test_two_processes_make_two_cells_at_once(project: Project) -> None:
    """`dvc repro -s`: each makes its own stage; DVC keeps the two from each other's lock file."""
    keys = [f"{POOL}-1shot-ei", f"{POOL}-1shot-anil"]
    for stage in ("meta_train", "meta_test"):
        together = [
            subprocess.Popen(
                [BIN / "dvc", "repro", "-s", f"stages/dvc.yaml:{stage}@{key}"],
                cwd=project.root,
                env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for key in keys
        ]
        for process in together:
            output = process.communicate(timeout=300)[0]
            assert process.returncode == 0, output
    for key in keys:
        assert (project.root / f"reports/quick/seed-0/{key}.json").is_file()
    targets = [f"stages/dvc.yaml:meta_test@{key}" for key in keys]
    assert not executed(project.run("dvc", "repro", "-s", *targets))


def test_a_second_clone_fetches_instead_of_computing(project: Project, tmp_path: Path) -> None:
    """All of a cell whose lock is in git; of one that is not, all but the files that git keeps."""
    remote = tmp_path / "remote"
    project.run("dvc", "remote", "add", "-f", "-d", "--local", "shared", str(remote))
    project.run("dvc", "exp", "run", "-S", "n_shot=1")
    computed = _bytes(project.root / "reports/metrics.json")
    project.run("dvc", "push", "-q", "--run-cache")
    project.restore()
    project.run("git", "clone", "-q", str(project.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.run("dvc", "remote", "add", "-d", "--local", "shared", str(remote))
    clone.run("dvc", "pull", "-q", "--run-cache", "--allow-missing")
    assert executed(clone.run("dvc", "repro")) == []
    output = clone.run("dvc", "exp", "run", "--pull", "-S", "n_shot=1")
    other = {f"meta_test@{POOL}-1shot-eci", f"meta_test_pool@{POOL}-1shot-pool"}
    assert set(executed(output)) == {"check", "publish"} | other
    assert _bytes(clone.root / "reports/metrics.json") == computed
