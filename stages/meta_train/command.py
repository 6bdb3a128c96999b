"""The command of the meta_train stage: pool -> snapshots of the learner. It never sees data."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages.interface import params
from stages.interface.errors import BadInput, did_you_mean, refuses_bad_input
from stages.meta_train.methods import METHODS

if TYPE_CHECKING:
    from torch import Tensor

PARAMS = (
    "seed",
    "device",
    "n_query",
    "meta_train.{family}",
    "meta_train.{method}",
    "budgets.{budget}.meta_train",
)

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def meta_train(
    pool: Annotated[Path, typer.Option(help="The pool folder to learn from.")],
    n_way: Annotated[int, typer.Option(min=2, help="Classes of an episode.")],
    n_shot: Annotated[int, typer.Option(min=1, help="Support images per class.")],
    method: Annotated[str, typer.Option(help="How to meta-train: " + ", ".join(METHODS) + ".")],
    budget: Annotated[str, typer.Option(help="A key of `budgets` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
) -> None:
    """Meta-train a learner on a pool of classifiers, without any of their data."""
    if method not in METHODS:
        raise BadInput(
            f"method = {method!r}: allowed: {', '.join(METHODS)}" + did_you_mean(method, METHODS)
        )
    family = METHODS[method].family
    given = params.read(PARAMS, family=family, method=method, budget=budget)

    from stages.common.files import save_table, save_tensors, written_whole
    from stages.common.learner import LearnerInfo
    from stages.common.pool import MANIFEST, load_pool
    from stages.interface.device import resolve
    from stages.interface.provenance import Stopwatch, save_provenance
    from stages.interface.work import work_folder
    from stages.meta_train.loop import meta_train as train
    from stages.meta_train.picture import save_picture

    device = resolve(given["device"])
    teachers = load_pool(pool, device)
    n_classes = sum(len(teacher.info.class_ids) for teacher in teachers)
    if n_way > n_classes:
        raise BadInput(f"n_way = {n_way}: the teachers of {pool} know only {n_classes} classes")
    files = [pool / MANIFEST, *(pool / teacher.info.file for teacher in teachers)]
    length = given["budgets.{budget}.meta_train"]
    shape = {"n_way": n_way, "n_shot": n_shot, "n_query": given["n_query"]}
    with work_folder("meta_train", [given, shape, method, device], files, out) as folder:
        watch = Stopwatch(folder)
        run = METHODS[method].start(
            teachers,
            given["meta_train.{family}"],
            given["meta_train.{method}"],
            budget=length,
            seed=given["seed"],
            device=device,
            **shape,
        )
        first = teachers[0].info
        info = LearnerInfo(
            architecture=run.architecture,
            n_way=n_way,
            image_size=first.image_size,
            mean=first.mean,
            std=first.std,
            method=method,
            iteration=0,
        )
        try:
            history = train(run, folder, info, length, saved=watch.save)
        finally:
            watch.save()
        tensors: dict[str, Tensor] = {}
        for i, (images, labels) in enumerate(run.synthetic()):
            tensors |= {f"teacher-{i:02d}.images": images, f"teacher-{i:02d}.labels": labels}
        with written_whole(out) as temporary:
            shutil.copytree(folder / "snapshots", temporary / "snapshots")
            save_table(temporary / "history.parquet", history)
            save_picture(temporary / "synthetic.png", run.synthetic(), teachers)
            save_tensors(
                temporary / "synthetic.safetensors",
                tensors,
                {"teachers": [asdict(teacher.info) for teacher in teachers]},
            )
        save_provenance(
            out.with_name(f"{out.name}.provenance.json"),
            watch.seconds,
            device,
            seed=given["seed"],
            iterations_per_second=round(length.n_iterations / watch.seconds, 2),
        )
    typer.echo(
        f"{out}: {length.n_iterations} iterations of {method} in {watch.seconds / 60:.1f} minutes"
    )
