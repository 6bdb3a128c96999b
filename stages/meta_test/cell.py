"""The cell's file: all that a table, a figure or a report needs of one evaluated learner.

`reports/<budget>/seed-<seed>/<cell>.json` is in git, so tables can be made where the models are
not. Lists are no metrics to DVC, so `dvc metrics diff` compares the accuracies alone.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.common.files import load_json, load_table, save_table, written_whole
from stages.interface.errors import BadInput
from stages.interface.provenance import NO_DATA, provenance_of, runs_behind
from stages.meta_test.evaluate import Row, Tasks

KEY = re.compile(
    r"(?P<scenario>[a-z]+)-(?P<dataset>\w+)-(?P<n_way>\d+)way-(?P<n_shot>\d+)shot-(?P<method>\w+)"
)
CURVE_POINTS = 200  # of the history that the file keeps


def parts_of(key: str, n_way: int, n_shot: int) -> dict[str, str]:
    """What a cell's key names: scenario, dataset, n_way, n_shot, method.

    Raises BadInput if `key` is no such cell's.
    """
    match = KEY.fullmatch(key)
    if match is None or (int(match["n_way"]), int(match["n_shot"])) != (n_way, n_shot):
        raise BadInput(
            f"{key}: not the key of a {n_way}-way {n_shot}-shot cell:"
            " <scenario>-<data set>-<n>way-<n>shot-<method>"
        )
    return match.groupdict()


def runs_before(
    pool: Path, learner: Path | None, key: str, seed: int, budget: str
) -> list[dict[str, Any]]:
    """The runs that made the pool and the learner of a cell, first first.

    Raises BadInput if one has no provenance, or was of another seed or budget than the cell is
    filed under: a folder's name does not say. A pool brought from elsewhere has neither.
    """
    runs = [{"stage": "pretrain"} | load_json(provenance_of(pool))]
    if learner is not None:
        runs += runs_behind(learner)
    for run in runs:
        if (found := run.get("seed", seed)) != seed:
            raise BadInput(
                f"{key}: seed = {seed}: its {run['stage']} was run with seed = {found};"
                f" allowed: {found}, or {run['stage']} again"
            )
        budgets = {
            name.split(".")[1] for name in run.get("params", {}) if name.startswith("budgets.")
        }
        if others := budgets - {budget}:
            raise BadInput(
                f"{key}: budget = {budget!r}: its {run['stage']} was run with"
                f" budget = {min(others)!r}; allowed: {min(others)}, or {run['stage']} again"
            )
    return runs


def save_episodes(path: Path, rows: Mapping[str, Row], test: Tasks) -> None:
    """A row an episode: its data set and classes, and the accuracy (percent) of every row."""
    names = [
        " ".join(test.data[t.data].class_names[c] for c in t.episode.classes.tolist())
        for t in test.tasks
    ]
    table = {
        "episode": range(len(test.tasks)),
        "dataset": [test.data[t.data].dataset for t in test.tasks],
        "classes": names,
        **{name: 100 * row.share.double().mean(1).numpy() for name, row in rows.items()},
    }
    save_table(path, pd.DataFrame(table))


def save_cell(
    path: Path,
    key: str,
    rows: Mapping[str, Row],
    test: Tasks,
    content: Mapping[str, Any],
    *,
    n_way: int,
    n_shot: int,
    n_query: int,
    seed: int,
    budget: str,
    made: Sequence[dict[str, Any]],
    learner: Path | None,
    evaluation: Path,
) -> None:
    """Write the file; `made`: the `runs_before`. Raises BadInput as `parts_of`."""
    parts = parts_of(key, n_way, n_shot)
    runs = [*made, load_json(evaluation / "provenance.json") | {"stage": "meta_test"}]
    whole = {
        "key": key,
        **parts,
        "n_way": n_way,
        "n_shot": n_shot,
        "n_query": n_query,
        "datasets": [part.dataset for part in test.data],
        "seed": seed,
        "budget": budget,
        "n_episodes": len(test.tasks),
        "fingerprint": test.fingerprint,
        "data_used": NO_DATA if learner is None else made[-1]["data_used"],
        "rows": {name: row.summary() for name, row in rows.items()},
        **content,
        "history": _history(learner),
        "provenance": runs,
        "command": _command(parts | {"budget": budget, "seed": seed}, runs[-1]),
    }
    text = json.dumps(whole, indent=1, sort_keys=True)
    # A list of numbers on one line: git's diffs stay readable.
    text = re.sub(r"\[\n[\s\d.,+e-]+\]", lambda m: re.sub(r"\s+", "", m[0]), text)
    with written_whole(path) as temporary:
        temporary.write_text(text + "\n")


def _history(learner: Path | None) -> dict[str, Any]:
    """Accuracy on training episodes, thinned to means, and when the curriculum's steps were."""
    if learner is None:
        return {"iteration": [], "outer_accuracy": [], "switches": []}
    table = load_table(learner / "history.parquet")
    if "outer_accuracy" not in table:
        return {"iteration": [], "outer_accuracy": [], "switches": []}
    switches: list[int] = []
    if "feedback" in table:
        switches = table.loc[table["feedback"] > 0, "iteration"].tolist()
    parts = np.array_split(np.arange(len(table)), min(CURVE_POINTS, len(table)))
    accuracy, iteration = table["outer_accuracy"].to_numpy(), table["iteration"].to_numpy()
    return {
        "iteration": [int(iteration[part[-1]]) for part in parts],
        "outer_accuracy": [round(float(accuracy[part].mean()), 4) for part in parts],
        "switches": switches,
    }


def _command(selection: dict[str, Any], run: Mapping[str, Any]) -> str:
    """What makes the cell again at its commit: the selection, and whatever else was changed.

    `run`: the provenance of meta_test. What came before agreed with its params.yaml.
    """
    chosen = selection | run["changed_params"]
    words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in chosen.items()}
    options = (shlex.quote(f"{name}={value}") for name, value in words.items())
    return "dvc exp run " + " ".join(f"-S {option}" for option in options)
