"""Bad input ends in one clear message and exit code 2."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")


class BadInput(Exception):
    """Something the user gave cannot be used; the message names it, its value, what is allowed."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """' (did you mean "x"?)' for a near miss, else an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def first_of(names: Iterable[str], most: int) -> str:
    """'a, b, ...': the first so many names, for a message or a table."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def check_name(what: str, name: str, allowed: Iterable[str]) -> None:
    """Raise BadInput, with what is allowed and the nearest, unless `name` is among them."""
    names = list(allowed)
    if name not in names:
        near = did_you_mean(name, names)
        raise BadInput(f"{what} = {name!r}: allowed: {', '.join(names)}{near}")


def refuses_bad_input(command: Callable[P, R]) -> Callable[P, R]:
    """Turn `BadInput` into its message on standard error and exit code 2, Ctrl-C into 130.

    Also what the system refuses (OSError): a place that cannot be read or written, a full disk.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # `| head` has seen enough: no error
            raise
        except (BadInput, OSError) as error:
            console.print("error:", style="bold red", end=" ")
            console.print(_words(error), markup=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print("interrupted; repeat the command to go on", style="yellow")
            raise typer.Exit(130) from None

    return wrapped


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
