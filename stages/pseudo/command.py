"""The command of the pseudo stage: a pool -> images of its own classes, as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.interface import params
from stages.interface.errors import refuses_bad_input

PARAMS = ("device", "pseudo")

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def pseudo(
    pool: Annotated[Path, typer.Option(help="The pool.")],
    out: Annotated[Path, typer.Option(help="The file to write, a data set to meta_test.")],
) -> None:
    """Make what stands in for a data set: fresh synthetic images of the pool's own classes."""
    given = params.read(PARAMS)
    from stages.common.files import FILE
    from stages.common.kept import Kept
    from stages.common.pool import MANIFEST, load_pool
    from stages.interface.device import prepared
    from stages.interface.work import work_folder
    from stages.pseudo.classes import pseudo_classes, write

    device = prepared(given["device"])
    teachers = load_pool(pool, device)
    files = [pool / MANIFEST, *(pool / teacher.info.file for teacher in teachers)]
    with work_folder("pseudo", [given, device], files, out, FILE) as folder:
        classes = pseudo_classes(teachers, given["pseudo"], device, Kept(folder))
        write(out, classes, teachers[0].info.view)
    typer.echo(f"{out}: {len(classes)} classes of {pool}, lent by {len(teachers)} teachers")
