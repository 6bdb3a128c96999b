"""A filled table as Markdown, each number's provenance and command below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.aggregate.cells import Cell
from stages.aggregate.names import ADAPTATIONS
from stages.aggregate.sheets import Sheet


def markdown(sheet: Sheet) -> str:
    columns = [name for n in sheet.shots for name in (f"{n}-shot", "published", "minus PURER")]
    lines = [
        f"### {sheet.title}",
        "",
        _row(["data", "row", *columns]),
        _row(["---", "---"] + ["---:"] * len(columns)),
    ]
    for line in sheet.lines:
        label = f"**{line.label}**" if line.is_purer else line.label
        entries = [x for e in line.entries for x in (e.ours, e.published, e.difference)]
        lines.append(_row([line.heading, label, *entries]))
    for note in sheet.notes:
        lines += ["", note.text, *([""] if note.items else []), *(f"- {x}" for x in note.items)]
    return "\n".join([*lines, *_provenance(sheet.cells)]) + "\n"


def provenance_text(cell: Cell) -> str:
    """E.g. 'pretrain 4.2 min, meta_train 12.0 min (commit abc, AMD EPYC, 2 cores, cpu)'."""
    places: dict[str, list[str]] = {}
    for run in cell.provenance:
        place = f"commit {run.commit}, {run.hardware}, {run.device}"
        places.setdefault(place, []).append(f"{run.stage} {run.minutes:.1f} min")
    runs = [f"{', '.join(stages)} ({place})" for place, stages in places.items()]
    return "; ".join([*runs, *_chosen(cell)])


def _chosen(cell: Cell) -> Iterator[str]:
    """E.g. 'chosen snapshots: 300 (one step, ICFIL), 450 (nearest class mean)'; none: no choice."""
    rows: dict[int, list[str]] = {}
    for name, row in cell.rows.items():
        if row.snapshot is not None and len(cell.selection) > 1:
            rows.setdefault(row.snapshot, []).append(ADAPTATIONS.get(name, name))
    if rows:
        chosen = (f"{iteration} ({', '.join(names)})" for iteration, names in sorted(rows.items()))
        yield f"chosen snapshots: {', '.join(chosen)}"


def _provenance(cells: Sequence[Cell]) -> Iterator[str]:
    if cells:
        words = "Where each number comes from (minutes of the clock, pauses included), and the"
        yield from ("", f"{words} command that makes it:", "")
    for cell in cells:
        yield f"- `{cell.key}`, seed {cell.seed}: {provenance_text(cell)}; `{cell.command}`"


def _row(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
