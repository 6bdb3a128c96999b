"""`purer`: every stage's command under one name, in pipeline order."""

from __future__ import annotations

import typer

from stages import check
from stages.aggregate import command as aggregate
from stages.data_based import command as data_based
from stages.meta_test import command as meta_test
from stages.meta_train import command as meta_train
from stages.pool import command as pool
from stages.pretrain import command as pretrain
from stages.split import command as split
from stages.use import command as use

app = typer.Typer(
    help="Data-free meta-learning: a pool of classifiers in, a few-shot learner out.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("check")(check.check)
app.command("split")(split.split)
app.command("pretrain")(pretrain.pretrain)
app.command("meta_train")(meta_train.meta_train)
app.command("data_based")(data_based.data_based)
app.command("meta_test")(meta_test.meta_test)
app.command("report")(aggregate.report)
app.command("export")(use.export)
app.command("adapt")(use.adapt)
app.command("embed")(use.embed)
app.add_typer(pool.app, name="pool", help="Bring your own classifiers.")
app.add_typer(aggregate.app, name="aggregate", help="Evaluated cells -> tables, figures, metrics.")
