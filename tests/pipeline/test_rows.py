"""Every row and scenario of the small experiment alone, each as a user selects it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.pipeline.conftest import POOL, Project, executed


@pytest.mark.parametrize(
    ("changes", "row", "stages"),
    [
        (["method=average"], "one_step", {f"meta_train@{POOL}-average"}),
        (["method=ota", "adaptation=tuned_steps"], "tuned_steps", {f"meta_train@{POOL}-ota"}),
        (["method=dro"], "one_step", {f"meta_train@{POOL}-dro"}),
        (["method=distill"], "nearest_class_mean", {f"meta_train@{POOL}-distill"}),
        (["method=anil"], "one_step", {f"meta_train@{POOL}-5shot-anil"}),
        (["method=protonet"], "nearest_class_mean", {f"meta_train@{POOL}-5shot-protonet"}),
        (["method=maml_dagger"], "icfil", {f"data_based@{POOL}-5shot-maml_dagger"}),
        (["method=pool"], "pool_features", set()),
    ],
    ids=str,
)
def test_every_row_works_alone(
    project: Project, changes: list[str], row: str, stages: set[str]
) -> None:
    method = changes[0].partition("=")[2]
    selected = [word for change in changes for word in ("-S", change)]
    output = project.run("dvc", "exp", "run", *selected)
    if method != "pool":
        stages = stages | {f"meta_test@{POOL}-5shot-{method}"}
    assert set(executed(output)) == {"check", "publish"} | stages
    metrics = json.loads((project.root / "reports/metrics.json").read_text())
    assert (metrics["method"], metrics["adaptation"]) == (method, row)
    table = (project.root / "reports/selected/table.md").read_text()
    assert f"- `{POOL}-5shot-{method}`, seed 0: " in table


def test_a_pool_without_a_data_set_goes_through(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-S", "dataset=none", code=255)
    assert "own_pool = 'models/own': models/own: no such pool folder" in output
    project.restore()
    shutil.copytree(project.root / "models/pools" / POOL, project.root / "models/own")
    output = project.run("dvc", "exp", "run", "-S", "dataset=none", "-S", "method=distill")
    cell = "ss-none-5way-5shot-distill"
    assert set(executed(output)) == {
        "check",
        "own_pool@ss-none-5way",
        "meta_train@ss-none-5way-distill",
        "pseudo",
        f"meta_test@{cell}",
        "meta_test_pool@ss-none-5way-5shot-pool",
        "publish",
    }
    table = (project.root / "reports/selected/table.md").read_text()
    assert "fresh synthetic images of the pool's own classes" in table
    assert "(image prior)" in table
    shutil.rmtree(project.root / "models/own")


@pytest.mark.parametrize("scenario", ["sh", "mh"])
def test_the_other_scenarios_work_alone(project: Project, scenario: str) -> None:
    output = project.run("dvc", "exp", "run", "-S", f"scenario={scenario}")
    pool, cell = f"{scenario}-glyphs-5way", f"{scenario}-glyphs-5way-5shot-eci"
    expected = {"check", f"pretrain@{pool}", f"meta_train@{cell}", f"meta_test@{cell}"}
    expected |= {f"meta_test_pool@{pool}-5shot-pool", "publish"}
    assert set(executed(output)) == expected | ({"split@textures"} if scenario == "mh" else set())
    content = json.loads((project.root / f"reports/quick/seed-0/{cell}.json").read_text())
    assert content["datasets"] == (["glyphs", "textures"] if scenario == "mh" else ["glyphs"])
