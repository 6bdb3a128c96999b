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

from ruamel.yaml import YAML

from stages.common.files import load_json, save_json

# What training saw of data. Whatever does not begin with "none" is data-based.
NO_DATA = "none"
IMAGE_PRIOR = "none, but a hand-made image prior (procedural images)"
# Keys of params.yaml that name a cell, which its command says anyway, or that change no number.
SELECTION = frozenset(
    ("scenario", "dataset", "n_way", "n_shot", "method", "adaptation", "budget", "seed", "device")
)


class Stopwatch:
    """Seconds of work on a job, over all its interruptions: kept in the job's folder.

    `origin`: of its last start. Where inputs or code differ, a job is another one (work.py).
    """

    def __init__(self, folder: Path) -> None:
        self.origin = origin()
        self._path = folder / "seconds.json"
        self._before = json.loads(self._path.read_text()) if self._path.exists() else 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def save(self) -> None:
        save_json(self._path, self.seconds)


def provenance_of(folder: Path) -> Path:
    """Where the provenance of a pool or learner stands: beside its folder, which others hash."""
    return folder.with_name(f"{folder.name}.provenance.json")


def runs_behind(folder: Path) -> list[dict[str, Any]]:
    """The run that made a learner, after those of the learners that it started from, first first.

    Raises BadInput if no provenance stands beside the folder.
    """
    runs: list[dict[str, Any]] = [load_json(provenance_of(folder))]
    while before := runs[0].pop("start", None):
        runs.insert(0, before)
    return runs


def origin() -> dict[str, Any]:
    """What a run is made from; to be taken when it starts, since both may change while it works."""
    return {"commit": commit(), "changed_params": changed_params()}


def save_provenance(
    path: Path, seconds: float, device: str, begun: dict[str, Any], **more: Any
) -> None:
    """Write the provenance of one stage's outputs: time and place, which differ each run.

    `begun`: the `origin` of the run.
    """
    import torch

    content = {
        **begun,
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


def changed_params() -> dict[str, Any]:
    """Values of params.yaml that differ from its last commit, by dotted key, but the selection.

    Empty where params.yaml is in no git repository: then the commit says nothing either.
    """
    try:
        committed = _git(Path(), "show", "HEAD:./params.yaml")
        present = Path("params.yaml").read_text()
    except (OSError, subprocess.CalledProcessError):
        return {}
    yaml = YAML(typ="safe")
    before, now = flat(yaml.load(committed)), flat(yaml.load(present))
    return {
        key: value
        for key, value in now.items()
        if key not in SELECTION and (key not in before or before[key] != value)
    }


def flat(section: Any, name: str = "") -> dict[str, Any]:
    """The values of a section of params.yaml by dotted key, which begins with the section's."""
    if not isinstance(section, dict):
        return {name: section}
    parts = [flat(value, f"{name}.{key}" if name else key) for key, value in section.items()]
    return {key: value for part in parts for key, value in part.items()}


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
