"""What the paper leaves open in ICFIL (METHODS 1.4), decided on meta-validation.

    python benchmarks/icfil_choices.py models/learners/<cell> data/<data set>.safetensors

Takes the snapshot that 50 meta-validation episodes choose for one-step adaptation, then changes
one choice at a time from params.yaml's values. Only meta-validation classes are read. Prints a
Markdown table.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from stages.aggregate.results import interval
from stages.common.dataset import load_split
from stages.interface import params
from stages.interface.device import prepared
from stages.meta_test.adaptations import ADAPTATIONS
from stages.meta_test.episodes import fixed_tasks, right
from stages.meta_test.evaluate import Tasks, chosen, load_snapshots, select

N_EPISODES = 200
CHANGES: list[dict[str, object]] = [
    {},
    {"calibration_lr": 1e-12},  # as good as no calibration: the fresh head alone
    {"calibration_lr": 1e-4},
    {"calibration_lr": 1e-2},
    {"bn_reference": "none"},
    {"inversion_steps": 1},
    {"inversion_steps": 20},
    {"pseudo_per_class": 20},
]


def main(learner_folder: Path, data_file: Path) -> None:
    given = params.load()
    device = prepared(given.device)
    n_shot = int(re.search(r"(\d+)shot", learner_folder.name)[1])  # type: ignore[index]
    data = load_split(data_file, "val")
    models = load_snapshots(learner_folder, device)
    shape = (models[0].info.n_way, n_shot, given.n_query)
    chooser = Tasks([data], fixed_tasks([data], "val", 50, *shape))
    best = models[chosen(select(models, chooser, given.meta_test, device), "one_step")]
    tasks = Tasks([data], fixed_tasks([data], "val", N_EPISODES, *shape))
    print(
        f"{learner_folder.name}, iteration {best.info.iteration}, {N_EPISODES} meta-val episodes\n"
    )
    print("| adaptation | choice | accuracy | minus params.yaml's (paired) |")
    print("| --- | --- | ---: | ---: |")
    base = None
    others: list[tuple[str, dict[str, object]]] = [("one_step", {}), ("nearest_class_mean", {})]
    for name, change in [*(("icfil", c) for c in CHANGES), *others]:
        icfil = given.meta_test.icfil.model_copy(update=change)
        settings = given.meta_test.model_copy(update={"icfil": icfil})
        predicted = ADAPTATIONS[name].predict(
            best, tasks.seen_by(best, device), settings, lambda done: None
        )
        accuracy = 100 * right(predicted, tasks.tasks).double().mean(1).numpy()
        base = accuracy if base is None else base
        choice = ", ".join(f"{k} = {v}" for k, v in change.items()) or "params.yaml"
        print(
            f"| {name} | {choice} | {accuracy.mean():.2f} ± {interval(accuracy):.2f}"
            f" | {(accuracy - base).mean():+.2f} ± {interval(accuracy - base):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
