"""A layout filled with results: the words and numbers of a table, before Markdown or HTML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.aggregate.cells import Cell, in_grid
from stages.aggregate.layouts import Block, Layout, Line, cells_of
from stages.aggregate.names import (
    ADAPTATIONS,
    PURER,
    data_name,
    is_distilled,
    method_name,
    row_name,
)
from stages.aggregate.results import Result, published, row_label, value_of
from stages.interface.params import NO_DATASET

# What rows were judged on, and what chose their snapshots, with a data set and without.
ON_REAL = (
    "fixed meta-test episodes",
    "Snapshots were chosen on meta-validation: by their accuracy after one step, for nearest class"
    " mean and linear probe by that of nearest class mean. published: the paper's number under its"
    " own protocol, which selects on meta-test.",
)
ON_PSEUDO = (
    "fixed pseudo episodes",
    "There was no data set: snapshots were chosen, and rows judged, on pseudo episodes, fresh"
    " synthetic images of the pool's own classes, inverted from procedural images. So the choice"
    " used this hand-made image prior also where training did not (EI, ECI). These are no"
    " accuracies on real images.",
)
_NONE = "–"
NO_NUMBER = ("not run", "not evaluated", _NONE)  # no such cell yet; no such row of it; never any


@dataclass(frozen=True)
class Entry:
    """What stands in one group of columns."""

    ours: str
    published: str
    difference: str


@dataclass(frozen=True)
class SheetLine:
    heading: str  # its block's: data set and n_way, the scenario too where several stand together
    label: str
    entries: tuple[Entry, ...]  # one a number of shots
    is_purer: bool


@dataclass(frozen=True)
class Note:
    """A sentence and, if it introduces some, its items."""

    text: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    name: str
    title: str
    shots: tuple[int, ...]
    lines: tuple[SheetLine, ...]
    notes: tuple[Note, ...]
    cells: tuple[Cell, ...]  # those shown, for their provenance
    results: tuple[Result, ...]  # those shown

    @property
    def headings(self) -> list[str]:
        return list(dict.fromkeys(line.heading for line in self.lines))


@dataclass(frozen=True)
class _Shown:
    """A result and what its row is called in this table."""

    label: str
    heading: str
    result: Result

    @property
    def place(self) -> str:
        return f"{self.heading}, {self.result.n_shot}-shot"

    @property
    def method(self) -> str:
        return method_name(self.result.method)

    @property
    def row(self) -> str:
        return ADAPTATIONS.get(self.result.adaptation, self.result.adaptation)

    @property
    def is_spelled(self) -> bool:
        """Whether the label says method and row in their own words, so that either can be named."""
        return self.label.startswith(row_name(self.result.method, self.result.adaptation))


def fill(layout: Layout, results: Iterable[Result], cells: Sequence[Cell]) -> Sheet:
    """The layout with our numbers, the published ones beside them, and what to know of them."""
    found = {(result.key, result.adaptation): result for result in results}
    keys = cells_of(layout)
    used = tuple(cell for cell in cells if cell.key in keys)
    lines, shown = [], []
    for block in layout.blocks:
        for line in block.lines:
            here = [found.get((block.key(n, line.method), line.adaptation)) for n in layout.shots]
            run = [result for result in here if result is not None]
            label = row_label(line.label, line.method, run)
            heading = layout.heading(block)
            shown += [_Shown(label, heading, result) for result in run]
            entries = _entries(block, line, layout.shots, here, {cell.key for cell in used})
            is_purer = (line.method, line.adaptation) == PURER
            lines.append(SheetLine(heading, label, entries, is_purer))
    budget = f" at budget {cells[0].budget}" if cells else ""
    empty = Note(f"No cell of this table has been run{budget}.")
    notes = _notes(shown, used) if shown else (empty,)
    if layout.remark:
        notes = (*notes, Note(layout.remark))
    rows = tuple(part.result for part in shown)
    return Sheet(layout.name, layout.title, layout.shots, tuple(lines), notes, used, rows)


def accuracy_text(result: Result) -> str:
    """E.g. '37.43 ± 0.72', with several seeds '37.43 ± 0.72 (3 seeds: ± 0.51)'."""
    spread = (
        "" if result.seed_std is None else f" ({result.n_seeds} seeds: ± {result.seed_std:.2f})"
    )
    return f"{result.accuracy:.2f} ± {result.ci95:.2f}{spread}"


def iterations_text(cells: Iterable[Cell]) -> str:
    """E.g. '2,400 outer iterations (the paper: 60,000), distilled networks 8,000 steps'."""
    lengths: Mapping[bool, set[int]] = defaultdict(set)
    for cell in cells:
        lengths[is_distilled(cell.method)].add(cell.iterations)
    words = []
    if outer := lengths[False] - {0}:
        words.append(f"{_span(outer)} outer iterations (the paper: 60,000)")
    if steps := lengths[True] - {0}:
        words.append(f"distilled networks {_span(steps)} steps")
    return ", ".join(words)


def _span(lengths: Iterable[int]) -> str:
    return " to ".join(f"{n:,}" for n in dict.fromkeys((min(lengths), max(lengths))))


def _entries(
    block: Block,
    line: Line,
    shots: Sequence[int],
    here: Sequence[Result | None],
    run: set[str],
) -> tuple[Entry, ...]:
    entries = []
    for n_shot, result in zip(shots, here, strict=True):
        key = block.key(n_shot, line.method)
        paper = published(key, line.adaptation)
        entries.append(
            Entry(
                _missing(block, line, n_shot, run) if result is None else accuracy_text(result),
                _NONE if paper is None else _with_interval(*paper),
                _NONE if result is None else _difference_text(result),
            )
        )
    return tuple(entries)


def _missing(block: Block, line: Line, n_shot: int, run: set[str]) -> str:
    """Why there is no number of ours: a promise only where the cell can be made."""
    not_run, not_evaluated, never = NO_NUMBER
    if block.key(n_shot, line.method) in run:
        return not_evaluated
    promised = in_grid(block.scenario, block.datasets[0], block.n_way)
    return not_run if n_shot in promised.get(line.method, ()) else never


def _difference_text(result: Result) -> str:
    if (result.method, result.adaptation) == PURER:
        return "reference"
    if result.difference is None or result.difference_ci95 is None:
        return _NONE
    known = "" if result.difference_seed == result.seed else f" (seed {result.difference_seed})"
    return f"{_signed(result.difference)} ± {result.difference_ci95:.2f}{known}"


def _with_interval(accuracy: float, ci95: float | None) -> str:
    return f"{accuracy:.2f}" if ci95 is None else f"{accuracy:.2f} ± {ci95:.2f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _notes(shown: Sequence[_Shown], cells: Sequence[Cell]) -> tuple[Note, ...]:
    counts = sorted({part.result.n_episodes for part in shown})
    length = iterations_text(cells)
    has_data = cells[0].dataset != NO_DATASET  # a table has one or the other
    episodes, choice = ON_REAL if has_data else ON_PSEUDO
    notes = [
        Note(
            f"Budget {cells[0].budget}{f': {length}' if length else ''}."
            f" Accuracy in percent over {' or '.join(map(str, counts))} {episodes},"
            " ± the 95 % interval over them (1.96 s / √n); after several seeds the mean over them,"
            f" and in brackets the standard deviation between seeds. {choice}"
            " minus PURER: mean difference on the same episodes and seeds."
        ),
        _grouped("Protocol (inner steps, learning rate, BatchNorm)", shown, "protocol", "row"),
        _grouped("Data that training used", shown, "data_used", "method"),
    ]
    if said := dict.fromkeys(
        f"{method_name(cell.method)}, {cell.scenario.upper()},"
        f" {data_name(cell.datasets, cell.n_way)}: {remark}"
        for cell in cells
        for run in cell.provenance
        for remark in run.remarks
    ):
        notes.append(Note("Remarks:", tuple(said)))
    if unlike := _unlike(cells):
        notes.append(Note("Parameters that are not the same in all rows:", unlike))
    if far := _far_from_published(shown):
        notes.append(Note("More than two intervals of ours from the published value:", far))
    return tuple(notes)


def _grouped(what: str, shown: Sequence[_Shown], column: str, kind: str) -> Note:
    """Which rows have which value, each row under the shortest name that has one value only.

    That is its kind ("method", or "row": a way of adapting) if the table's labels spell kinds, else
    its label, or label and place.
    """

    def names(part: _Shown) -> tuple[str, ...]:
        own = (part.label, f"{part.label} ({part.place})")
        return (getattr(part, kind), *own) if is_spelled else own

    is_spelled = all(part.is_spelled for part in shown)
    values: Mapping[str, set[str]] = defaultdict(set)
    for part in shown:
        for name in names(part):
            values[name].add(getattr(part.result, column))
    groups: Mapping[str, dict[str, None]] = defaultdict(dict)
    for part in shown:
        shortest = next(name for name in names(part) if len(values[name]) == 1)
        groups[getattr(part.result, column)][shortest] = None
    if len(groups) == 1:
        return Note(f"{what}: {next(iter(groups))} (all rows).")
    return Note(f"{what}:", tuple(f"{value}: {'; '.join(of)}" for value, of in groups.items()))


def _unlike(cells: Iterable[Cell]) -> tuple[str, ...]:
    """E.g. 'pretrain.lr_decay = 0.2: ECI; EI' and '... = 0.5: Pool', as files of one task tell.

    Of a method whose seeds differ the seeds are said as well.
    """
    tasks: Mapping[object, list[tuple[str, int, dict[str, object]]]] = defaultdict(list)
    for cell in cells:  # whose parameters are made anew whenever they are asked for
        tasks[cell.task].append((method_name(cell.method), cell.seed, cell.params))
    items = []
    for same in tasks.values():
        for key in {key: None for _, _, params in same for key in params}:
            of = _by_value(key, same)
            if len(of) > 1:
                items += [f"{key} = {value}: {'; '.join(names)}" for value, names in of.items()]
    return tuple(items)


def _by_value(
    key: str, same: Iterable[tuple[str, int, dict[str, object]]]
) -> Mapping[str, list[str]]:
    """Who has each value of a parameter, of (method, seed, parameters)."""
    seeds: Mapping[str, dict[str, dict[int, None]]] = defaultdict(dict)
    for name, seed, params in same:
        if (value := value_of(params, key)) is not None:
            seeds[name].setdefault(value, {})[seed] = None
    of: Mapping[str, list[str]] = defaultdict(list)
    for name, values in seeds.items():
        for value, own in values.items():
            which = f" of seed {' and '.join(map(str, own))}" if len(values) > 1 else ""
            of[value].append(name + which)
    return of


def _far_from_published(shown: Sequence[_Shown]) -> tuple[str, ...]:
    items = []
    for part in shown:
        result = part.result
        if result.published is None:
            continue
        difference = result.accuracy - result.published
        if abs(difference) > 2 * result.ci95:
            items.append(f"{part.label}, {part.place}: {_signed(difference)}")
    return tuple(items)
