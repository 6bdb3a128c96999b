"""Tables as people read them, each with its provenance in the caption."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from stages.aggregate.cells import Cell

METHODS = {"ei": "EI", "eci": "ECI", "pool": "pool"}
ADAPTATIONS = {
    "one_step": "one step",
    "icfil": "ICFIL",
    "nearest_class_mean": "nearest class mean",
    "single_teacher": "one teacher, nearest class mean (mean over teachers)",
    "pool_features": "all teachers side by side, nearest class mean",
}
DATASETS = {"cifar_fs": "CIFAR-FS", "mini_imagenet": "MiniImageNet"}


def label(method: str, adaptation: str) -> str:
    """E.g. 'ECI + ICFIL (PURER)'."""
    name = ADAPTATIONS.get(adaptation, adaptation)
    if method == "pool":
        return f"pool: {name}"
    purer = " (PURER)" if (method, adaptation) == ("eci", "icfil") else ""
    return f"{METHODS.get(method, method)} + {name}{purer}"


def markdown(table: pd.DataFrame, cells: Sequence[Cell]) -> str:
    """The table with a column group per number of shots, and where every number comes from."""
    first = table.iloc[0]
    shots = sorted(table["n_shot"].unique())
    dataset = DATASETS.get(first["dataset"], first["dataset"])
    task = f"{first['scenario'].upper()}, {first['n_way']}-way"
    title = f"### {dataset}, {task}, budget `{first['budget']}`"
    header = ["row"]
    for shot in shots:
        header += [f"{shot}-shot", "published", "minus PURER (paired)"]
    lines = [title, "", _line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    labels = [label(*row) for row in zip(table["method"], table["adaptation"], strict=True)]
    for name, group in table.groupby(labels, sort=False):
        row = [str(name)]
        for shot in shots:
            found = group[group["n_shot"] == shot]
            row += _entries(found.iloc[0]) if len(found) else ["not run"] * 3
        lines.append(_line(row))
    return "\n".join([*lines, "", *_caption(table, cells)]) + "\n"


def _entries(row: pd.Series) -> list[str]:
    accuracy = f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"
    published = "–"
    if not pd.isna(row["published"]):
        published = f"{row['published']:.2f} ± {row['published_ci95']:.2f}"
    difference = "–"
    if "difference" in row and not pd.isna(row["difference"]):
        difference = f"{row['difference']:+.2f} ± {row['difference_ci95']:.2f}"
    return [accuracy, published, difference]


def _caption(table: pd.DataFrame, cells: Sequence[Cell]) -> list[str]:
    first = table.iloc[0]
    lines = [
        f"Accuracy in percent over {first['n_episodes']} fixed meta-test episodes, ± the 95 %"
        " interval over them (1.96 s / √n). *published*: the paper's value, under its protocol."
        " *minus PURER*: mean difference on the same episodes.",
        f"BatchNorm at meta-test: learners {cells[0].batch_norm}; teachers their running"
        " statistics (inductive). Snapshots were chosen on meta-validation.",
        "",
    ]
    for cell in cells:
        train, test = cell.provenance["meta_train"], cell.provenance["meta_test"]
        lines.append(
            f"- `{cell.key}`: seed {train['seed']}, commit {train['commit']}, {train['hardware']}"
            f" ({train['device']}), meta-training {train['minutes']:.0f} min,"
            f" meta-test {test['minutes']:.0f} min (commit {test['commit']})"
        )
    return lines


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
