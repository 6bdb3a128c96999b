"""The report: everything run at a budget as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from stages.aggregate.cells import Cell
from stages.aggregate.gallery import Picture
from stages.aggregate.markdown import provenance_text
from stages.aggregate.names import data_name, method_name
from stages.aggregate.sheets import NO_NUMBER, Entry, Note, Sheet, SheetLine, iterations_text
from stages.interface.params import NO_DATASET

PAGE = Path(__file__).parent / "report.html"
SHORT = 25  # lines of a table that is kept on one printed page

ON_REAL = (
    "Snapshots are chosen on the meta-validation classes; the meta-test episodes are used once per"
    " row (figure 4 looks at every snapshot, after the choice), and are the same for every method,"
    " adaptation, budget and seed. The paper's program chooses on meta-test and reports the"
    " maximum, which favours the published numbers."
)
ON_PSEUDO = (
    "Where there is no data set, snapshots are chosen, and rows judged, on pseudo episodes: fresh"
    " synthetic images of the pool's own classes, inverted from procedural images, which are a"
    " hand-made prior. Such numbers are no accuracies on real images."
)
HONESTY = (
    "± is the 95 % interval over episodes. It says nothing about other training seeds; where"
    " several were run, their standard deviation stands below the number.",
    "“minus PURER” is paired: the mean difference on the same episodes, with its own interval.",
    "“not run” means that the grid has such a cell and that it has not been run at this budget."
    " Published numbers stand in columns of their own and never replace ours.",
    "A transductive protocol lets the query batch normalise itself, as the paper's program does;"
    " each table says which rows do.",
    "What the pool itself does without any meta-training (by its features, or by features and"
    " log-ratios) is what published tables leave out, and the number to beat. Rows marked"
    " data-based see real meta-training images: they are no competitors. Those on all images are a"
    " ceiling only if they were trained to their end, as their published values tell.",
    "glyphs and textures are stand-ins rendered by the project; they have no published numbers.",
)


def report(
    paper: Sequence[Sheet],
    others: Sequence[Sheet],
    pictures: Iterable[Picture],
    cells: Sequence[Cell],
) -> str:
    """The page: the paper's tables, the tables of every row, figures, provenance and commands."""
    budget = cells[0].budget
    sections = {
        "About": _list((*_episodes(cells), *HONESTY)),
        "The paper's tables": "".join(map(_sheet, paper)),
        "Every row": "".join(map(_sheet, others)),
        "Figures": _pictures(pictures) + _similarities(cells),
        "Provenance and commands": _provenance(cells),
    }
    anchors = {name: name.lower().replace(" ", "-").replace("'", "") for name in sections}
    links = " ".join(f'<a href="#{anchors[name]}">{escape(name)}</a>' for name in sections)
    body = "\n".join(
        f'<section>\n<h2 id="{anchors[name]}">{escape(name)}</h2>\n{content}</section>'
        for name, content in sections.items()
    )
    return Template(PAGE.read_text()).substitute(
        title=escape(f"Data-free meta-learning, reproduced: budget {budget}"),
        lead=escape(_lead(cells)),
        links=links,
        body=body,
    )


def _episodes(cells: Sequence[Cell]) -> Iterable[str]:
    """What rows are judged on and snapshots chosen on."""
    has_data = {cell.dataset != NO_DATASET for cell in cells}
    return [words for words, here in ((ON_REAL, True), (ON_PSEUDO, False)) if here in has_data]


def _lead(cells: Sequence[Cell]) -> str:
    seeds = sorted({cell.seed for cell in cells})
    length = iterations_text(cells)
    return (
        "A pool of trained classifiers goes in, none of their training data does, and out comes a"
        " model that learns new classes from a few labelled images: the tables and figures of"
        " PURER (Hu et al., CVPR 2023) beside their published numbers. Budget"
        f" {cells[0].budget}{f': {length}' if length else ''};"
        f" {len(cells)} cells; seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
    )


