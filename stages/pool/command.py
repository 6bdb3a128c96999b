"""The commands about pools: import, show, check."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.interface.errors import BadInput, did_you_mean, first_of, refuses_bad_input

if TYPE_CHECKING:
    from stages.common.dataset import Normalisation

PARAMS: tuple[str, ...] = ()  # of `adopt`, which is a stage

app = typer.Typer(add_completion=False, no_args_is_help=True)

POOL = Annotated[Path, typer.Argument(help="The pool folder.")]


@app.command("import")
@refuses_bad_input
def import_teacher(
    pool: POOL,
    weights: Annotated[Path, typer.Argument(help="A .safetensors, .pt or .pth state dict.")],
    architecture: Annotated[
        str,
        typer.Option(help="conv4, resnet18, ..., torchvision/NAME, timm/NAME, python/MODULE:NAME."),
    ],
    classes: Annotated[
        str, typer.Option(help="The classes in the order of the outputs: a,b,c or a text file.")
    ],
    image_size: Annotated[int, typer.Option(min=1, help="Side of its images, in pixels.")],
    normalisation: Annotated[
        str,
        typer.Option(
            help="imagenet, cifar, half, quarter, unit, bytes, or m,m,m/s,s,s of pixels in [0, 1]."
        ),
    ],
    outputs: Annotated[
        int | None, typer.Option(help="Outputs, if there are more of them than classes.")
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(help="What its classes are of; equal names of one data set are one class."),
    ] = "own",
    arguments: Annotated[
        str, typer.Option(help="JSON for the architecture's maker, as '{\"image_size\": 64}'.")
    ] = "{}",
    key: Annotated[
        str | None,
        typer.Option(help="Of a checkpoint with several state dicts, as model_ema: which."),
    ] = None,
) -> None:
    """Add a classifier to a pool, making the pool if there is none."""
    from stages.pool.importing import add_teacher
    from stages.pool.state_dicts import read_state

    mean, std = _normalisation(normalisation)
    info = add_teacher(
        pool,
        read_state(weights, key),
        architecture,
        _classes(classes),
        image_size,
        mean,
        std,
        dataset=dataset,
        n_outputs=outputs,
        arguments=_arguments(arguments),
        source=str(weights),
    )
    typer.echo(f"{pool / info.file}: {info.architecture}, {len(info.class_names)} classes")


@app.command()
@refuses_bad_input
def show(pool: POOL) -> None:
    """Print what a pool's manifest says."""
    from rich.console import Console
    from rich.table import Table

    from stages.common.pool import load_manifest

    table = Table(title=str(pool))
    for heading in ("teacher", "architecture", "classes", "pixels", "normalised", "val. %"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "classes")
    infos = load_manifest(pool)
    for info in infos:
        table.add_row(
            info.file.removesuffix(".safetensors"),
            info.architecture,
            f"{len(info.class_names)} of {info.dataset}: {first_of(info.class_names, 5)}",
            str(info.image_size),
            _words(info.normalisation),
            "–" if info.val_accuracy is None else f"{info.val_accuracy:.1f}",
        )
    Console(markup=False, emoji=False, highlight=False).print(table)  # names as they are
    unlike = {known for info in infos for known in info.classes}
    typer.echo(f"{len(infos)} teachers, {len(unlike)} classes")


@app.command()
@refuses_bad_input
def check(pool: POOL) -> None:
    """Look for what is wrong with a pool's teachers; exit code 2 if something is."""
    from stages.common.files import NOBODYS
    from stages.common.pool import MANIFEST, load_manifest
    from stages.pool.checking import check_pool

    infos = load_manifest(pool)
    owners = Counter(known for info in infos for known in info.classes)
    wrong = []
    for info, found, remembers in check_pool(pool):
        said = "; ".join(found) or "fine"
        if not found and not remembers:
            said += (
                "; no BatchNorm that remembers: inverted without its statistics, normalisation not"
                " checked"
            )
        if twice := [known[1] for known in info.classes if owners[known] > 1]:
            said += f"; {len(twice)} classes are another teacher's as well ({first_of(twice, 5)})"
        typer.echo(f"{info.file}: {said}")
        if found:
            wrong.append(info.file)
    listed = (MANIFEST, *(info.file for info in infos))
    names = sorted(entry.name for entry in pool.iterdir() if entry.name not in listed)
    if others := [name for name in names if not any(fnmatch(name, n) for n in NOBODYS)]:
        typer.echo(f"not in {MANIFEST}, so never read: {', '.join(others)}")
    if wrong:
        raise BadInput(f"{pool}: {len(wrong)} teachers with findings: {', '.join(wrong)}")


@app.command()
@refuses_bad_input
def adopt(pool: POOL, out: Annotated[Path, typer.Option(help="The pool folder to write.")]) -> None:
    """Take a pool brought from elsewhere into the pipeline: checked, copied as it is."""
    from stages.common.files import written_whole
    from stages.common.pool import MANIFEST, load_pool
    from stages.interface.provenance import origin, provenance_of, save_provenance

    start = time.monotonic()
    teachers = load_pool(pool)
    with written_whole(out, "pool") as temporary:
        temporary.mkdir()
        for name in (MANIFEST, *(teacher.info.file for teacher in teachers)):
            shutil.copy(pool / name, temporary)
    seconds = time.monotonic() - start
    beside, source = provenance_of(out), str(pool)
    save_provenance(beside, seconds, "cpu", origin(), stage="own_pool", source=source)
    typer.echo(f"{out}: {len(teachers)} teachers of {pool}")


def _classes(given: str) -> list[str]:
    """Names, from 'a,b,c' or a file with one a line; empty ones at the end do not count.

    Raises BadInput for an empty one before others, which would shift against the outputs.
    """
    unit, where = "line", given
    try:
        names = Path(given).read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{given}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:  # also: names too long for a file's
        if "," not in given:
            raise BadInput(
                f"classes = {given!r}: {error.strerror}: allowed: a,b,c or a file"
            ) from None
        unit, where, names = "name", f"classes = {given!r}", given.split(",")
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise BadInput(
            f"{where}: {unit} {names.index('') + 1} is empty: allowed: a name for each output"
        )
    return names


def _arguments(given: str) -> dict[str, Any]:
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"arguments = {given!r}: allowed: a JSON object, as '{{\"depth\": 12}}'")
    return found


def _words(normalisation: Normalisation) -> str:
    """Its usual name, or its numbers."""
    from stages.pool.checking import NORMALISATIONS

    for name, known in NORMALISATIONS.items():
        if known == normalisation:
            return name
    mean, std = (
        " ".join(f"{v:.3g}" for v in part) for part in (normalisation.mean, normalisation.std)
    )
    return f"{mean} / {std}"


def _normalisation(given: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from stages.pool.checking import NORMALISATIONS

    if given in NORMALISATIONS:
        return NORMALISATIONS[given].mean, NORMALISATIONS[given].std
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in given.split("/"))
    except ValueError:
        raise BadInput(
            f"normalisation = {given!r}: allowed: {', '.join(NORMALISATIONS)}, or six numbers as"
            f" 0.5,0.5,0.5/0.25,0.25,0.25{did_you_mean(given, NORMALISATIONS)}"
        ) from None
    return mean, std
