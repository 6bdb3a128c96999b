"""The long table of results: one row a (cell, way of predicting), and its paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML

from stages.aggregate.cells import Cell
from stages.interface.errors import BadInput

PUBLISHED = Path(__file__).parent / "published.yaml"
REFERENCE = ("eci", "icfil")  # PURER, the row that others are compared with
OF_THE_POOL = ("single_teacher", "pool_features")  # rows that no method has a part in
# How rows follow each other; what is not named here comes last.
METHOD_ORDER = ("pool", "ei", "eci")
ADAPTATION_ORDER = (*OF_THE_POOL, "one_step", "nearest_class_mean", "icfil")


def results(cells: Sequence[Cell], budget: str) -> pd.DataFrame:
    """One row per cell and way of predicting; rows of the pool once per number of shots.

    `difference` is the mean over episodes of (this row - the reference row of the same shots),
    with its own 95 % interval: the episodes are the same, so it is far narrower than the
    difference of two intervals. Empty where the reference is not among the cells.

    Raises BadInput if there are no cells, or cells of different batch-norm modes.
    """
    if not cells:
        raise BadInput("no cells to make a table of")
    modes = {cell.batch_norm for cell in cells}
    if len(modes) > 1:
        raise BadInput(f"cells of different batch_norm in one table: {', '.join(sorted(modes))}")
    published = YAML(typ="safe").load(PUBLISHED)
    rows, pool_rows_of = [], set()
    for cell in cells:
        reference = _reference_episodes(cell, cells)
        for name in cell.rows:
            if name in OF_THE_POOL:
                if (name, cell.n_shot) in pool_rows_of:
                    continue
                pool_rows_of.add((name, cell.n_shot))
            method = "pool" if name in OF_THE_POOL else cell.method
            row = {
                "scenario": cell.scenario,
                "dataset": cell.dataset,
                "n_way": cell.n_way,
                "n_shot": cell.n_shot,
                "method": method,
                "adaptation": name,
                **cell.metrics[name],
                **_published(published, cell, method, name),
                "budget": budget,
            }
            if reference is not None:
                row |= paired_difference(cell.episodes[name].to_numpy(), reference)
            provenance = cell.provenance["meta_train"]
            row |= {"seed": provenance["seed"], "commit": provenance["commit"]}
            row |= {"hardware": provenance["hardware"], "minutes": provenance["minutes"]}
            rows.append(row)
    rows.sort(
        key=lambda row: (
            _place(METHOD_ORDER, row["method"]),
            _place(ADAPTATION_ORDER, row["adaptation"]),
            row["n_shot"],
        )
    )
    return pd.DataFrame(rows)


def _place(order: Sequence[str], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def paired_difference(
    ours: NDArray[np.float64], reference: NDArray[np.float64]
) -> dict[str, float]:
    """Mean of the per-episode differences and its 95 % interval, 1.96 s / sqrt(n)."""
    if len(ours) != len(reference):
        raise BadInput(f"{len(ours)} episodes against {len(reference)}: not the same episodes")
    difference = ours - reference
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return {
        "difference": round(float(difference.mean()), 4),
        "difference_ci95": round(1.96 * float(spread) / math.sqrt(len(difference)), 4),
    }


def _reference_episodes(cell: Cell, cells: Sequence[Cell]) -> NDArray[np.float64] | None:
    method, adaptation = REFERENCE
    for other in cells:
        same_task = (other.dataset, other.n_way, other.n_shot) == (
            cell.dataset,
            cell.n_way,
            cell.n_shot,
        )
        if same_task and other.method == method:
            return other.episodes[adaptation].to_numpy()
    return None


def _published(
    published: list[dict[str, object]], cell: Cell, method: str, adaptation: str
) -> dict[str, float]:
    wanted = {
        "scenario": cell.scenario,
        "dataset": cell.dataset,
        "n_way": cell.n_way,
        "n_shot": cell.n_shot,
        "method": method,
        "adaptation": adaptation,
    }
    for row in published:
        if all(row[key] == value for key, value in wanted.items()):
            return {
                "published": float(str(row["accuracy"])),
                "published_ci95": float(str(row["ci95"])),
            }
    return {"published": math.nan, "published_ci95": math.nan}
