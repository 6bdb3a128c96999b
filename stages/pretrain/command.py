"""The command of the pretrain stage: meta-train classes -> a pool of teachers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from stages.interface import params
from stages.interface.errors import BadInput, refuses_bad_input

PARAMS = ("seed", "device", "pretrain", "scenarios.{scenario}", "budgets.{budget}.pretrain")

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def pretrain(
    data: Annotated[
        list[Path],
        typer.Option(help="Canonical data set, its meta-train classes are used; twice: a pair."),
    ],
    scenario: Annotated[str, typer.Option(help="A key of `scenarios` in params.yaml.")],
    n_way: Annotated[int, typer.Option(min=2, help="Classes of a teacher.")],
    budget: Annotated[str, typer.Option(help="A key of `budgets` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="The pool folder to write.")],
) -> None:
    """Train a pool of classifiers, each on its own few meta-train classes."""
    given = params.read(PARAMS, scenario=scenario, budget=budget)
    from stages.common.dataset import load_splits
    from stages.common.files import written_whole
    from stages.interface.device import prepared
    from stages.interface.provenance import Stopwatch, provenance_of, save_provenance
    from stages.interface.work import work_folder
    from stages.pretrain.pool import plan_pool, train_pool

    device = prepared(given["device"])
    sets = load_splits(data, "train")
    for images in sets:
        if n_way > len(images.class_ids):
            raise BadInput(
                f"n_way = {n_way}: {images.dataset} has only {len(images.class_ids)} meta-train"
                " classes"
            )
    settings, length = given["pretrain"], given["budgets.{budget}.pretrain"]
    architectures = given["scenarios.{scenario}"].names
    lessons = plan_pool(sets, architectures, n_way, settings.pool_size, given["seed"])
    with work_folder("pretrain", [given, n_way, device], data, out, "pool") as folder:
        watch = Stopwatch(folder)
        try:
            infos = train_pool(
                folder, lessons, settings, length, n_way, given["seed"], device, watch.save
            )
        finally:
            watch.save()
        with written_whole(out, "pool") as temporary:
            shutil.copytree(folder / "pool", temporary)
        mean = sum(info.val_accuracy or 0.0 for info in infos) / len(infos)
        save_provenance(
            provenance_of(out),
            watch.seconds,
            device,
            watch.origin,
            seed=given["seed"],
            params=params.by_key(given, scenario=scenario, budget=budget),
        )
    typer.echo(f"{out}: {len(infos)} teachers, validation accuracy {mean:.1f} % on average")
