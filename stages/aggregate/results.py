"""The long table of results: one row a cell and way of predicting, over all its seeds."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from stages.aggregate.cells import KEY_PARTS, Cell, cell_key, print_order
from stages.aggregate.names import PURER, STATED, marked, row_name, row_order
from stages.interface.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = Path(__file__).parent / "published.yaml"
Episodes = NDArray[np.float64]  # accuracy of every episode in percent, of shape (n_episodes,)


@dataclass(frozen=True)
class Result:
    """Accuracies and differences in percent; None: there is no such number."""

    key: str
    scenario: str
    dataset: str
    n_way: int
    n_shot: int
    method: str
    adaptation: str
    budget: str
    accuracy: float
    ci95: float  # over episodes
    n_episodes: int
    protocol: str
    data_used: str
    changed: str  # parameters not as committed, or as its name states; e.g. "n_query = 5"
    published: float | None
    published_ci95: float | None
    difference: float | None  # this row minus PURER, paired by episode and seed
    difference_ci95: float | None
    difference_seed: str | None  # those that both have
    n_seeds: int
    seed_std: float | None  # over seeds
    seed: str
    commit: str
    hardware: str
    minutes: float  # of all stages but split and pseudo, the pool's too; mean over seeds


def results(cells: Iterable[Cell]) -> list[Result]:
    """One result per key and row, in the order of print.

    With several seeds, accuracy is the mean over them and its interval that of the per-episode
    means. Raises BadInput if cells of one task were not run on the same episodes.
    """
    seeds = _by_key(cells)
    return [
        _result(found, row, seeds)
        for found in sorted(seeds.values(), key=lambda found: print_order(found[0]))
        for row in sorted(
            {row for cell in found for row in cell.rows},
            key=lambda row: row_order(found[0].method, row),
        )
    ]


def row_label(name: str, method: str, found: Sequence[Result]) -> str:
    """`name`, and what nobody should overlook: what training saw, what was not as committed.

    `found`: the row's results, at any number of shots. E.g. 'EI (changed: n_query = 5)'.
    """
    name = marked(name, method, (result.data_used for result in found))
    is_one = len({result.changed for result in found}) == 1
    changed = {"" if is_one else f" at {r.n_shot}-shot": r.changed for r in found if r.changed}
    return name + "".join(f" (changed{where}: {words})" for where, words in changed.items())


def labelled(rows: Iterable[Result]) -> list[tuple[str, Result]]:
    """Results of one task with the full names of their rows, for a figure."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in rows:
        groups.setdefault((result.method, result.adaptation), []).append(result)
    return [
        (row_label(row_name(*row), row[0], found), result)
        for row, found in groups.items()
        for result in found
    ]


def frame(rows: Sequence[Result]) -> pd.DataFrame:
    """The long table, with all its columns even if it is empty."""
    import pandas as pd

    kinds = {
        "str": "string",
        "str | None": "string",
        "int": "int64",
        "float": "float64",
        "float | None": "float64",
    }
    table = pd.DataFrame([asdict(row) for row in rows], columns=[f.name for f in fields(Result)])
    return table.astype({field.name: kinds[str(field.type)] for field in fields(Result)})


def interval(values: Episodes) -> float:
    """Half the 95 % interval of the mean, 1.96 s / sqrt(n)."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return 1.96 * spread / math.sqrt(len(values))


def paired_difference(
    ours: Mapping[int, Episodes], reference: Mapping[int, Episodes]
) -> tuple[float, float] | None:
    """Mean over episodes of (ours - reference) and its interval, over the seeds that both have.

    The episodes are the same, so the interval is far narrower than that of either.
    """
    both = sorted(ours.keys() & reference.keys())
    if not both:
        return None
    difference = np.mean([ours[seed] - reference[seed] for seed in both], axis=0)
    return float(difference.mean()), interval(difference)


def published(key: str, adaptation: str) -> tuple[float, float | None] | None:
    """The paper's accuracy and interval for a row of ours, if it has one."""
    return _published().get((key, adaptation))


@functools.cache
def _published() -> dict[tuple[str, str], tuple[float, float | None]]:
    entries: list[dict[str, Any]] = YAML(typ="safe").load(PUBLISHED)
    return {
        (cell_key(*(entry[name] for name in KEY_PARTS)), entry["adaptation"]): (
            entry["accuracy"],
            entry["ci95"],
        )
        for entry in entries
    }


