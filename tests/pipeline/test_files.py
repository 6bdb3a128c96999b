"""The pipeline's files say what the code does: parameters, code, cells, data-freeness."""

from __future__ import annotations

import ast
import importlib
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.aggregate.cells import READS, load_cell
from stages.aggregate.command import PARAMS as PUBLISHED_PARAMS
from stages.aggregate.layouts import OURS, PAPER, cells_of, every_row
from stages.data_based.params import DATA_BASED
from stages.interface.params import load, lookup, sections
from stages.meta_train.methods import METHODS
from stages.split.catalogue import CATALOGUE
from stages.split.sources import SOURCES
from tests.aggregate.fakes import write_cell
from tests.conftest import ROOT

GRID = YAML(typ="safe").load(ROOT / "stages" / "grid.yaml")
PARAMS = load(ROOT / "params.yaml")
# Sections of the grid that each stage of stages/dvc.yaml runs over, and the package it runs.
OVER = {
    "split": "splits",
    "pretrain": "pools",
    "meta_train": "learners",
    "data_based": "real_learners",
    "meta_test": "cells",
    "meta_test_pool": "pool_cells",
    "own_pool": "own_pools",
}
PACKAGES = (
    "split",
    "pretrain",
    "meta_train",
    "data_based",
    "pseudo",
    "meta_test",
    "aggregate",
    "pool",
    "use",
)
CELLS = GRID["cells"] | GRID["pool_cells"]
POOLS = GRID["pools"] | GRID["own_pools"]


@cache
def resolved() -> dict[str, Any]:
    """Every stage by name, as DVC resolves it."""
    return {stage.addressing.split(":")[-1]: stage for stage in Repo(str(ROOT)).index.stages}


def declared_params(name: str) -> set[str]:
    found: set[str] = set()
    for dep in resolved()[name].deps:
        found |= set(getattr(dep, "params", None) or [])
    return found


def declared_deps(name: str) -> set[str]:
    return {
        str(Path(dep.fs_path).relative_to(ROOT))
        for dep in resolved()[name].deps
        if not getattr(dep, "params", None)
    }


def outputs(name: str) -> set[str]:
    return {str(Path(out.fs_path).relative_to(ROOT)) for out in resolved()[name].outs}


def cell_of(name: str) -> dict[str, str]:
    """What the templates of a stage's PARAMS are filled with."""
    stage, _, key = name.partition("@")
    cell = {"budget": PARAMS.budget, "dataset": key}
    if stage in OVER and stage != "split":
        cell |= {k: str(v) for k, v in GRID[OVER[stage]][key].items()}
    return cell


def package(name: str) -> str:
    """The package whose command a stage runs."""
    stage = name.partition("@")[0]
    return {"own_pool": "pool"}.get(stage, "meta_test" if "meta_test" in stage else stage)


def names(*stages: str) -> list[str]:
    return [name for name in resolved() if name.partition("@")[0] in stages]


def test_params_are_what_the_code_reads() -> None:
    """`params.read` gives a stage its declared keys only; the pipeline must declare the same."""
    for name in names(*OVER, "pseudo"):
        templates = importlib.import_module(f"stages.{package(name)}.command").PARAMS
        cell = cell_of(name)
        expected = {template.format(**cell) for template in templates}
        assert declared_params(name) == expected, name
    assert declared_params("publish") == set(PUBLISHED_PARAMS)


def test_what_a_table_calls_changed_is_what_the_stages_read() -> None:
    for name in names("pretrain", "own_pool", "meta_train", "data_based", "meta_test"):
        stage, cell = name.partition("@")[0], {"dataset": "", "method": "", **cell_of(name)}
        cell |= sections(cell["method"])[0]
        read = declared_params(name) - {"seed", "device"}
        found = {template.format(**{"scenario": "", **cell}) for template in READS[stage]}
        if stage == "meta_train":
            assert read == found
        assert read <= found  # the others were made from a data set, or are a pool's


def test_every_declared_param_exists() -> None:
    for name in resolved():
        for key in declared_params(name):
            lookup(PARAMS, key)


def test_meta_training_never_depends_on_data() -> None:
    cells = names("meta_train")
    assert cells
    for name in cells:
        inputs = {dep for dep in declared_deps(name) if not dep.startswith("stages/")}
        learner = GRID["learners"][name.partition("@")[2]]
        assert inputs == {f"models/pools/{learner['pool']}", f"models/{learner['start']}"}
        assert "data/" not in resolved()[name].cmd


@pytest.mark.parametrize("stage", [*OVER, "pseudo", *PAPER])
def test_code_dependencies_are_the_stages_own_and_common(stage: str) -> None:
    own = "aggregate" if stage in PAPER else package(stage)
    assert names(stage)
    for name in names(stage):
        code = {dep for dep in declared_deps(name) if dep.startswith("stages/")}
        assert code == {f"stages/{own}", "stages/common"}, name


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {m for m in modules if m.startswith("stages.")}


@pytest.mark.parametrize("stage", [*PACKAGES, "common"])
def test_a_stage_imports_only_itself_common_and_what_a_person_sees(stage: str) -> None:
    """Otherwise code that DVC does not know of could change a result."""
    for path in (ROOT / "stages" / stage).rglob("*.py"):
        for module in _imports(path):
            assert module.split(".")[1] in {stage, "common", "interface"}, (path, module)


