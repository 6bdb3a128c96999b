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

import torch

from stages.common.dataset import load_split
from stages.common.learner import load_learner
from stages.interface import params
from stages.interface.device import resolve
from stages.meta_test.adaptations import ADAPTATIONS
from stages.meta_test.episodes import RealEpisodes, accuracies, fixed_indices
from stages.meta_test.evaluate import select, summary

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
    device = resolve(given.device)
    n_shot = int(re.search(r"(\d+)shot", learner_folder.name)[1])  # type: ignore[index]
    data = load_split(data_file, "val")
    snapshots = sorted((learner_folder / "snapshots").glob("*.safetensors"))
    n_way = load_learner(snapshots[0])[2].n_way
    shape = (n_way, n_shot, given.n_query)
    chooser = fixed_indices(data, "val", 50, *shape)
    best = select(snapshots, data, chooser, given.meta_test, device)["one_step"].argmax()
    learner, theta, info = load_learner(snapshots[best], device)
    indices = fixed_indices(data, "val", N_EPISODES, *shape)
    episodes = RealEpisodes(data, indices, device)
    labels = torch.arange(n_way, device=device).repeat_interleave(given.n_query)
    print(f"{learner_folder.name}, iteration {info.iteration}, {N_EPISODES} meta-val episodes\n")
    print("| adaptation | choice | accuracy | minus params.yaml's (paired) |")
    print("| --- | --- | ---: | ---: |")
    base = None
    others: list[tuple[str, dict[str, object]]] = [("one_step", {}), ("nearest_class_mean", {})]
    for name, change in [*(("icfil", c) for c in CHANGES), *others]:
        icfil = given.meta_test.icfil.model_copy(update=change)
        settings = given.meta_test.model_copy(update={"icfil": icfil})
        predicted = ADAPTATIONS[name].predict(learner, theta, episodes, settings, lambda done: None)
        accuracy = accuracies(predicted, labels).cpu()
        base = accuracy if base is None else base
        own, paired = summary(accuracy), summary(accuracy - base)
        choice = ", ".join(f"{k} = {v}" for k, v in change.items()) or "params.yaml"
        print(
            f"| {name} | {choice} | {own['accuracy']:.2f} ± {own['ci95']:.2f}"
            f" | {paired['accuracy']:+.2f} ± {paired['ci95']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