def _by_key(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells of each key, by seed."""
    groups = defaultdict(list)
    firsts: dict[tuple[str, str], Cell] = {}  # of a task, to know a value
    for cell in sorted(cells, key=lambda cell: cell.seed):
        groups[cell.key].append(cell)
        for name in ("n_episodes", "n_query", "fingerprint"):
            value = getattr(cell, name)
            if value is None:
                continue
            first = firsts.setdefault((cell_key(*cell.task, cell.n_shot, ""), name), cell)
            if value != getattr(first, name):
                raise BadInput(
                    f"{cell.key} (seed {cell.seed}): {name} = {value}, but"
                    f" {getattr(first, name)} in {first.key} (seed {first.seed}): allowed is one"
                    " value for all cells of a task, which are compared episode by episode; run the"
                    " older one again, or delete its file"
                )
    return groups


def _changed(found: Sequence[Cell], elsewhere: Iterable[Cell]) -> str:
    """E.g. 'meta_train.eci.curriculum_weight = 2, n_query = 5', with the seeds if not of all.

    What differed from the commit of a run or is not as names state, and what differs between the
    seeds: another commit may hold another value. Of such a key the value of every seed whose file
    has it is said: what differed from the commit of one may have been committed when the next was
    run. So it may be where `elsewhere`, the row at other numbers of shots, had the same value.
    """
    read = [(str(cell.seed), cell.changed, cell.params) for cell in found]
    seeds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in {key for _, changed, params in read for key in changed | params}:
        for seed, changed, params in read:
            value = value_of(params, key) or (str(changed[key]) if key in changed else None)
            if value is not None:
                seeds[key][value].append(seed)
    differing = {key for _, changed, _ in read for key in changed}
    there = {
        (key, value_of(cell.params, key) or str(value))
        for cell in elsewhere
        for key, value in cell.changed.items()
    }
    said = sorted(
        key
        for key, of in seeds.items()
        if key in differing
        or len(of) > 1
        or any((key, value) in there or value != str(STATED.get(key, value)) for value in of)
    )
    return ", ".join(f"{key} = {_by_seed(seeds[key], len(found))}" for key in said)


def value_of(params: Mapping[str, object], key: str) -> str | None:
    """What the parameters of a run's file say of one of them; None: nothing.

    "none" if they have others of its section (all but the last part of a key) but not this one:
    the file is older than the parameter, or younger. Of a section that came or went as a whole
    they say nothing.
    """
    if key in params:
        return str(params[key])
    section = key.rpartition(".")[0]
    return "none" if section and any(k.rpartition(".")[0] == section for k in params) else None


def _by_seed(values: Mapping[str, Sequence[str]], n_seeds: int) -> str:
    """A value of all seeds as it is, others with their seeds: '10.0 (seed 0, 1), 2.0 (seed 2)'."""
    return ", ".join(
        value if len(seeds) == n_seeds else f"{value} (seed {', '.join(seeds)})"
        for value, seeds in values.items()
    )


def _result(found: Sequence[Cell], row: str, seeds: Mapping[str, Sequence[Cell]]) -> Result:
    found = [cell for cell in found if row in cell.rows]
    first = found[0]
    elsewhere = [
        cell
        for cells in seeds.values()
        for cell in cells
        if (cell.task, cell.method) == (first.task, first.method) and cell.n_shot != first.n_shot
    ]
    ours = {cell.seed: cell.percent(row) for cell in found}
    method, adaptation = PURER
    purer = seeds.get(cell_key(*first.task, first.n_shot, method), ())
    reference = {c.seed: c.percent(adaptation) for c in purer if adaptation in c.rows}
    of_seeds = [float(values.mean()) for values in ours.values()]
    episodes = np.mean(list(ours.values()), axis=0)
    paper, paper_ci95 = published(first.key, row) or (None, None)
    difference, difference_ci95 = paired_difference(ours, reference) or (None, None)
    runs = [run for cell in found for run in cell.provenance]
    return Result(
        key=first.key,
        scenario=first.scenario,
        dataset=first.dataset,
        n_way=first.n_way,
        n_shot=first.n_shot,
        method=first.method,
        adaptation=row,
        budget=first.budget,
        accuracy=float(episodes.mean()),
        ci95=interval(episodes),
        n_episodes=first.n_episodes,
        protocol=_all(cell.rows[row].protocol for cell in found),
        data_used=_all(cell.data_used for cell in found),
        changed=_changed(found, elsewhere),
        published=paper,
        published_ci95=paper_ci95,
        difference=difference,
        difference_ci95=difference_ci95,
        difference_seed=_all(str(seed) for seed in ours if seed in reference) or None,
        n_seeds=len(found),
        seed_std=float(np.std(of_seeds, ddof=1)) if len(found) > 1 else None,
        seed=_all(str(cell.seed) for cell in found),
        commit=_all(run.commit for run in runs),
        hardware=_all(run.hardware for run in runs),
        minutes=round(sum(run.minutes for run in runs) / len(found), 2),
    )


def _all(values: Iterable[str]) -> str:
    """The different ones among `values`."""
    return " / ".join(dict.fromkeys(values))
