"""The commands of the aggregate stage: evaluated cells -> tables, figures, the selected metrics."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from stages.interface import params
from stages.interface.errors import BadInput, refuses_bad_input

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

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def table(
    cells: Annotated[list[str], typer.Argument(help="Keys of the cells, all of which must exist.")],
    budget: Annotated[str, typer.Option(help="The budget they were run at.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
) -> None:
    """One table over cells: Markdown, Parquet, a bar chart and the training curves."""
    from stages.aggregate.cells import load_cell
    from stages.aggregate.figures import save_bars, save_training
    from stages.aggregate.markdown import markdown
    from stages.aggregate.tables import results
    from stages.common.files import save_table, written_whole

    loaded = [load_cell(key, budget) for key in cells]
    rows = results(loaded, budget)
    text = markdown(rows, loaded)
    with written_whole(out) as temporary:
        temporary.mkdir()
        (temporary / "table.md").write_text(text)
        save_table(temporary / "table.parquet", rows)
        save_bars(temporary / "accuracy.png", rows)
        save_training(temporary / "training.png", loaded)
    typer.echo(text)


@app.command()
@refuses_bad_input
def publish(
    cell: Annotated[str, typer.Argument(help="Key of the selected cell.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("reports"),
) -> None:
    """Put the selected cell's metrics, table and figures where they always are."""
    given = params.read(PARAMS)
    from stages.aggregate.cells import load_cell
    from stages.aggregate.figures import save_bars, save_training
    from stages.aggregate.markdown import markdown
    from stages.aggregate.tables import results
    from stages.common.files import save_json, written_whole

    loaded = load_cell(cell, given["budget"])
    rows = results([loaded], given["budget"])
    text = markdown(rows, [loaded])
    if given["adaptation"] not in loaded.rows:
        raise BadInput(
            f"adaptation = {given['adaptation']!r}: the cell has {', '.join(loaded.rows)}"
        )
    chosen = loaded.metrics[given["adaptation"]]
    save_json(out / "metrics.json", {**given, **chosen})
    selected = out / "selected"
    with written_whole(selected) as temporary:
        temporary.mkdir()
        (temporary / "table.md").write_text(text)
        rows[["method", "adaptation", "accuracy", "ci95", "batch_norm"]].to_csv(
            temporary / "accuracy.csv", index=False
        )
        loaded.history.to_csv(temporary / "history.csv", index=False, float_format="%.6g")
        loaded.selection.to_csv(temporary / "selection.csv", index=False, float_format="%.6g")
        save_bars(temporary / "accuracy.png", rows)
        save_training(temporary / "training.png", [loaded])
        shutil.copy(Path("models/learners") / cell / "synthetic.png", temporary / "synthetic.png")
    typer.echo(text)
    typer.echo(f"table and pictures: {selected}/; selected metrics: {out / 'metrics.json'}")
