from __future__ import annotations

import pytest

from stages.interface.device import resolve
from stages.interface.errors import BadInput


@pytest.mark.parametrize("name", ["cuda:99", "cuda:x", "cuda:-1", "gpu", "mps", "cpu:1"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=rf"device = '{name}': .* allowed: auto, cpu"):
        resolve(name)


def test_the_cpu_is_always_there() -> None:
    assert resolve("cpu") == "cpu"
    assert resolve("auto") in ("cpu", "cuda")
