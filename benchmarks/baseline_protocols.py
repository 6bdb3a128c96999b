"""How much of a baseline's accuracy is its adaptation: inner steps, their rate, BatchNorm mode.

    python benchmarks/baseline_protocols.py data/<data set>.safetensors LEARNER_FOLDER ...

Networks that were never trained to adapt (Random, Average, OTA, DRO), 5-shot, on 100 episodes of
the meta-validation classes; no others are read, and nothing is chosen. Prints a Markdown table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stages.aggregate.results import interval
from stages.common.dataset import load_split
from stages.interface import params
from stages.meta_test.adaptations import ADAPTATIONS
from stages.meta_test.episodes import fixed_tasks, right
from stages.meta_test.evaluate import Tasks, load_snapshots

N_EPISODES, N_SHOT = 100, 5
PROTOCOLS = [(1, 0.01), (10, 0.01), (1, 0.1), (10, 0.1)]  # steps, rate
MODES = ("transductive", "inductive")


def main(data_file: Path, folders: list[Path]) -> None:
    """The learners of `folders` have one number of ways, the first's."""
    given = params.load()
    data = load_split(data_file, "val")
    models = [load_snapshots(folder, "cpu")[-1] for folder in folders]
    n_way = models[0].info.n_way
    tasks = Tasks([data], fixed_tasks([data], "val", N_EPISODES, n_way, N_SHOT, given.n_query))
    names = [folder.name.rpartition("-")[2] for folder in folders]
    print(f"{data.dataset}, {n_way}-way {N_SHOT}-shot, {N_EPISODES} meta-val episodes\n")
    print(f"| steps | rate | BatchNorm | {' | '.join(names)} |")
    print(f"| ---: | ---: | --- |{' ---: |' * len(names)}")
    for mode in MODES:
        for steps, rate in PROTOCOLS:
            one_step = {"inner_steps": steps, "inner_lr": rate}
            step = given.meta_test.one_step.model_copy(update=one_step)
            protocol = given.meta_test.model_copy(update={"one_step": step, "batch_norm": mode})
            words = []
            for model in models:
                found = ADAPTATIONS["one_step"].predict(
                    model, tasks.seen_by(model, "cpu"), protocol, lambda done: None
                )
                accuracy = 100 * right(found, tasks.tasks).double().mean(1).numpy()
                words.append(f"{accuracy.mean():.1f} ± {interval(accuracy):.1f}")
            print(f"| {steps} | {rate} | {mode} | {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
