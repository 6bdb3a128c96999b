"""The commands of the aggregate stage: evaluated cells -> tables, figures, the report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.aggregate.names import is_distilled
from stages.interface.errors import BadInput, did_you_mean, refuses_bad_input

if TYPE_CHECKING:
    from stages.aggregate.cells import Cell
    from stages.aggregate.layouts import Layout
    from stages.aggregate.sheets import Sheet

PARAMS = (
    "scenario",
    "dataset",
    "n_way",
    "n_shot",
    "method",
    "adaptation",
    "budget",
    "seed",
)
SELECTION = ["iteration", "one_step", "nearest_class_mean"]  # columns that dvc.yaml plots

OWN = ("icfil", "one_step", "nearest_class_mean", "pool_features")  # what `auto` looks for

Budget = Annotated[str, typer.Option(help="The budget the cells were run at.")]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
@refuses_bad_input
def table(
    name: Annotated[str, typer.Argument(help="A table of the paper: table_1 to table_8.")],
    budget: Budget,
    seed: Annotated[int, typer.Option(help="The training seed.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
) -> None:
    """One of the paper's tables, all of whose cells must have been run: Markdown and Parquet."""
    from stages.aggregate.cells import load_cell, path_of
    from stages.aggregate.layouts import PAPER, cells_of
    from stages.common.files import written_whole

    if name not in PAPER:
        raise BadInput(
            f"{name}: no such table: allowed: {', '.join(PAPER)}{did_you_mean(name, PAPER)}"
        )
    paths = [path_of(key, budget, seed) for key in sorted(cells_of(PAPER[name]))]
    for path in paths:
        if not path.is_file():
            raise BadInput(
                f"{path}: no such file; `dvc repro stages/dvc.yaml:{name}` makes it, with"
                f" budget: {budget} and seed: {seed} in params.yaml"
            )
    (sheet,) = _fill([PAPER[name]], [load_cell(path) for path in paths])
    with written_whole(out, "report") as folder:
        _save_sheet(folder, "table", sheet)
    typer.echo((out / "table.md").read_text())


@app.command()
@refuses_bad_input
def report(
    budget: Budget,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write into.", show_default="reports/BUDGET")
    ] = None,
) -> None:
    """All tables and figures of the cells run so far, of all seeds, and a page that shows them."""
    from stages.aggregate.cells import load_budget
    from stages.aggregate.gallery import draw_all, keep_pictures, synthetic_pictures
    from stages.aggregate.layouts import OURS, PAPER, every_row
    from stages.aggregate.report import report as page
    from stages.aggregate.results import results
    from stages.common.files import check_place, written_whole

    cells = load_budget(budget)
    own = Path("reports") / budget
    out = out or own
    paper = _fill([*PAPER.values()], cells)
    others = _fill([*OURS.values(), *every_row(cells)], cells)
    check_place(out / "figures", "report")
    check_place(out / "report.html")
    synthetic_pictures(cells)  # refused before anything is replaced
    with written_whole(out / "tables", "report") as folder:
        for sheet in (*paper, *others):
            _save_sheet(folder, sheet.name, sheet)
    if out == own:
        keep_pictures(cells)
    with written_whole(out / "figures", "report") as folder:
        folder.mkdir()
        pictures = draw_all(folder, cells, results(cells)) + synthetic_pictures(cells)
        text = page(paper, others, pictures, cells)
    with written_whole(out / "report.html") as temporary:
        temporary.write_text(text)
    typer.echo(f"{len(cells)} cells: {out}/report.html, {out}/tables/, {out}/figures/")


