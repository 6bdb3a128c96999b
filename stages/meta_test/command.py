"""The command of the meta_test stage: snapshots -> accuracies on unseen few-shot tasks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from stages.interface import params
from stages.interface.errors import BadInput, refuses_bad_input

PARAMS = ("device", "n_query", "meta_test", "budgets.{budget}.meta_test")

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def meta_test(
    learner: Annotated[Path, typer.Option(help="A folder of meta_train.")],
    pool: Annotated[Path, typer.Option(help="The pool it was learned from.")],
    data: Annotated[Path, typer.Option(help="Canonical data set with the unseen classes.")],
    n_way: Annotated[int, typer.Option(min=2, help="Classes of an episode.")],
    n_shot: Annotated[int, typer.Option(min=1, help="Support images per class.")],
    budget: Annotated[str, typer.Option(help="A key of `budgets` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="The folder to write: episodes, selection.")],
    metrics: Annotated[Path, typer.Option(help="The JSON file to write: accuracies.")],
) -> None:
    """Choose a snapshot on meta-validation, judge it once on 600 fixed meta-test episodes."""
    given = params.read(PARAMS, budget=budget)
    import pandas as pd

    from stages.common.dataset import load_split
    from stages.common.files import save_json, save_table, written_whole
    from stages.common.learner import load_learner
    from stages.common.pool import load_pool
    from stages.interface.device import resolve
    from stages.interface.provenance import save_provenance
    from stages.meta_test import evaluate
    from stages.meta_test.episodes import fixed_indices

    device = resolve(given["device"])
    settings = given["meta_test"]
    start = time.monotonic()
    snapshots = sorted((learner / "snapshots").glob("*.safetensors"))
    if not snapshots:
        raise BadInput(f"{learner}: no snapshots/*.safetensors; run meta_train first")
    info = load_learner(snapshots[0])[2]
    if info.n_way != n_way:
        raise BadInput(f"n_way = {n_way}: the learner of {learner} has {info.n_way} outputs")
    val, test = load_split(data, "val"), load_split(data, "test")
    if (val.image_size, val.normalisation) != (info.image_size, info.normalisation):
        raise BadInput(
            f"{learner}: learned on {info.image_size}x{info.image_size} images normalised by"
            f" {info.mean}, {info.std}; {data} has {val.image_size}x{val.image_size}, normalised"
            f" by {val.normalisation.mean}, {val.normalisation.std}"
        )
    teachers = load_pool(pool, device)
    for teacher in teachers:
        if teacher.info.image_size != test.image_size:
            size = teacher.info.image_size
            raise BadInput(
                f"{pool}: {teacher.info.file} takes {size}x{size} images;"
                f" {data} has {test.image_size}x{test.image_size}"
            )
    shape = (n_way, n_shot, given["n_query"])
    n_val = given["budgets.{budget}.meta_test"].n_val_episodes
    try:
        val_indices = fixed_indices(val, "val", n_val, *shape)
        test_indices = fixed_indices(test, "test", settings.n_episodes, *shape)
    except ValueError as error:
        raise BadInput(f"{data}: {error}") from None

    selection = evaluate.select(snapshots, val, val_indices, settings, device)
    table = evaluate.judge_learner(snapshots, selection, test, test_indices, settings, device)
    table |= evaluate.judge_pool(teachers, test, test_indices, settings, device)

    content = evaluate.metrics(table, selection, settings.batch_norm)
    episodes = pd.DataFrame({name: accuracy.numpy() for name, accuracy in table.items()})
    episodes.insert(0, "episode", range(len(episodes)))
    for frame in (episodes, selection):
        frame["learner_batch_norm"] = settings.batch_norm
    with written_whole(out) as temporary:
        save_table(temporary / "episodes.parquet", episodes)
        save_table(temporary / "selection.parquet", selection)
        save_provenance(temporary / "provenance.json", time.monotonic() - start, device)
    save_json(metrics, content)
    for name, row in content.items():
        typer.echo(f"{name:20s} {row['accuracy']:6.2f} +- {row['ci95']:.2f} % {row['batch_norm']}")
