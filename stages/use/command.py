"""The commands that use a learner: export, adapt, embed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.interface.errors import BadInput, refuses_bad_input

LEARNER = Annotated[Path, typer.Option(help="A file of `purer export`.")]
TABLES = (".csv", ".parquet")
SHOWN = 20  # predictions printed
COLUMNS = ("image", "predicted")  # of predictions, before a column for each class


@refuses_bad_input
def export(
    learner: Annotated[Path, typer.Argument(help="A folder of meta_train.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    iteration: Annotated[
        int | None, typer.Option(help="The snapshot after so many iterations; the last if unsaid.")
    ] = None,
    cell: Annotated[
        Path | None,
        typer.Option(help="A cell's file of reports/: the snapshot that its selection chose."),
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="An ONNX file to write as well.")] = None,
) -> None:
    """One file of a learner with everything needed to use it."""
    from stages.use.exporting import (
        chosen_snapshot,
        export_onnx,
        export_safetensors,
        selected_iteration,
    )

    _check_ending(out, ".safetensors")
    _check_ending(onnx, ".onnx")
    if cell is not None:
        if iteration is not None:
            raise BadInput("--iteration and --cell: allowed: one of them")
        iteration = selected_iteration(cell, learner)
    info = export_safetensors(chosen_snapshot(learner, iteration), out)
    typer.echo(
        f"{out}: {info.method}, {info.architecture} for {info.image_size} x {info.image_size}"
        f" pixels, after {info.iteration} iterations"
    )
    if onnx is not None:
        worst = export_onnx(out, onnx)
        typer.echo(f"{onnx}: differs from PyTorch by at most {worst:.1g}")


@refuses_bad_input
def adapt(
    support: Annotated[Path, typer.Argument(help="A folder with a folder of images a class.")],
    learner: LEARNER,
    predict: Annotated[
        list[Path], typer.Option(help="An image or a folder of images; may be repeated.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="A .csv or .parquet file to write as well.")
    ] = None,
) -> None:
    """Learn classes from a few images each, then say which class other images are of."""
    from stages.use.few_shot import load_learner
    from stages.use.images import class_folders, image_files, names

    _check_ending(out, *TABLES)
    classes = class_folders(support)
    if taken := [name for name in COLUMNS if name in classes]:
        raise BadInput(
            f"{support / taken[0]}: a class may not be called {' or '.join(COLUMNS)}: columns of"
            " the predictions"
        )
    files = [file for place in predict for file in image_files(place)]
    model = load_learner(learner)
    shots = [(file, name) for name, found in classes.items() for file in found]
    classifier = model.adapt([file for file, _ in shots], [name for _, name in shots])
    shares = classifier.probabilities(files)
    best = shares.argmax(1).tolist()
    rows = [
        dict(zip(COLUMNS, (image, classifier.classes[k]), strict=True))
        | dict(zip(classifier.classes, map(float, share), strict=True))
        for image, k, share in zip(names(files), best, shares.tolist(), strict=True)
    ]
    if out is not None:
        _save(out, rows)
    _show(rows, f"{len(classes)} classes from {len(shots)} images", out)


@refuses_bad_input
def embed(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    learner: LEARNER,
    out: Annotated[Path, typer.Option(help="The .csv or .parquet file to write.")],
) -> None:
    """Write the features of images: a row an image."""
    from stages.use.few_shot import load_learner
    from stages.use.images import image_files, names

    _check_ending(out, *TABLES)
    files = [file for place in images for file in image_files(place)]
    features = load_learner(learner).embed(files)
    rows = [
        {"image": name} | {f"feature_{i}": value for i, value in enumerate(row)}
        for name, row in zip(names(files), features.tolist(), strict=True)
    ]
    _save(out, rows)
    typer.echo(f"{out}: {len(rows)} images, {features.shape[1]} features each")


def _check_ending(out: Path | None, *allowed: str) -> None:
    """Raise BadInput unless `out` is the name of a file to write."""
    if out is not None and out.suffix not in allowed:
        raise BadInput(f"{out}: allowed endings: {', '.join(allowed)}")
    if out is not None and out.is_dir():
        raise BadInput(f"{out}: is a folder: allowed: a file, or a new name")


def _save(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    from stages.common.files import written_whole

    with written_whole(out) as temporary:
        if out.suffix == ".csv":
            with temporary.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)
        else:
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(list(rows)), temporary)


def _show(rows: Sequence[dict[str, Any]], title: str, out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for heading in ("image", "class", "probability", "next"):
        table.add_column(heading, overflow="fold")
    for row in rows[:SHOWN]:
        shares = sorted(list(row.items())[len(COLUMNS) :], key=lambda item: -item[1])
        first, second = shares[:2]
        table.add_row(row["image"], first[0], f"{first[1]:.2f}", f"{second[0]} {second[1]:.2f}")
    Console().print(table)
    if len(rows) > SHOWN:
        typer.echo(f"and {len(rows) - SHOWN} more" + (f" in {out}" if out else "; see --out"))
    elif out is not None:
        typer.echo(f"{out}: {len(rows)} predictions")
