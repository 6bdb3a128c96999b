"""An evaluated cell: everything that tables and figures say of it, from the one file of meta_test.

reports/<budget>/seed-<seed>/<key>.json, key = <scenario>-<dataset>-<n>way-<n>shot-<method>.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from ruamel.yaml import YAML

from stages.aggregate.names import SCENARIOS, place, row_order
from stages.common.files import load_json
from stages.interface.errors import BadInput
from stages.interface.params import NO_DATASET, sections

# What each stage reads of params.yaml, besides the seed (PARAMS of its command), or is made from.
READS = {
    "pretrain": (
        "pretrain",
        "scenarios.{scenario}",
        "datasets.{dataset}.images_per_class",
        "budgets.{budget}.pretrain",
    ),
    "own_pool": ("own_pool",),
    "meta_train": (
        "n_query",
        "learner",
        "scenarios.{scenario}",
        "meta_train.{family}",
        "meta_train.{method}",
        "budgets.{budget}.{length}",
    ),
    "data_based": (
        "n_query",
        "learner",
        "datasets.{dataset}.images_per_class",
        "data_based.compile",
        "data_based.{method}",
        "budgets.{budget}.data_based",
    ),
    "meta_test": (
        "n_query",
        "datasets.{dataset}.images_per_class",
        "pseudo",
        "meta_test",
        "budgets.{budget}.meta_test",
    ),
}
GRID = Path(__file__).parents[1] / "grid.yaml"
REPORTS = Path("reports")
EVALUATIONS = Path("models/evaluations")


class Part(BaseModel):
    """Keys not named here are left alone, so that meta_test can say more than is printed."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Row(Part):
    """One way of predicting on the meta-test episodes; accuracies in percent."""

    accuracy: float
    ci95: float
    std: float
    protocol: str  # inner steps, learning rate, BatchNorm mode
    correct: list[float]  # query images of each episode; a mean over teachers need not be whole
    snapshot: int | None = None
    val_accuracy: float | None = None


class Point(Part):
    """Meta-test accuracy of one snapshot."""

    iteration: int
    accuracy: float
    ci95: float
    n_episodes: int | None = None  # None: a file from before it was kept


class History(Part):
    """Meta-training, thinned: accuracy (0 to 1) on its episodes, adversarial steps."""

    iteration: list[int]
    outer_accuracy: list[float]
    switches: list[int]


class Similarity(Part):
    """Cosine similarity of class means: synthetic (rows) against real (columns)."""

    own: float
    other: float
    nearest_is_own: float
    classes: list[str]
    matrix: list[list[float]]


class Run(Part):
    """Provenance of one stage."""

    stage: str
    commit: str
    minutes: float
    device: str
    hardware: str
    threads: int | None = None
    versions: dict[str, str] = {}
    changed_params: dict[str, Any] = {}  # all that differed from the commit, read or not
    params: dict[str, Any] = {}  # all that were read; empty: a file from before they were kept
    remarks: list[str] = []  # what a reader should know of it


