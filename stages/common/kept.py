"""What a long preparation has made so far: an interrupted job finds it there when it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stages.common.files import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_BETWEEN_CHECKPOINTS = 60.0  # of a training

Tensors: TypeAlias = "dict[str, Tensor]"
Keep = Callable[[str, Callable[[], Tensors]], Tensors]  # a Kept, or what only makes


@dataclass(frozen=True)
class Kept:
    """Tensors by name, in the folder of a job's unfinished work (stages/interface/work.py)."""

    folder: Path
    saved: Callable[[], None] = lambda: None  # called after each, so that its minutes count

    def __call__(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of this name, made first if they are not there."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            save_tensors(path, make(), {})
            self.saved()
        return load_tensors(path)[0]

    def in_parts(self, name: str, make: Callable[[Kept], Tensors]) -> Tensors:
        """As above, of tensors that take long: `make` is given what keeps parts of them.

        The parts lie under name/ and are removed when the whole is there.
        """
        parts = Kept(self.folder / name, self.saved)
        whole = self(name, lambda: make(parts))
        shutil.rmtree(parts.folder, ignore_errors=True)
        return whole
