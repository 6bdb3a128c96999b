"""`purer`: every stage's command under one name, in pipeline order."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

# Name: module and its function, or its group of commands.
COMMANDS = {
    "check": "stages.check:check",
    "split": "stages.split.command:split",
    "pretrain": "stages.pretrain.command:pretrain",
    "meta_train": "stages.meta_train.command:meta_train",
    "data_based": "stages.data_based.command:data_based",
    "pseudo": "stages.pseudo.command:pseudo",
    "meta_test": "stages.meta_test.command:meta_test",
    "report": "stages.aggregate.command:report",
    "export": "stages.use.command:export",
    "adapt": "stages.use.command:adapt",
    "embed": "stages.use.command:embed",
    "pool": "stages.pool.command:app",
    "aggregate": "stages.aggregate.command:app",
}
HELP = {
    "pool": "Bring your own classifiers.",
    "aggregate": "Evaluated cells -> tables, figures, metrics.",
}


class Stages(TyperGroup):
    """Imports a command's module when it is asked for, so `purer adapt` waits for no other's."""

    # Any: some versions of typer depend on click, others hold a copy of it.
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            self.commands: Any = COMMANDS  # among whose names Typer looks for the nearest
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(cmd_name)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = cmd_name
        command.help = HELP.get(cmd_name, command.help)
        return command


app = typer.Typer(cls=Stages, no_args_is_help=True, add_completion=False)


@app.callback()
def purer() -> None:
    """Data-free meta-learning: a pool of classifiers in, a few-shot learner out."""
