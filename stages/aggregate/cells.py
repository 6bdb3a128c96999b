"""An evaluated cell of the grid, read from what meta_test and meta_train left."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.files import load_json, load_table
from stages.interface.errors import BadInput

_KEY = re.compile(
    r"(?P<scenario>[a-z]+)-(?P<dataset>\w+)-(?P<n_way>\d+)way-(?P<n_shot>\d+)shot-(?P<method>\w+)"
)


@dataclass(frozen=True)
class Cell:
    key: str
    scenario: str
    dataset: str
    n_way: int
    n_shot: int
    method: str
    metrics: dict[str, Any]  # by row (one_step, icfil, ..., pool_features): summary
    episodes: pd.DataFrame  # one row an episode, a column of accuracies (percent) per row
    selection: pd.DataFrame  # one row a snapshot: iteration, meta-validation accuracies
    history: pd.DataFrame  # one row an iteration of meta-training
    provenance: dict[str, Any]  # of meta_train and meta_test

    @property
    def rows(self) -> list[str]:
        """Names of the evaluated rows, adaptations first."""
        return list(self.metrics)

    @property
    def batch_norm(self) -> str:
        """The learners' mode at meta-test."""
        return str(self.metrics["one_step"]["batch_norm"])


def load_cell(key: str, budget: str, root: Path = Path()) -> Cell:
    """The cell `key` as it was last run at `budget`, from the project at `root`.

    Raises BadInput for a missing or foreign file, files that disagree, and what is no cell's key.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise BadInput(f"{key}: not a cell: <scenario>-<data set>-<n>way-<n>shot-<method>")
    learner, evaluation = root / "models/learners" / key, root / "models/evaluations" / key
    metrics = load_json(root / "reports" / budget / "cells" / f"{key}.json")
    episodes = load_table(evaluation / "episodes.parquet")
    if episodes.empty:
        raise BadInput(f"{evaluation / 'episodes.parquet'}: no episodes in it")
    for name, value in metrics.items():
        if name not in episodes:
            raise BadInput(f"{evaluation / 'episodes.parquet'}: no column {name}")
        if abs(episodes[name].mean() - value["accuracy"]) > 0.001:
            raise BadInput(
                f"{key}: {name} is {episodes[name].mean():.4f} % in {evaluation},"
                f" {value['accuracy']:.4f} % in its metrics at budget {budget}: not one run"
            )
    return Cell(
        key=key,
        scenario=match["scenario"],
        dataset=match["dataset"],
        n_way=int(match["n_way"]),
        n_shot=int(match["n_shot"]),
        method=match["method"],
        metrics=metrics,
        episodes=episodes,
        selection=load_table(evaluation / "selection.parquet"),
        history=load_table(learner / "history.parquet"),
        provenance={
            "meta_train": load_json(learner.with_name(f"{learner.name}.provenance.json")),
            "meta_test": load_json(evaluation / "provenance.json"),
        },
    )
