"""One resumable job of meta-training: from a method's `Run` to the learner's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.common.dataset import View
from stages.common.files import save_table, written_whole
from stages.common.kept import Kept
from stages.common.learner import LearnerInfo
from stages.common.loop import Run, meta_train
from stages.interface.provenance import Stopwatch, provenance_of, save_provenance
from stages.interface.work import work_folder


def train_and_save(
    stage: str,
    method: str,
    start: Callable[[Kept], Run],
    out: Path,
    *,
    inputs: Any,
    files: list[Path],
    view: View,
    n_way: int,
    n_iterations: int,
    n_snapshots: int,
    seed: int,
    device: str,
    data_used: str,
    params: dict[str, Any],
    class_names: tuple[tuple[str, ...], ...] = (),
    remarks: Sequence[str] = (),
    continued: Any = None,
    also: Callable[[Path, Run], None] = lambda folder, run: None,
) -> float:
    """Start or resume the run, step it to its end, write `out` whole; minutes it took.

    `out/`: snapshots/, history.parquet, and what `also(folder, run)` adds; beside it
    `<out>.provenance.json`. `data_used`: in words, for the tables. `params`: by dotted key, for
    the provenance. `class_names`: of each teacher that the learner learns from. `remarks`: what
    tables should say of the run besides. `continued`: the provenance of the learner that this one
    starts from. `inputs` and `files` are all that decides the result: they name the folder of
    unfinished work, in which `start(kept)` may keep its preparations.
    """
    with work_folder(stage, [inputs, method, n_way, device], files, out, "learner") as folder:
        watch = Stopwatch(folder)
        try:
            run = start(Kept(folder, watch.save))
        finally:
            watch.save()
        info = LearnerInfo(
            architecture=run.architecture,
            n_way=n_way,
            image_size=view.image_size,
            mean=view.normalisation.mean,
            std=view.normalisation.std,
            method=method,
            meta_learner=run.meta_learner,
            iteration=0,
            distilled=run.distilled,
            class_names=class_names,
        )
        try:
            history = meta_train(run, folder, info, n_iterations, n_snapshots, saved=watch.save)
        finally:
            watch.save()
        with written_whole(out, "learner") as temporary:
            shutil.copytree(folder / "snapshots", temporary / "snapshots")
            save_table(temporary / "history.parquet", history)
            also(temporary, run)
        save_provenance(
            provenance_of(out),
            watch.seconds,
            device,
            watch.origin,
            seed=seed,
            stage=stage,
            iterations=n_iterations,
            data_used=data_used,
            params=params,
            remarks=list(remarks),
            start=continued,
        )
        return watch.seconds / 60
