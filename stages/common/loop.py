"""The loop around any meta-training: steps, snapshots, history, going on after an interruption.

A method of meta_train or data_based starts a `Run`; `meta_train` steps it, keeps its snapshots and
history, and resumes it. The loop knows no method.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from stages.common.distilled import DistilledForm
from stages.common.files import load_tensors, save_tensors
from stages.common.kept import SECONDS_BETWEEN_CHECKPOINTS
from stages.common.learner import LearnerInfo, save_learner
from stages.interface.interrupt import deferred_interrupts
from stages.interface.progress import Reporter

Records = dict[str, list[float]]  # the history so far, by column


class Run(Protocol):
    """A meta-training run between two iterations."""

    @property
    def architecture(self) -> str:
        """Of the learner."""

    @property
    def meta_learner(self) -> str:
        """How it learns to adapt (stages/common/meta_learners.py); "none": it does not,
        "distilled": its features are made for it."""

    @property
    def distilled(self) -> DistilledForm | None:
        """The form of a distilled learner's network; None for every other."""

    def step(self, t: int) -> dict[str, float]:
        """Iteration t, from 0; what the history records of it, the same names every time."""

    def progress(self, records: Records) -> dict[str, float | str]:
        """What the line of progress says."""

    def snapshot(self) -> dict[str, Tensor]:
        """The learner's parameters."""

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        """Images (n_i, 3, h_i, w_i) grouped by label, and labels (n_i,), of every teacher used.

        Empty for a method that has no synthetic images.
        """

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a `state`."""


@dataclass(frozen=True)
class Fixed:
    """A `Run` of no iterations: a learner that is there from the start (Random, Average, OTA)."""

    architecture: str
    theta: dict[str, Tensor]
    meta_learner: str = "none"
    distilled: DistilledForm | None = None

    def step(self, t: int) -> dict[str, float]:
        raise AssertionError("a learner that is fixed is not trained")

    def progress(self, records: Records) -> dict[str, float | str]:
        return {}

    def snapshot(self) -> dict[str, Tensor]:
        return self.theta

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        return []

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        pass


def recent(records: Records, name: str) -> float:
    """Mean of a column over the last twenty iterations, for the line of progress."""
    return sum(records[name][-20:]) / len(records[name][-20:])


def snapshot_iterations(n_iterations: int, n_snapshots: int) -> list[int]:
    """After which iterations (counted from 1) the learner is kept; the last is always one.

    A learner that is not trained is kept as it is: after 0 iterations.
    """
    if n_iterations == 0:
        return [0]
    count = min(n_snapshots, n_iterations)
    return [round(n_iterations * (i + 1) / count) for i in range(count)]


def meta_train(
    run: Run,
    folder: Path,
    info: LearnerInfo,
    n_iterations: int,
    n_snapshots: int,
    saved: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Step `run` `n_iterations` times; the history, one row an iteration.

    Snapshots go to `folder/snapshots`. A checkpoint every minute, and on Ctrl-C, holds the run's
    state and the history so far; called again, the loop goes on from it. `saved` is called after
    each checkpoint.
    """
    checkpoint = folder / "checkpoint.safetensors"
    records: Records = {}
    done = 0
    if checkpoint.exists():
        done, records = _load_checkpoint(checkpoint, run)
    keep = set(snapshot_iterations(n_iterations, n_snapshots))
    saved_at = time.monotonic()

    def keep_snapshot() -> None:
        path = folder / "snapshots" / f"iteration-{done:06d}.safetensors"
        save_learner(path, run.snapshot(), replace(info, iteration=done))

    if n_iterations == 0:
        keep_snapshot()
    with (
        deferred_interrupts() as interruption,
        Reporter("meta_train", n_iterations, done) as report,
    ):
        while done < n_iterations:
            record = run.step(done)
            done += 1
            for name, value in record.items():
                records.setdefault(name, []).append(value)
            if done in keep:
                keep_snapshot()
            due = time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
            if due or interruption.requested:
                _save_checkpoint(checkpoint, run, done, records)
                saved()
                saved_at = time.monotonic()
            if interruption.requested:
                raise KeyboardInterrupt
            report(done, **run.progress(records))
    return pd.DataFrame({"iteration": range(1, done + 1), **records})


def _save_checkpoint(path: Path, run: Run, done: int, records: Records) -> None:
    history = torch.tensor(list(records.values()), dtype=torch.float64)
    save_tensors(
        path, {**run.state(), "history": history}, {"done": done, "columns": list(records)}
    )


def _load_checkpoint(path: Path, run: Run) -> tuple[int, Records]:
    tensors, metadata = load_tensors(path)
    history = tensors.pop("history").tolist()
    run.load_state(tensors)
    return metadata["done"], dict(zip(metadata["columns"], history, strict=True))
