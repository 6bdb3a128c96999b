"""Does a change of a distilled learner hold on classes that it was not chosen with?

    python benchmarks/other_classes.py data/<own>.safetensors data/<other>.safetensors FOLDER ...

Nearest class mean of distilled learners, with and without their metric, 5-way, 1,000 episodes of
each of two sets of classes: the meta-validation classes of the learners' own data set, and the
meta-train and meta-validation classes of a data set that no teacher of theirs has seen, at the
learners' size. No meta-test class of either is read, but classes go by name: what the other data
set calls its own may be alike to an unseen class of the first. Intervals over episodes say nothing
of which classes were drawn, so judge a change by both. Prints a Markdown table; differences are to
the first row, paired.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from readout_choices import N_QUERY, N_WAY, compared, reader
from torch import Tensor

from stages.common.dataset import ClassImages, load_split
from stages.common.learner import load_learner, snapshots
from stages.meta_test.episodes import fixed_tasks

N_EPISODES = 1000


def others(path: Path) -> ClassImages:
    """The meta-train and meta-validation classes of a data set as one."""
    train, val = load_split(path, "train"), load_split(path, "val")
    return replace(
        train,
        class_ids=train.class_ids + val.class_ids,
        class_names=train.class_names + val.class_names,
        images=train.images + val.images,
    )


def main(own: Path, other: Path, folders: list[Path]) -> None:
    print("| classes | learner | metric | 1-shot | minus the first | 5-shot | minus the first |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for data in (load_split(own, "val"), others(other)):
        tasks = {n: fixed_tasks([data], "val", N_EPISODES, N_WAY, n, N_QUERY) for n in (1, 5)}
        base: dict[int, Tensor] = {}
        for folder in folders:
            _, theta, info = load_learner(snapshots(folder)[-1])
            if info.distilled is None:
                sys.exit(f"{folder}: a learner of method {info.method}; allowed is a distilled one")
            for metric in (True, False) if info.distilled.n_directions else (False,):
                read = reader(info, theta, info.distilled.readout, metric=metric)
                classes = [read(info.view.of(images)) for images in data.images]
                which = f"{len(classes)} of {data.dataset} | {folder} | {'yes' if metric else 'no'}"
                print(f"| {which} | {compared(classes, tasks, base)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
