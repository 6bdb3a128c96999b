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
METRICS, EPISODES, SELECTION = "metrics.json", "episodes.parquet", "selection.parquet"


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
        return [name for name, value in self.metrics.items() if isinstance(value, dict)]


def load_cell(folder: Path, learner: Path) -> Cell:
    """The cell evaluated in `folder`, whose learner's files lie in `learner`.

    Raises BadInput for a missing or foreign file, and for a folder whose name is no cell's key.
    """
    match = _KEY.fullmatch(folder.name)
    if match is None:
        raise BadInput(
            f"{folder}: not a cell: expected <scenario>-<data set>-<n>way-<n>shot-<method>"
        )
    metrics, episodes = load_json(folder / METRICS), load_table(folder / EPISODES)
    for name, value in metrics.items():
        if isinstance(value, dict) and len(episodes) != value["n_episodes"]:
            raise BadInput(
                f"{folder / EPISODES}: {len(episodes)} episodes; {METRICS} says"
                f" {value['n_episodes']} for {name}"
            )
    if episodes.empty:
        raise BadInput(f"{folder / EPISODES}: no episodes in it")
    return Cell(
        key=folder.name,
        scenario=match["scenario"],
        dataset=match["dataset"],
        n_way=int(match["n_way"]),
        n_shot=int(match["n_shot"]),
        method=match["method"],
        metrics=metrics,
        episodes=episodes,
        selection=load_table(folder / SELECTION),
        history=load_table(learner / "history.parquet"),
        provenance={
            "meta_train": load_json(learner.with_name(f"{learner.name}.provenance.json")),
            "meta_test": load_json(folder / "provenance.json"),
        },
    )
