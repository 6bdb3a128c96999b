"""torch.compile where it pays and works.

Measured on two cores (benchmarks/speed.py): inversion takes half the time, a whole iteration 0.59
of it, after some thirty seconds of compilation. On the CPU it needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")

MOST = 256  # compilations of one function; as many as PyTorch allows in all
WORTH_IT = 1000  # calls of a compiled function from which its compilation pays for itself


def compiler(wish: str, n_calls: int, device: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`torch.compile` or the identity, for `wish` in auto, never, always.

    `n_calls`: how often the whole run will call the function. So the answer depends on the run's
    length and the machine, not on how much is left: a resumed run computes what an uninterrupted
    one does.
    """
    if wish == "never" or (wish == "auto" and n_calls < WORTH_IT):
        return lambda function: function
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:  # whatever the tool chain raises, the run can go on without it
        if wish == "always":
            raise
        Console(stderr=True).print(
            f"torch.compile does not work here ({type(error).__name__}); going on without it,"
            " more slowly. On the CPU it needs a C++ compiler (Debian: g++).",
            markup=False,
        )
        return lambda function: function
    # Every form of teacher and batch compiles the same lines once more. Beyond PyTorch's limit of 8
    # the others would run eagerly: more slowly, and other ones in a resumed run.
    torch._dynamo.config.recompile_limit = MOST
    # Static shapes: one compilation per shape of a batch, each faster than a dynamic one.
    return lambda function: torch.compile(function, dynamic=False)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
