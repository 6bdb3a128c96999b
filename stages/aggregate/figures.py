"""The figures, as PNG: equal inputs give equal bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from stages.aggregate.cells import Cell, Similarity
from stages.aggregate.names import PURER, is_data_based, marked, method_name
from stages.aggregate.results import Result
from stages.common.files import written_whole

Colour = tuple[float, float, float, float]
WINDOW = 1 / 40  # of a training curve: its moving mean
LABEL = 80  # characters of a line beside a bar: no row's own name is longer
LINE = 75  # characters of a title's line over a single panel
PURER_COLOUR, OTHER_COLOUR, DATA_COLOUR = "#b3402a", "#2f5d8a", "#8a8a8a"
# The first ten as usual, then their lighter shades: a task has more than ten methods.
COLOURS = [matplotlib.colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]


def save_accuracies(
    path: Path, rows: Sequence[tuple[str, Result]], title: str, top: float | None = None
) -> None:
    """Bars of (label, result) with 95 % intervals, a panel a number of shots.

    The published value is a diamond, chance a dotted line. `top`: end of the axis, in percent, for
    figures that are read together.
    """
    labels = list(dict.fromkeys(label for label, _ in rows))
    shots = sorted({result.n_shot for _, result in rows})
    names = [textwrap.fill(label, LABEL, break_on_hyphens=False) for label in labels]
    n_lines = 1 + max(name.count("\n") for name in names)
    size = (4.5 + 3.2 * len(shots), 1.1 + (0.12 + 0.15 * n_lines) * len(labels))
    figure, panels = plt.subplots(
        1, len(shots), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, shot in zip(panels[0], shots, strict=True):
        part = [(label, result) for label, result in rows if result.n_shot == shot]
        y = [labels.index(label) for label, _ in part]
        colours = [_colour(result) for _, result in part]
        accuracy, ci95 = [r.accuracy for _, r in part], [r.ci95 for _, r in part]
        whiskers = {"lw": 1, "capsize": 2}
        axes.barh(y, accuracy, 0.7, xerr=ci95, color=colours, alpha=0.8, error_kw=whiskers)
        paper = [(r.published, i) for i, (_, r) in zip(y, part, strict=True) if r.published]
        if paper:
            style = {"marker": "D", "s": 24, "facecolor": "white", "edgecolor": "black"}
            axes.scatter(*zip(*paper, strict=True), **style, zorder=3, label="published")
        axes.axvline(100 / part[0][1].n_way, color="grey", lw=1, ls=":", label="chance")
        axes.set_xlim(0, top)
        axes.set_title(f"{shot}-shot", fontsize=10)
        axes.set_xlabel("accuracy, %", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(labels)), names, fontsize=8)
    panels[0][0].set_ylim(len(labels) - 0.4, -0.6)
    legends = [axes.get_legend_handles_labels() for axes in panels[0]]
    unlike = {word: handle for some in legends for handle, word in zip(*some, strict=True)}
    handles, said = [*unlike.values()], [*unlike]
    if any(is_data_based(result.data_used) for _, result in rows):
        handles, said = [*handles, Patch(color=DATA_COLOUR, alpha=0.8)], [*said, "data-based"]
    figure.legend(handles, said, loc="outside lower center", ncol=3, fontsize=8)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _colour(result: Result) -> str:
    if (result.method, result.adaptation) == PURER:
        return PURER_COLOUR
    return DATA_COLOUR if is_data_based(result.data_used) else OTHER_COLOUR


def save_curriculum(path: Path, cells: Sequence[Cell], title: str) -> None:
    """Meta-test accuracy over iterations with its 95 % band (PURER, figure 4).

    Ticks at the bottom: adversarial steps.
    """

    def draw(axes: Axes, cell: Cell, colour: Colour) -> None:
        x = [point.iteration for point in cell.curve]
        y = np.array([point.accuracy for point in cell.curve])
        ci95 = np.array([point.ci95 for point in cell.curve])
        axes.plot(x, y, color=colour, marker=".")
        axes.fill_between(x, y - ci95, y + ci95, color=colour, alpha=0.15, lw=0)

    _save_panels(path, cells, title, "meta-test accuracy, one step, %", draw)


def save_training(path: Path, cells: Sequence[Cell], title: str) -> None:
    """Accuracy on training episodes (lines: moving mean) and on meta-validation (dots)."""

    def draw(axes: Axes, cell: Cell, colour: Colour) -> None:
        values = 100 * np.array(cell.history.outer_accuracy)
        smooth = _moving_mean(values, max(1, round(WINDOW * len(values))))
        axes.plot(cell.history.iteration, smooth, color=colour, lw=1, alpha=0.7)
        if points := cell.validation_curve:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=3)

    _save_panels(path, cells, title, "accuracy, %", draw)


def save_classes(path: Path, cell: Cell, row: str, title: str) -> None:
    """Accuracy of every meta-test class, sorted."""
    classes = sorted(cell.by_class[row].items(), key=lambda item: (item[1], item[0]))
    names, values = [name for name, _ in classes], [value for _, value in classes]
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.22 * len(names)), layout="constrained")
    axes.barh(range(len(names)), values, 0.75, color=OTHER_COLOUR, alpha=0.8)
    axes.axvline(float(np.mean(values)), color=PURER_COLOUR, lw=1, label="mean")
    axes.axvline(100 / cell.n_way, color="grey", lw=1, ls=":", label="chance")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("correct query images of the class, %", fontsize=9)
    figure.suptitle(textwrap.fill(title, LINE), fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def save_similarity(path: Path, similarity: Similarity, title: str) -> None:
    """Cosine similarity of every synthetic class mean with every real one."""
    n = len(similarity.classes)
    figure, axes = plt.subplots(figsize=(6.4, 6), layout="constrained")
    image = axes.imshow(np.array(similarity.matrix), cmap="viridis")
    names = [name[:20] for name in similarity.classes]
    axes.set_xticks(range(n), names, rotation=90, fontsize=min(8, 330 / n))
    axes.set_yticks(range(n), names, fontsize=min(8, 330 / n))
    axes.set_xlabel("mean of the real images")
    axes.set_ylabel("mean of the synthetic images")
    numbers = f"own class {similarity.own:.3f}, others {similarity.other:.3f}"
    nearest = f"own class nearest for {similarity.nearest_is_own:.0f} %"
    figure.suptitle(f"{textwrap.fill(title, LINE)}\n{numbers}, {nearest}", fontsize=10)
    figure.colorbar(image, fraction=0.046, label="cosine similarity")
    _save(figure, path)


def save_placeholder(path: Path, text: str) -> None:
    """A picture that says why there is none."""
    figure = plt.figure(figsize=(4, 1))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="grey")
    _save(figure, path)


def _save_panels(
    path: Path,
    cells: Sequence[Cell],
    title: str,
    ylabel: str,
    draw: Callable[[Axes, Cell, Colour], None],
) -> None:
    """Curves over iterations, a panel a number of shots, a colour a method.

    Ticks at the bottom: adversarial steps.
    """
    shots = sorted({cell.n_shot for cell in cells})
    colours = dict(zip(dict.fromkeys(map(_name, cells)), cycle(COLOURS), strict=False))
    size = (5.5 * len(shots), 4.2)
    figure, panels = plt.subplots(1, len(shots), figsize=size, squeeze=False, layout="constrained")
    for axes, shot in zip(panels[0], shots, strict=True):
        for cell in (cell for cell in cells if cell.n_shot == shot):
            colour = colours[_name(cell)]
            draw(axes, cell, colour)
            ticks = {"transform": axes.get_xaxis_transform(), "color": colour, "lw": 0.5}
            axes.vlines(cell.history.switches, 0, 0.03, **ticks)
        axes.set_title(f"{shot}-shot", fontsize=10)
        axes.set_xlabel("outer iteration (ticks: adversarial steps)", fontsize=9)
        axes.set_ylabel(ylabel, fontsize=9)
        axes.grid(alpha=0.3)
    handles = [Line2D([], [], color=colour) for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside lower center", ncol=3, fontsize=8)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _name(cell: Cell) -> str:
    return marked(method_name(cell.method), cell.method, [cell.data_used])


def _moving_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of each value and the up to `window` - 1 before it."""
    total = np.concatenate([[0.0], values.cumsum()])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    means: NDArray[np.float64] = (total[end] - total[start]) / (end - start)
    return means


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        # No software version or date in the file: equal inputs give equal bytes.
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