class Cell(Part):
    key: str
    scenario: str
    dataset: str
    datasets: list[str] = Field(min_length=1)
    n_way: PositiveInt
    n_shot: PositiveInt
    n_query: PositiveInt
    method: str
    seed: int
    budget: str
    n_episodes: PositiveInt
    fingerprint: str | None = None  # of the episodes; None: a file from before it was kept
    data_used: str
    rows: dict[str, Row] = Field(min_length=1)
    selection: list[dict[str, float | None]]
    curve: list[Point]
    history: History
    class_accuracy: list[dict[str, dict[str, float]]]  # one item, which DVC takes for no metric
    similarity: Similarity | None
    provenance: list[Run]
    command: str

    @property
    def task(self) -> tuple[str, str, int]:
        """What a pool is made for: scenario, data set, n_way."""
        return (self.scenario, self.dataset, self.n_way)

    @property
    def changed(self) -> dict[str, Any]:
        """Parameters that a stage of this cell read and that differed from its commit's."""
        found: dict[str, Any] = {}
        for run in self.provenance:
            read = {
                key.format(**{**dict(self), **own, "dataset": dataset})
                for key in READS.get(run.stage, ())
                for dataset in self.datasets
                for own in sections(self.method)
            }
            for key, value in run.changed_params.items():
                parts = key.split(".")
                if any(".".join(parts[:n]) in read for n in range(1, len(parts) + 1)):
                    found[key] = value
        return self._of_weight(found)

    @property
    def params(self) -> dict[str, Any]:
        """All parameters that stages of this cell read, as far as its file tells."""
        found = {key: value for run in self.provenance for key, value in run.params.items()}
        return self._of_weight(found)

    def _of_weight(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Those of these parameters that decide a number of this cell, sorted."""

        def idle(key: str) -> bool:
            """How code runs, not what it computes; or pseudo episodes where there are images."""
            parts = key.split(".")
            pseudo = "pseudo" in parts and self.dataset != NO_DATASET
            return pseudo or parts[-1] == "compile"

        return {key: value for key, value in sorted(found.items()) if not idle(key)}

    @property
    def by_class(self) -> dict[str, dict[str, float]]:
        """Accuracy of each row by class, in percent."""
        return self.class_accuracy[0] if self.class_accuracy else {}

    @property
    def iterations(self) -> int:
        """Length of meta-training as far as the file tells, else 0."""
        last = [int(snapshot.get("iteration") or 0) for snapshot in self.selection]
        return max([0, *self.history.iteration, *last])

    @property
    def validation_curve(self) -> list[tuple[float, float]]:
        """(iteration, meta-validation accuracy) of the snapshots, by one step if they have it."""
        names = sorted({name for snapshot in self.selection for name in snapshot} - {"iteration"})
        row = "one_step" if "one_step" in names else "".join(names[:1])
        points = [(snapshot.get("iteration"), snapshot.get(row)) for snapshot in self.selection]
        return [(x, y) for x, y in points if x is not None and y is not None]

    def percent(self, row: str) -> NDArray[np.float64]:
        """Accuracy of every episode, of shape (n_episodes,)."""
        return 100 * np.asarray(self.rows[row].correct, float) / (self.n_way * self.n_query)


KEY_PARTS = ("scenario", "dataset", "n_way", "n_shot", "method")  # of cell_key, in its order


def cell_key(scenario: str, dataset: str, n_way: int, n_shot: int, method: str) -> str:
    return f"{scenario}-{dataset}-{n_way}way-{n_shot}shot-{method}"


def path_of(key: str, budget: str, seed: int) -> Path:
    return REPORTS / budget / f"seed-{seed}" / f"{key}.json"


def in_grid(scenario: str, dataset: str, n_way: int) -> dict[str, set[int]]:
    """The task's methods that have cells in the grid, which alone can be made, and at which shots.

    stages/grid.yaml is no dependency of the stages that make a table: theirs name cells one by one.
    """
    task = f"{scenario}-{dataset}-{n_way}way"
    found: dict[str, set[int]] = {}
    for key in _grid():
        if key.startswith(f"{task}-"):
            shots, method = key.removeprefix(f"{task}-").split("-")
            found.setdefault(method, set()).add(int(shots.removesuffix("shot")))
    return found


@functools.cache
def _grid() -> frozenset[str]:
    """The keys of all cells of the grid."""
    sections = YAML(typ="safe").load(GRID).items()
    return frozenset(key for name, cells in sections if name.endswith("cells") for key in cells)


def load_cell(path: Path) -> Cell:
    """The cell in the file `path`.

    Raises BadInput for a file that is missing, not JSON, lacks something, or contradicts itself.
    """
    try:
        cell = Cell.model_validate(load_json(path))
    except ValidationError as error:
        details = error.errors()[0]
        where = ".".join(map(str, details["loc"])) or "the file"
        raise BadInput(f"{path}: {where}: {details['msg']} ({_shown(details['input'])})") from None
    named = cell_key(cell.scenario, cell.dataset, cell.n_way, cell.n_shot, cell.method)
    if cell.key != named:
        raise BadInput(f"{path}: key = {cell.key!r}: its scenario, data set ... say {named!r}")
    place = Path(cell.budget, f"seed-{cell.seed}", f"{cell.key}.json")
    if path.absolute().parts[-3:] != place.parts:
        raise BadInput(f"{path}: holds another cell: allowed there is only .../{place}")
    for name, row in cell.rows.items():
        _check_row(path, cell, name, row)
    _check_lists(path, cell)
    return cell


def load_budget(budget: str) -> list[Cell]:
    """Every cell run at `budget`, all seeds, in the order of print; BadInput if there is none."""
    paths = sorted((REPORTS / budget).glob("seed-*/*.json"))
    if not paths:
        raise BadInput(f"{REPORTS / budget}: no cell (seed-*/*.json) has been run at this budget")
    return sorted(map(load_cell, paths), key=print_order)


def print_order(cell: Cell) -> tuple[Any, ...]:
    """Sorts cells into the order of print: SS before SH before MH, then data, method, shots."""
    scenario = place(SCENARIOS, cell.scenario)
    return (scenario, *cell.task, row_order(cell.method), cell.n_shot, cell.seed)


def by_task(cells: Iterable[Cell]) -> dict[tuple[str, str, int], list[Cell]]:
    """The cells of each task, in the order of print."""
    groups = defaultdict(list)
    for cell in sorted(cells, key=print_order):
        groups[cell.task].append(cell)
    return groups


def _check_row(path: Path, cell: Cell, name: str, row: Row) -> None:
    if len(row.correct) != cell.n_episodes:
        raise BadInput(
            f"{path}: rows.{name}.correct has {len(row.correct)} episodes: allowed is"
            f" n_episodes = {cell.n_episodes}"
        )
    n_images = cell.n_way * cell.n_query
    if not all(0 <= count <= n_images for count in row.correct):
        raise BadInput(f"{path}: rows.{name}.correct: allowed are 0 to {n_images} query images")
    mean = cell.percent(name).mean()
    if abs(mean - row.accuracy) > 0.001:
        raise BadInput(
            f"{path}: rows.{name}.accuracy = {row.accuracy}: the mean of its episodes is {mean:.4f}"
        )


def _check_lists(path: Path, cell: Cell) -> None:
    """Refuse lists of different lengths that belong together."""
    history, similarity = cell.history, cell.similarity
    if len(history.iteration) != len(history.outer_accuracy):
        raise BadInput(
            f"{path}: history has {len(history.iteration)} iterations and"
            f" {len(history.outer_accuracy)} accuracies: allowed are equally many"
        )
    if similarity is not None:
        n, matrix = len(similarity.classes), similarity.matrix
        if n == 0 or {len(matrix), *map(len, matrix)} != {n}:
            raise BadInput(f"{path}: similarity.matrix: allowed is {n} x {n}, one row a class")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
