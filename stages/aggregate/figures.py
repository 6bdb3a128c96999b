"""Bar chart of a table and training curves of its cells, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.aggregate.cells import Cell
from stages.aggregate.markdown import DATASETS, METHODS, label
from stages.common.files import written_whole

WINDOW = 50  # iterations of the moving mean


def save_bars(path: Path, table: pd.DataFrame) -> None:
    """Accuracy of every row with its 95 % interval, the published value as a diamond."""
    rows = list(dict.fromkeys(zip(table["method"], table["adaptation"], strict=True)))
    shots = sorted(table["n_shot"].unique())
    first = table.iloc[0]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.25 * len(rows) * len(shots)))
    height = 0.8 / len(shots)
    for i, shot in enumerate(shots):
        part = table[table["n_shot"] == shot].set_index(["method", "adaptation"])
        y = np.array([rows.index(key) for key in part.index]) + (i - (len(shots) - 1) / 2) * height
        colour = f"C{i}"
        axes.barh(
            y,
            part["accuracy"],
            height * 0.92,
            xerr=part["ci95"],
            color=colour,
            label=f"{shot}-shot",
            error_kw={"lw": 1, "capsize": 2},
        )
        axes.scatter(
            part["published"],
            y,
            marker="D",
            s=22,
            facecolor="white",
            edgecolor=colour,
            zorder=3,
            label=f"{shot}-shot, published" if part["published"].notna().any() else None,
        )
    axes.axvline(100 / first["n_way"], color="grey", lw=0.8, ls=":", label="chance")
    axes.set_yticks(range(len(rows)), [label(*row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    modes = table.groupby(table["method"] == "pool")["batch_norm"].first()
    axes.set_xlabel(
        "accuracy, % (whiskers: 95 % interval over episodes)\n"
        f"BatchNorm: learners {modes.get(False)}, pool {modes.get(True)}",
        fontsize=8,
    )
    dataset = DATASETS.get(first["dataset"], first["dataset"])
    axes.set_title(f"{dataset}, {first['n_way']}-way, budget {first['budget']}", fontsize=10)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    _save(figure, path)


def save_training(path: Path, cells: Sequence[Cell]) -> None:
    """Accuracy over iterations, a panel per number of shots (PURER, figure 4).

    Lines: moving mean of the accuracy on pseudo episodes. Dots: one-step accuracy of the snapshots
    on meta-validation. Ticks at the bottom: adversarial steps.
    """
    shots = sorted({cell.n_shot for cell in cells})
    figure, grid = plt.subplots(1, len(shots), figsize=(5.5 * len(shots), 4), squeeze=False)
    for axes, shot in zip(grid[0], shots, strict=True):
        for i, cell in enumerate(c for c in cells if c.n_shot == shot):
            name, colour = METHODS.get(cell.method, cell.method), f"C{i}"
            smooth = cell.history["outer_accuracy"].rolling(WINDOW, min_periods=1).mean()
            axes.plot(
                cell.history["iteration"],
                100 * smooth,
                color=colour,
                lw=1,
                alpha=0.7,
                label=f"{name}: pseudo episodes",
            )
            axes.plot(
                cell.selection["iteration"],
                cell.selection["one_step"],
                "o-",
                color=colour,
                ms=4,
                label=f"{name}: meta-validation, one step",
            )
            events = cell.history.loc[cell.history["feedback"] > 0, "iteration"]
            axes.vlines(events, 0, 0.03, transform=axes.get_xaxis_transform(), color=colour, lw=0.5)
        axes.set_title(f"{shot}-shot, learners {cells[0].batch_norm}", fontsize=10)
        axes.set_xlabel("outer iteration (ticks: adversarial steps)")
        axes.set_ylabel("accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with written_whole(path) as temporary:
        # No software version or date in the file: equal inputs give equal bytes.
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