def _sheet(sheet: Sheet) -> str:
    groups = "".join(f'<th colspan="3">{n}-shot</th>' for n in sheet.shots)
    columns = "<th>ours</th><th>published</th><th>minus PURER</th>" * len(sheet.shots)
    head = f'<tr><th rowspan="2">row</th>{groups}</tr>\n<tr>{columns}</tr>'
    width = 1 + 3 * len(sheet.shots)
    bodies = ""
    for heading in sheet.headings:
        lines = [_line(line) for line in sheet.lines if line.heading == heading]
        title = f'<tr><th colspan="{width}" scope="rowgroup">{escape(heading)}</th></tr>\n'
        bodies += f"<tbody>\n{title}{''.join(lines)}</tbody>\n"
    short = ' class="short"' if len(sheet.lines) <= SHORT else ""
    notes = "".join(map(_note, sheet.notes))
    return (
        f'<div{short} id="{escape(sheet.name)}">\n<h3>{escape(sheet.title)}</h3>\n'
        f"{_table(head, bodies)}</div>\n"
        f'<div class="notes">\n{notes}</div>\n'
    )


def _line(line: SheetLine) -> str:
    kind = ' class="purer"' if line.is_purer else ""
    entries = "".join(map(_entry, line.entries))
    return f"<tr{kind}><td>{escape(line.label)}</td>{entries}</tr>\n"


def _entry(entry: Entry) -> str:
    kind = "none" if entry.ours in NO_NUMBER else "ours"
    ours, _, spread = entry.ours.partition(" (")
    small = f"<small>({escape(spread)}</small>" if spread else ""
    rest = "".join(
        f'<td class="other">{escape(x)}</td>' for x in (entry.published, entry.difference)
    )
    return f'<td class="{kind}">{escape(ours)}{small}</td>{rest}'


def _note(note: Note) -> str:
    return f"<p>{escape(note.text)}</p>\n" + (_list(note.items) if note.items else "")


def _list(items: Iterable[str]) -> str:
    return "<ul>\n" + "".join(f"<li>{escape(item)}</li>\n" for item in items) + "</ul>\n"


def _table(head: str, bodies: str, kind: str = "") -> str:
    table = f"<table{kind}>\n<thead>\n{head}\n</thead>\n{bodies}</table>\n"
    return f'<div class="scroll" tabindex="0">\n{table}</div>\n'


def _words(columns: Sequence[str], rows: Iterable[str]) -> str:
    """A table of words: left-aligned."""
    head = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in columns) + "</tr>"
    return _table(head, f"<tbody>\n{''.join(rows)}</tbody>\n", ' class="words"')


def _cells_of_row(*entries: str) -> str:
    return "<tr>" + "".join(f"<td>{escape(entry)}</td>" for entry in entries) + "</tr>\n"


def _pictures(pictures: Iterable[Picture]) -> str:
    sections: dict[str, list[str]] = {}
    for picture in pictures:
        content = base64.b64encode(picture.path.read_bytes()).decode()
        caption = escape(picture.caption)
        kind = ' class="wide"' if picture.wide else ""
        sections.setdefault(picture.section, []).append(
            f'<figure{kind}>\n<img alt="{caption}" src="data:image/png;base64,{content}">\n'
            f"<figcaption>{caption}</figcaption>\n</figure>\n"
        )
    return "".join(
        f'<h3>{escape(name)}</h3>\n<div class="figures">\n{"".join(figures)}</div>\n'
        for name, figures in sections.items()
    )


def _similarities(cells: Sequence[Cell]) -> str:
    rows = [
        _cells_of_row(
            f"{cell.scenario.upper()}, {data_name(cell.datasets, cell.n_way)} {cell.n_shot}-shot",
            method_name(cell.method),
            str(cell.seed),
            f"{cell.similarity.own:.3f}",
            f"{cell.similarity.other:.3f}",
            f"{cell.similarity.nearest_is_own:.0f} %",
        )
        for cell in cells
        if cell.similarity is not None
    ]
    if not rows:
        return ""
    title = "<h3>Cosine similarity of synthetic class means with real ones</h3>\n"
    columns = ("task", "method", "seed", "own class", "other classes", "own class is nearest")
    return title + _words(columns, rows)


def _provenance(cells: Sequence[Cell]) -> str:
    rows = [
        _cells_of_row(
            cell.key,
            str(cell.seed),
            provenance_text(cell),
            ", ".join(dict.fromkeys(_versions(cell))) or "–",
        )
        + f'<tr class="command"><td colspan="4"><code>{escape(cell.command)}</code></td></tr>\n'
        for cell in cells
    ]
    return _words(
        ("cell", "seed", "stages, minutes (pauses too), where", "versions"),
        rows,
    )


def _versions(cell: Cell) -> Iterable[str]:
    for run in cell.provenance:
        yield from (f"{name} {version}" for name, version in sorted(run.versions.items()))