def test_every_input_is_some_stages_output() -> None:
    made = {out for name in resolved() for out in outputs(name)}
    for name in resolved():
        for dep in declared_deps(name):
            known = dep in made or any(dep.startswith(f"{out}/") for out in made)
            brought = dep == PARAMS.own_pool
            assert known or brought or (ROOT / dep).exists(), (name, dep)


def test_the_grid_spells_its_keys() -> None:
    for key, pool in GRID["pools"].items():
        assert key == f"{pool['scenario']}-{pool['dataset']}-{pool['n_way']}way"
        assert (pool["second"] == pool["dataset"]) == (pool["scenario"] != "mh")
    for key, learner in GRID["learners"].items():
        row, pool = METHODS[learner["method"]], POOLS[learner["pool"]]
        shot = f"-{learner['n_shot']}shot" if row.family == "episode_inversion" else ""
        assert key == f"{learner['pool']}{shot}-{learner['method']}"
        start = f"learners/{learner['pool']}-{row.continues}"
        assert learner["start"] == (start if row.continues else f"pools/{learner['pool']}")
        assert (row.family, row.length) == (learner["family"], learner["length"])
        assert not (row.mixes and learner["scenario"] != "ss")
        assert (pool["scenario"], pool["n_way"]) == (learner["scenario"], learner["n_way"])
    for key, learner in GRID["real_learners"].items():
        task = f"ss-{learner['dataset']}-{learner['n_way']}way-{learner['n_shot']}shot"
        assert key == f"{task}-{learner['method']}"
        assert learner["method"] in DATA_BASED
    for key, pool in GRID["own_pools"].items():
        assert key == f"{pool['scenario']}-none-{pool['n_way']}way"
    without = {"dataset": "none", "second": "none"}
    for key, cell in CELLS.items():
        pool = without | POOLS[cell["pool"]]
        assert {k: cell[k] for k in ("dataset", "second", "n_way")}.items() <= pool.items()
        task, method = key.rsplit("-", 1)
        assert task == f"{cell['pool']}-{cell['n_shot']}shot"
        if method != "pool":
            assert cell["learner"] in (f"{task}-{method}", f"{cell['pool']}-{method}")
    assert set(GRID["splits"]) == set(CATALOGUE) == set(SOURCES)


def test_every_learner_has_its_cells_and_every_pool_its_own() -> None:
    learners = GRID["learners"] | GRID["real_learners"]
    judged = GRID["cells"].values()
    assert {cell["learner"] for cell in judged} == set(learners)
    shots = {(cell["pool"], cell["n_shot"]) for cell in judged}
    pools = GRID["pool_cells"].values()
    assert {(cell["pool"], cell["n_shot"]) for cell in pools} == shots
    assert {pool for pool, _ in shots} == set(POOLS)


@pytest.mark.parametrize("table", PAPER)
def test_tables_and_cells_agree(table: str) -> None:
    wanted = cells_of(PAPER[table])
    assert wanted <= set(CELLS)
    budget = PARAMS.budget
    cells = {dep for dep in declared_deps(table) if dep.startswith("reports/")}
    assert cells == {f"reports/{budget}/seed-0/{key}.json" for key in wanted}
    assert f"table {table} " in resolved()[table].cmd


@pytest.mark.parametrize("table", OURS)
def test_our_own_tables_name_cells_of_the_grid_alone(table: str) -> None:
    assert cells_of(OURS[table]) <= set(CELLS)


@pytest.mark.parametrize("task", sorted({key.rsplit("-", 2)[0] for key in CELLS}))
def test_a_table_of_every_row_names_cells_of_the_grid_alone(task: str, tmp_path: Path) -> None:
    cells = [
        load_cell(write_cell(tmp_path, key))
        for key in CELLS
        if key.startswith(f"{task}-1shot") and key.endswith("eci")
    ]
    (layout,) = every_row(cells)
    always = ("pool", "ei", "eci", "distill")
    assert {f"{task}-{n}shot-{name}" for n in (1, 5) for name in always} <= cells_of(layout)
    assert cells_of(layout) <= set(CELLS)


def test_what_is_installed_has_every_file_that_is_read() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    kept = {
        path
        for package, patterns in packaged["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    for path in (ROOT / "stages").rglob("*"):
        pipeline = path.name in ("dvc.yaml", "dvc.lock", ".gitignore")  # of the project's folder
        if path.is_file() and path.suffix not in (".py", ".pyc") and not pipeline:
            assert path in kept


def test_the_grid_stays_small() -> None:
    """`dvc repro` with nothing to do takes 0.8 s of 84 stages, 1.9 of 388, 1.7 of 400 elsewhere."""
    assert len(resolved()) < 401


def test_git_sees_tables_and_dvc_does_not_see_caches() -> None:
    ignored = (ROOT / ".dvcignore").read_text().split()
    assert {"__pycache__/", "*.py[co]", ".work/"} <= set(ignored)
    for name in names(*PAPER):
        assert not any(out.use_cache for out in resolved()[name].outs)
    for name in names(*(stage for stage in OVER if stage.startswith("meta_test"))):
        (metric,) = [out for out in resolved()[name].outs if out.metric]
        assert not metric.use_cache