@app.command()
@refuses_bad_input
def publish(
    cell: Annotated[str, typer.Argument(help="Key of the selected cell.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("reports"),
) -> None:
    """Put the selected cell's metrics, table and figures where they always are."""
    from stages.aggregate.cells import KEY_PARTS, cell_key, load_cell, path_of
    from stages.aggregate.layouts import selected
    from stages.common.files import check_place, save_json, written_whole
    from stages.interface import params

    given = params.read(PARAMS)
    if cell != (selected_key := cell_key(*(given[name] for name in KEY_PARTS))):
        raise BadInput(f"{cell}: not what params.yaml selects: allowed: {selected_key}")
    chosen = load_cell(path_of(cell, given["budget"], given["seed"]))
    cells = [chosen]
    if chosen.method != "pool":  # the number to beat stands beside every learner's
        pool = cell.removesuffix(chosen.method) + "pool"
        cells.append(load_cell(path_of(pool, given["budget"], given["seed"])))
    given["adaptation"] = _row_of(chosen, given["adaptation"])
    (sheet,) = _fill([selected(cells)], cells)
    check_place(out / "selected", "report")
    save_json(out / "metrics.json", {**given, **_metrics(chosen, given["adaptation"])})
    with written_whole(out / "selected", "report") as folder:
        _save_sheet(folder, "table", sheet)
        _save_plots(folder, chosen, sheet)
    typer.echo((out / "selected/table.md").read_text())
    typer.echo(f"table and pictures: {out}/selected/; selected metrics: {out}/metrics.json")


def _row_of(cell: Cell, adaptation: str) -> str:
    """The row that `adaptation` names; "auto": the method's own, the first of `OWN` that it has."""
    if adaptation == "auto":
        if is_distilled(cell.method):  # its features are made for it
            return "nearest_class_mean"
        return next((row for row in OWN if row in cell.rows), next(iter(cell.rows)))
    if adaptation not in cell.rows:
        raise BadInput(
            f"params.yaml: adaptation = {adaptation!r}: no such row in {cell.key}: allowed: auto,"
            f" {', '.join(cell.rows)}"
        )
    return adaptation


def _fill(layouts: Sequence[Layout], cells: Sequence[Cell]) -> list[Sheet]:
    from stages.aggregate.results import results
    from stages.aggregate.sheets import fill

    rows = results(cells)
    return [fill(layout, rows, cells) for layout in layouts]


def _save_sheet(folder: Path, name: str, sheet: Sheet) -> None:
    from stages.aggregate.markdown import markdown
    from stages.aggregate.results import frame
    from stages.common.files import save_table

    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(markdown(sheet))
    save_table(folder / f"{name}.parquet", frame(sheet.results))


def _metrics(cell: Cell, adaptation: str) -> dict[str, Any]:
    row = cell.rows[adaptation].model_dump(exclude={"correct"}, exclude_none=True)
    return {**row, "n_episodes": cell.n_episodes}


def _save_plots(folder: Path, cell: Cell, sheet: Sheet) -> None:
    """The files that the `plots` of the root dvc.yaml name: all of them, whatever there is."""
    import pandas as pd

    from stages.aggregate.cells import EVALUATIONS
    from stages.aggregate.figures import save_accuracies, save_placeholder, save_training
    from stages.aggregate.results import frame, labelled

    columns = ["method", "adaptation", "accuracy", "ci95", "protocol"]
    frame(sheet.results)[columns].to_csv(folder / "accuracy.csv", index=False, float_format="%.4f")
    history = {"iteration": cell.history.iteration, "outer_accuracy": cell.history.outer_accuracy}
    selection = pd.DataFrame(cell.selection)
    selection = selection.reindex(columns=list(dict.fromkeys((*SELECTION, *selection.columns))))
    for name, content in (("history", pd.DataFrame(history)), ("selection", selection)):
        content.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    title = f"{cell.key}, budget {cell.budget}"
    save_accuracies(folder / "accuracy.png", labelled(sheet.results), title)
    if cell.history.iteration:
        save_training(folder / "training.png", [cell], title)
    else:
        save_placeholder(folder / "training.png", "no accuracy on training episodes")
    images = EVALUATIONS / cell.key / "synthetic.png"
    if images.is_file():
        shutil.copy(images, folder / "synthetic.png")
    else:
        save_placeholder(folder / "synthetic.png", "no synthetic images")
