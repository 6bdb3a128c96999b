"""The loop around any method: steps, snapshots, history, and going on after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from stages.common.files import load_tensors, save_tensors
from stages.common.learner import LearnerInfo, save_learner
from stages.interface.interrupt import deferred_interrupts
from stages.interface.progress import Reporter
from stages.meta_train.methods import Records, Run
from stages.meta_train.params import MetaTrainBudget

SECONDS_BETWEEN_CHECKPOINTS = 60.0


def snapshot_iterations(n_iterations: int, n_snapshots: int) -> list[int]:
    """After which iterations (counted from 1) the learner is kept; the last is always one."""
    count = min(n_snapshots, n_iterations)
    return [round(n_iterations * (i + 1) / count) for i in range(count)]


def meta_train(
    run: Run,
    folder: Path,
    info: LearnerInfo,
    budget: MetaTrainBudget,
    saved: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Step `run` to the end of its budget; the history, one row an iteration.

    Snapshots go to `folder/snapshots`. A checkpoint every minute, and on Ctrl-C, holds the run's
    state and the history so far; called again, the loop goes on from it. `saved` is called after
    each checkpoint.
    """
    checkpoint = folder / "checkpoint.safetensors"
    records: Records = {}
    done = 0
    if checkpoint.exists():
        done, records = _load_checkpoint(checkpoint, run)
    keep = set(snapshot_iterations(budget.n_iterations, budget.n_snapshots))
    saved_at = time.monotonic()
    with (
        deferred_interrupts() as interruption,
        Reporter("meta_train", budget.n_iterations, done) as report,
    ):
        while done < budget.n_iterations:
            record = run.step(done)
            done += 1
            for name, value in record.items():
                records.setdefault(name, []).append(value)
            if done in keep:
                path = folder / "snapshots" / f"iteration-{done:06d}.safetensors"
                save_learner(path, run.snapshot(), replace(info, iteration=done))
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
