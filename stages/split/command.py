"""The command of the split stage: any accepted source of a data set -> one canonical file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.interface import params
from stages.interface.errors import check_name, refuses_bad_input

PARAMS = ("datasets.{dataset}",)

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def split(
    dataset: Annotated[str, typer.Option(help="glyphs, textures, cifar_fs or mini_imagenet.")],
    out: Annotated[Path, typer.Option(help="The canonical file to write.")],
) -> None:
    """Turn any accepted source of a data set into one canonical file."""
    from stages.split.canonical import canonical, write
    from stages.split.catalogue import CATALOGUE
    from stages.split.sources import SOURCES

    check_name("dataset", dataset, CATALOGUE)
    given = params.read(PARAMS, dataset=dataset)
    spec = CATALOGUE[dataset]
    classes, source = SOURCES[dataset](spec, given["datasets.{dataset}"])
    ordered = canonical(spec, classes, source)
    write(out, spec, ordered)
    n_images = sum(len(images) for images in ordered.values())
    typer.echo(f"{out}: {n_images} images of {len(ordered)} classes ({source})")
