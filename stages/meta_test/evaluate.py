"""Choose on meta-validation, judge once on meta-test (METHODS 1.7).

The released program evaluates 120 times on meta-test and reports the maximum. Here the snapshot
is chosen on episodes of the meta-validation classes, and every adaptation sees the fixed meta-test
episodes exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from stages.common.dataset import ClassImages
from stages.common.episodes import EpisodeIndex
from stages.common.learner import load_learner
from stages.common.pool import Teacher
from stages.interface.progress import Reporter
from stages.meta_test.adaptations import ADAPTATIONS
from stages.meta_test.episodes import RealEpisodes, accuracies
from stages.meta_test.params import MetaTest
from stages.meta_test.pool_features import predict_by_pool

Table = dict[str, Tensor]  # accuracies in percent, (n_episodes,), by name of the row


def select(
    snapshots: Sequence[Path],
    data: ClassImages,
    indices: Sequence[EpisodeIndex],
    params: MetaTest,
    device: str,
) -> pd.DataFrame:
    """Meta-validation accuracy of every snapshot, one row each, one column an adaptation.

    Only adaptations that choose snapshots are evaluated.
    """
    choosers = sorted({adaptation.chosen_by for adaptation in ADAPTATIONS.values()})
    episodes = RealEpisodes(data, indices, device)
    rows: list[dict[str, float]] = []
    with Reporter("meta-validation", len(snapshots) * len(choosers)) as report:
        for path in snapshots:
            learner, theta, info = load_learner(path, device)
            row: dict[str, float] = {"iteration": info.iteration}
            for name in choosers:
                labels = ADAPTATIONS[name].predict(learner, theta, episodes, params, _silent)
                row[name] = float(accuracies(labels, _query_labels(indices, device)).mean())
                report(len(rows) * len(choosers) + len(row) - 1, **{name: row[name]})
            rows.append(row)
    return pd.DataFrame(rows)


def chosen(selection: pd.DataFrame, adaptation: str) -> int:
    """Position of an adaptation's snapshot: best on meta-validation, the earliest of equals."""
    return int(selection[ADAPTATIONS[adaptation].chosen_by].to_numpy().argmax())


def judge_learner(
    snapshots: Sequence[Path],
    selection: pd.DataFrame,
    data: ClassImages,
    indices: Sequence[EpisodeIndex],
    params: MetaTest,
    device: str,
) -> Table:
    """Meta-test accuracy per episode of every adaptation, each with its own chosen snapshot."""
    episodes = RealEpisodes(data, indices, device)
    table = {}
    for name, adaptation in ADAPTATIONS.items():
        learner, theta, _ = load_learner(snapshots[chosen(selection, name)], device)
        with Reporter(name, len(episodes)) as report:
            labels = adaptation.predict(learner, theta, episodes, params, report)
        table[name] = accuracies(labels, _query_labels(indices, device)).cpu()
    return table


def judge_pool(
    pool: Sequence[Teacher],
    data: ClassImages,
    indices: Sequence[EpisodeIndex],
    params: MetaTest,
    device: str,
) -> Table:
    """Meta-test accuracy per episode by the pool's features: all, the mean teacher, each one."""
    with Reporter("pool features", len(pool)) as report:
        together, each = predict_by_pool(
            pool, data, indices, params.nearest_class_mean.metric, device, report
        )
    labels = _query_labels(indices, device)
    teachers = {
        f"teacher_{i:02d}": accuracies(predicted, labels).cpu() for i, predicted in enumerate(each)
    }
    return {
        "pool_features": accuracies(together, labels).cpu(),
        "single_teacher": torch.stack(list(teachers.values())).mean(0),
        **teachers,
    }


def summary(accuracy: Tensor) -> dict[str, float | int]:
    """Mean, 95 % interval 1.96 s / sqrt(n) and standard deviation s over episodes, in percent."""
    n = len(accuracy)
    std = float(accuracy.std()) if n > 1 else 0.0
    return {
        "accuracy": round(float(accuracy.mean()), 4),
        "ci95": round(1.96 * std / math.sqrt(n), 4),
        "std": round(std, 4),
        "n_episodes": n,
    }


def metrics(
    table: Mapping[str, Tensor], selection: pd.DataFrame, batch_norm: str
) -> dict[str, dict[str, Any]]:
    """Per row: its summary, its BatchNorm mode, and which snapshot was judged, how it was chosen.

    `batch_norm` is the learners' mode; teachers use their running statistics, so are inductive.
    """
    content: dict[str, dict[str, Any]] = {}
    for name, accuracy in table.items():
        if name.startswith("teacher_"):
            continue
        content[name] = {**summary(accuracy), "batch_norm": "inductive"}
        if name in ADAPTATIONS:
            content[name]["batch_norm"] = batch_norm
            row = selection.iloc[chosen(selection, name)]
            content[name]["snapshot"] = int(row["iteration"])
            content[name]["val_accuracy"] = round(float(row[ADAPTATIONS[name].chosen_by]), 4)
    return content


def _query_labels(indices: Sequence[EpisodeIndex], device: str) -> Tensor:
    n_way, n_query = indices[0].query.shape
    return torch.arange(n_way, device=device).repeat_interleave(n_query)


def _silent(done: int) -> None:
    """No progress of a part that is itself one step of a larger progress."""
