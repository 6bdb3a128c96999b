"""The commands that use a learner: export, adapt, embed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages.interface.device import keep_freed_memory
from stages.interface.errors import BadInput, first_of, refuses_bad_input

if TYPE_CHECKING:
    from torch import Tensor

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
    from stages.common.files import written_whole
    from stages.use.exporting import (
        UNKNOWN,
        check_replaceable,
        chosen_snapshot,
        export_onnx,
        export_safetensors,
        selected_iteration,
    )

    _check_ending(out, ".safetensors")
    _check_ending(onnx, ".onnx")
    check_replaceable(out)
    if onnx is not None:
        check_replaceable(onnx)
    if cell is not None:
        if iteration is not None:
            raise BadInput("--iteration and --cell: allowed: one of them")
        iteration = selected_iteration(cell, learner)
    snapshot = chosen_snapshot(learner, iteration)
    worst = None
    with written_whole(out) as temporary:  # both files or none: either may be refused
        info = export_safetensors(snapshot, temporary)
        if onnx is not None:
            worst = export_onnx(snapshot, onnx)
    if worst is not None:
        typer.echo(f"{onnx}: differs from PyTorch by at most {worst:.1g}")
    how = "" if iteration is not None else "; the last snapshot: --cell takes the selected one"
    typer.echo(
        f"{out}: {info.method}, {info.architecture} for {info.image_size} x {info.image_size}"
        f" pixels, after {info.iteration} iterations{how}"
    )
    if info.provenance == UNKNOWN:
        typer.echo(f"no provenance stands beside {learner}: where it comes from is unknown")


@refuses_bad_input
def adapt(
    support: Annotated[Path, typer.Argument(help="A folder with a folder of images a class.")],
    learner: LEARNER,
    predict: Annotated[
        list[Path], typer.Option(help="An image or a folder of images; may be repeated.")
    ],
    more: Annotated[
        list[Path] | None,
        typer.Argument(help="More of --predict, as the shell makes of --predict new/*.jpg."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .csv or .parquet file to write as well.")
    ] = None,
) -> None:
    """Learn classes from a few images each, then say which class other images are of."""
    from stages.use.few_shot import load_learner
    from stages.use.images import beside_classes, class_folders, image_files, names

    _check_ending(out, *TABLES)
    classes = class_folders(support)
    if taken := [name for name in COLUMNS if name in classes]:
        raise BadInput(
            f"{support / taken[0]}: a class may not be called {' or '.join(COLUMNS)}: columns of"
            " the predictions"
        )
    predict = [*predict, *(more or ())]
    files = [file for place in predict for file in image_files(place)]
    keep_freed_memory()
    model = load_learner(learner)
    shots = [(file, name) for name, found in classes.items() for file in found]
    classifier = model.adapt([file for file, _ in shots], [name for _, name in shots])
    shares = classifier.probabilities(files)
    predicted = [classifier.classes[k] for k in shares.argmax(1).tolist()]
    columns = dict(zip(COLUMNS, (names(files), predicted), strict=True))
    if out is not None:
        _save(out, columns, classifier.classes, shares)
    _show(columns["image"], classifier.classes, shares, out)
    typer.echo(f"{len(classes)} classes from {len(shots)} images")
    _say_passed_over([*{file.parent for file, _ in shots}, *predict], beside_classes(support))


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
    keep_freed_memory()
    features = load_learner(learner).embed(files)
    n, d = features.shape
    _save(out, {"image": names(files)}, [f"feature_{i}" for i in range(d)], features)
    typer.echo(f"{out}: {n} images, {d} features each")
    _say_passed_over(images)


def _say_passed_over(places: Iterable[Path], beside: Sequence[Path] = ()) -> None:
    """Say what was not read of these folders, lest fewer images are used than are there.

    `beside`: files beside the folders of classes.
    """
    from stages.use.images import passed_over, text

    found = [path for place in {*places} for path in passed_over(place)]
    folders = [path for path in found if path.is_dir()]
    files = [path for path in found if not path.is_dir()]
    if files:
        endings = ", ".join(sorted({text(file.suffix.lower()) or "no ending" for file in files}))
        typer.echo(f"not read, for they are no images to Pillow: {len(files)} files ({endings})")
    for what, paths in (("within folders of images", folders), ("beside the classes", beside)):
        if paths:
            listed = first_of(sorted(text(path.name) for path in paths), 3)
            typer.echo(f"not read, for they lie {what}: {len(paths)} ({listed})")


def _check_ending(out: Path | None, *allowed: str) -> None:
    """Raise BadInput unless `out` is the name of a file to write."""
    from stages.common.files import check_place

    if out is None:
        return
    if out.suffix not in allowed:
        raise BadInput(f"{out}: allowed endings: {', '.join(allowed)}")
    check_place(out)


def _save(
    out: Path, columns: Mapping[str, list[str]], headings: Sequence[str], numbers: Tensor
) -> None:
    """A table of `columns`, then a column of `numbers` (rows, headings) for each heading."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    from stages.common.files import written_whole

    values = numbers.T.contiguous().cpu().numpy()
    table = pa.table({**columns, **dict(zip(headings, values, strict=True))})
    with written_whole(out) as temporary:
        (csv.write_csv if out.suffix == ".csv" else parquet.write_table)(table, temporary)


def _show(images: Sequence[str], classes: Sequence[str], shares: Tensor, out: Path | None) -> None:
    """The two most probable classes of the first images."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("image", "class", "probability", "next"):
        table.add_column(heading, overflow="fold")
    best = shares.topk(2, 1)
    for image, share, k in zip(
        images[:SHOWN], best.values.tolist(), best.indices.tolist(), strict=False
    ):
        first, second = classes[k[0]], classes[k[1]]
        table.add_row(image, first, f"{share[0]:.2f}", f"{second} {share[1]:.2f}")
    Console(markup=False, emoji=False, highlight=False).print(table)  # names as they are
    if len(images) > SHOWN:
        typer.echo(f"and {len(images) - SHOWN} more" + (f" in {out}" if out else "; see --out"))
    elif out is not None:
        typer.echo(f"{out}: {len(images)} predictions")
