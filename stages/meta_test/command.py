"""The command of the meta_test stage: a learner, or a pool -> accuracies on unseen tasks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.interface import params
from stages.interface.errors import BadInput, refuses_bad_input

if TYPE_CHECKING:
    from stages.common.dataset import Split
    from stages.meta_test.adaptations import Model
    from stages.meta_test.evaluate import Row, Tasks

PARAMS = ("seed", "device", "n_query", "meta_test", "budgets.{budget}.meta_test")

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def meta_test(
    cell: Annotated[str, typer.Argument(help="The cell's key in stages/grid.yaml.")],
    pool: Annotated[Path, typer.Option(help="The pool.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Data set with the unseen classes; twice: a pair; or one of pseudo."),
    ],
    n_way: Annotated[int, typer.Option(min=2, help="Classes of an episode.")],
    n_shot: Annotated[int, typer.Option(min=1, help="Support images per class.")],
    budget: Annotated[str, typer.Option(help="A key of `budgets` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="The folder to write: episodes, pictures.")],
    metrics: Annotated[Path, typer.Option(help="The cell's file to write (JSON).")],
    learner: Annotated[
        Path | None, typer.Option(help="A folder of meta_train; without it the pool is judged.")
    ] = None,
) -> None:
    """Choose a snapshot on meta-validation, judge it once on 600 fixed meta-test episodes."""
    given = params.read(PARAMS, budget=budget)
    from stages.common.dataset import load_splits
    from stages.common.files import check_place, load_table, written_whole
    from stages.common.pool import load_pool
    from stages.interface.device import prepared
    from stages.interface.provenance import Stopwatch, save_provenance
    from stages.interface.work import work_folder
    from stages.meta_test import evaluate
    from stages.meta_test.cell import parts_of, runs_before, save_cell, save_episodes
    from stages.meta_test.similarity import check_pool_of, similarity

    device = prepared(given["device"])
    settings = given["meta_test"]
    shape = (n_way, n_shot, given["n_query"])
    # What is wrong is refused before minutes of evaluation.
    named = parts_of(cell, n_way, n_shot)
    method = named["method"]
    models = evaluate.load_snapshots(learner, device) if learner else []
    _check_learner(models, learner, cell, method, n_way)
    teachers = load_pool(pool, device)
    made = runs_before(pool, learner, cell, given["seed"], budget)
    synthetic = learner / "synthetic.safetensors" if learner else None
    if learner:
        load_table(learner / "history.parquet")
    if synthetic and synthetic.exists():
        check_pool_of(synthetic, teachers)
    check_place(metrics)

    job = [given, device, cell, n_way, n_shot, budget, data]
    with work_folder("meta_test", job, [], out, "evaluation") as folder:
        watch = Stopwatch(folder)
        test = _tasks(data, "test", settings.n_episodes, shape)
        _check_data(test, data[0], cell, named["dataset"])
        content: dict[str, Any] = {"selection": [], "curve": [], "similarity": None}
        rows: dict[str, Row]
        if learner is None:
            rows = evaluate.judge_pool(teachers, test, settings, device)
        else:
            n_val_episodes = given["budgets.{budget}.meta_test"].n_val_episodes
            val = _tasks(data, "val", n_val_episodes, shape)
            selection = evaluate.select(models, val, settings, device)
            rows = evaluate.judge_learner(models, selection, val, test, settings, device)
            content |= {
                "selection": selection,
                "curve": evaluate.curve(models, test, settings, device),
            }
            if synthetic and synthetic.exists():
                train = load_splits(data, "train")
                content["similarity"] = similarity(synthetic, teachers, train, settings)
        # In a list, since DVC would call a hundred numbers metrics.
        content["class_accuracy"] = [evaluate.class_accuracies(rows, test)]
        with written_whole(out, "evaluation") as temporary:
            save_episodes(temporary / "episodes.parquet", rows, test)
            if learner is not None and (learner / "synthetic.png").exists():
                shutil.copy(learner / "synthetic.png", temporary)
            save_provenance(
                temporary / "provenance.json",
                watch.seconds,
                device,
                watch.origin,
                params=params.by_key(given, budget=budget),
            )
        save_cell(
            metrics,
            cell,
            rows,
            test,
            content,
            n_shot=n_shot,
            n_way=n_way,
            n_query=given["n_query"],
            seed=given["seed"],
            budget=budget,
            made=made,
            learner=learner,
            evaluation=out,
        )
    for name, row in rows.items():
        found = row.summary()
        typer.echo(f"{name:22s} {found['accuracy']:6.2f} +- {found['ci95']:.2f} % {row.protocol}")


def _check_learner(
    models: Sequence[Model], learner: Path | None, cell: str, method: str, n_way: int
) -> None:
    """Refuse a learner that is not the cell's; the cell of method `pool` has none."""
    if not models:
        if method != "pool":
            raise BadInput(f"{cell}: method {method}: needs --learner; without one allowed: pool")
        return
    info = models[0].info
    if info.method != method:
        raise BadInput(f"{cell}: method {method}: the learner of {learner} is of {info.method}")
    if info.n_way != n_way:
        raise BadInput(f"n_way = {n_way}: the learner of {learner} has {info.n_way} outputs")


def _check_data(test: Tasks, path: Path, cell: str, dataset: str) -> None:
    """Refuse images that are not of the cell's data set: its file would say otherwise."""
    found = test.data[0].dataset
    if found != dataset:
        raise BadInput(f"{cell}: data set {dataset}: {path} is of {found}; allowed: {dataset}")


def _tasks(
    paths: Sequence[Path], split: Split, n_episodes: int, shape: tuple[int, int, int]
) -> Tasks:
    """Raises BadInput if a split has too few classes or images."""
    from stages.common.dataset import load_splits
    from stages.meta_test.episodes import fixed_tasks
    from stages.meta_test.evaluate import Tasks

    data = load_splits(paths, split)
    try:
        return Tasks(data, fixed_tasks(data, split, n_episodes, *shape))
    except ValueError as error:
        names = ", ".join(part.dataset for part in data)
        raise BadInput(f"{names}: meta-{split}: {error}") from None
