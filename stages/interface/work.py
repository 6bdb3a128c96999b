"""Unfinished work survives: one folder a job, named by everything that decides its result.

`.work/<stage>-<fingerprint>/` lies under the project's root (DVC_ROOT), is ignored by git and DVC,
and is removed when the job's outputs are in place. An exclusive lock keeps two processes off one
job: a killed DVC leaves its training child running.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.common.files import check_place, remove_half_written
from stages.interface.errors import BadInput

CODE = Path(__file__).parents[1]


def fingerprint(stage: str, inputs: Any, files: list[Path]) -> str:
    """Hex digest of the stage's name, its inputs, its input files and the code that it runs."""
    digest = hashlib.sha256()
    digest.update(json.dumps([stage, inputs], sort_keys=True, default=_plain).encode())
    code = [p for folder in (CODE / stage, CODE / "common") for p in sorted(folder.rglob("*.py"))]
    for path in [*code, *files]:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def work_folder(stage: str, inputs: Any, files: list[Path], out: Path, kind: str) -> Iterator[Path]:
    """The job's folder; removed when the block ends without an error.

    Locked twice: by job, and by `out`, lest two jobs of different parameters write one place.

    Raises BadInput if another process works on the same job or output, and, before hours of work,
    if what stands at `out` may not be replaced by a folder of that `kind` (stages/common/files.py).
    """
    check_place(out, kind)
    root = Path(os.environ.get("DVC_ROOT", ".")) / ".work"
    folder = root / f"{stage}-{fingerprint(stage, inputs, files)}"
    place = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    with _locked(root / "locks" / place, out), _locked(root / "locks" / folder.name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for half_written in folder.rglob(".*.tmp"):  # of a process that was killed while writing
            half_written.unlink()
        remove_half_written(out)
        yield folder
        shutil.rmtree(folder)


@contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system gives it back however the process ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{what}: another process works on it; wait for it or stop it"
                " (ps aux | grep stages.)"
            ) from None
        yield


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    return str(value)
