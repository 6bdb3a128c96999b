"""Unfinished work survives: one folder a job, named by everything that decides its result.

`.work/<fingerprint>/` lies under the project's root (DVC_ROOT), is ignored by git and DVC, and is
removed when the job's outputs are in place. An exclusive lock keeps two processes off one job: a
killed DVC leaves its training child running.
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
def work_folder(stage: str, inputs: Any, files: list[Path]) -> Iterator[Path]:
    """The job's folder, locked; removed when the block ends without an error.

    Raises BadInput if another process works on the same job.
    """
    root = Path(os.environ.get("DVC_ROOT", "."))
    folder = root / ".work" / f"{stage}-{fingerprint(stage, inputs, files)}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{folder}: another process works on this job; wait for it or stop it"
                f" (ps aux | grep stages.{stage})"
            ) from None
        yield folder
        shutil.rmtree(folder)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    return str(value)
