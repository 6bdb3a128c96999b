"""The pipeline's files say what the code does: parameters, code, cells, data-freeness."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.aggregate.command import PARAMS as PUBLISHED_PARAMS
from stages.interface.params import load, lookup
from stages.meta_train.methods import METHODS
from stages.split.catalogue import CATALOGUE
from stages.split.sources import SOURCES
from tests.conftest import ROOT

GRID = YAML(typ="safe").load(ROOT / "stages" / "grid.yaml")
STAGES = ("split", "pretrain", "meta_train", "meta_test", "aggregate")


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
    cell = {"budget": load(ROOT / "params.yaml").budget, "dataset": key}
    if stage in ("meta_train", "meta_test"):
        cell |= {k: str(v) for k, v in GRID["cells"][key].items()}
    return cell


def names(*stages: str) -> list[str]:
    return [name for name in resolved() if name.partition("@")[0] in stages]


def test_params_are_what_the_code_reads() -> None:
    """`params.read` gives a stage its declared keys only; the pipeline must declare the same."""
    for name in names("split", "pretrain", "meta_train", "meta_test"):
        stage = name.partition("@")[0]
        templates = importlib.import_module(f"stages.{stage}.command").PARAMS
        expected = {template.format(**cell_of(name)) for template in templates}
        assert declared_params(name) == expected, name
    assert declared_params("publish") == set(PUBLISHED_PARAMS)


def test_every_declared_param_exists() -> None:
    params = load(ROOT / "params.yaml")
    for name in resolved():
        for key in declared_params(name):
            lookup(params, key)


def test_meta_training_never_depends_on_data() -> None:
    cells = names("meta_train")
    assert cells
    for name in cells:
        inputs = {dep for dep in declared_deps(name) if not dep.startswith("stages/")}
        assert inputs == {f"models/pools/{GRID['cells'][name.partition('@')[2]]['pool']}"}
        assert "data/" not in resolved()[name].cmd


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_stages_own_and_common(stage: str) -> None:
    for name in names(stage):
        code = {dep for dep in declared_deps(name) if dep.startswith("stages/")}
        assert code == {f"stages/{stage}", "stages/common"}, name


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {m for m in modules if m.startswith("stages.")}


@pytest.mark.parametrize("stage", [*STAGES, "common"])
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
            assert known or (ROOT / dep).exists(), (name, dep)


def test_cells_spell_their_keys() -> None:
    for key, cell in GRID["cells"].items():
        pool = GRID["pools"][cell["pool"]]
        assert (pool["dataset"], pool["n_way"]) == (cell["dataset"], cell["n_way"])
        assert key == f"{cell['pool']}-{cell['n_shot']}shot-{cell['method']}"
        assert METHODS[cell["method"]].family == cell["family"]
    for key, pool in GRID["pools"].items():
        assert key == f"ss-{pool['dataset']}-{pool['n_way']}way"
    assert set(GRID["splits"]) == set(CATALOGUE) == set(SOURCES)


def test_tables_and_cells_agree() -> None:
    in_tables = {
        word
        for name in names("aggregate")
        for word in resolved()[name].cmd.split()
        if word.startswith("ss-")
    }
    assert in_tables == set(GRID["cells"])


def test_the_grid_stays_small() -> None:
    assert len(resolved()) < 150


def test_git_sees_tables_and_dvc_does_not_see_caches() -> None:
    ignored = (ROOT / ".dvcignore").read_text().split()
    assert {"__pycache__/", "*.py[co]", ".work/"} <= set(ignored)
    for name in names("aggregate"):
        assert not any(out.use_cache for out in resolved()[name].outs)
    metrics = [o for n in names("meta_test") for o in resolved()[n].outs if o.metric]
    assert metrics
    assert not any(out.use_cache for out in metrics)
