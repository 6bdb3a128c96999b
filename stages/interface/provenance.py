"""Where a number comes from: commit, hardware, versions, minutes (DESIGN 7: airbench)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.common.files import save_json

# What training saw of data. Whatever does not begin with "none" is data-based.
NO_DATA = "none"
IMAGE_PRIOR = "none, but a hand-made image prior (procedural images)"


class Stopwatch:
    """Seconds of work on a job, over all its interruptions: kept in the job's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "seconds.json"
        self._before = json.loads(self._path.read_text()) if self._path.exists() else 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def save(self) -> None:
        save_json(self._path, self.seconds)


def save_provenance(path: Path, seconds: float, device: str, **more: Any) -> None:
    """Write the provenance of one stage's outputs: time and place, which differ each run."""
    import torch

    content = {
        "commit": commit(),
        "minutes": round(seconds / 60, 2),
        "device": device,
        "hardware": torch.cuda.get_device_name(device) if "cuda" in device else processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "safetensors", "numpy")}
        | {"python": platform.python_version()},
        **more,
    }
    save_json(path, content)


def commit() -> str:
    """Commit of the code, with '+changes' if files of `stages/` differ from it."""
    root = Path(__file__).parents[2]
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        changes = _git(
            root, "status", "--porcelain", "--", ":(glob)stages/**", ":(exclude)stages/dvc.lock"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changes else "")


def processor() -> str:
    """Model and number of cores, e.g. 'AMD EPYC, 2 cores'."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
