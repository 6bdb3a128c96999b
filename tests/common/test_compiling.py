from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.common import compiling


def test_every_form_of_a_function_is_compiled_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    wrap = compiling.compiler("always", 1, "cpu")
    compiled.clear()  # the probe's

    def of_form(n: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x * n + torch.ones(n)

    for n in range(2, 14):
        assert wrap(of_form(n))(torch.ones(n)).tolist() == [n + 1] * n
    assert len(compiled) == 12
