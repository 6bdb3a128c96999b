"""How fast the engine is: ratios of alternated runs, medians. Run it on an idle machine.

    python benchmarks/speed.py

The paper's 5-shot CIFAR-FS setting: 13 Conv4 teachers of 5 classes, 20 images a class, 4 episodes.
Teachers have random weights: the time does not depend on them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stages.common.architectures import build
from stages.common.pool import Teacher, TeacherInfo, load_pool, save_manifest, save_teacher
from stages.common.seeds import generator
from stages.interface import params
from stages.interface.device import prepared
from stages.meta_train.episode_inversion import EpisodeInversionRun
from stages.meta_train.methods import Setting

ROUNDS = 15


def make_pool(device: str) -> list[Teacher]:
    with tempfile.TemporaryDirectory() as name:
        folder, infos = Path(name), []
        for i in range(13):
            classes = tuple(range(5 * i, 5 * i + (5 if i < 12 else 4)))
            info = TeacherInfo(
                f"teacher-{i:02d}.safetensors",
                "conv4",
                5,
                "random",
                classes,
                tuple(map(str, classes)),
                32,
                (0.5, 0.5, 0.5),
                (0.25, 0.25, 0.25),
                0.0,
                0,
                0,
            )
            net = build("conv4", 5, 32, generator=generator(0, "benchmark", i))
            save_teacher(folder / info.file, info, net.state_dict())
            infos.append(info)
        save_manifest(folder, infos)
        return load_pool(folder, device)


def alternate(variants: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Median seconds of each variant, run in turn so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for t in range(ROUNDS + 2):
        for name, run in variants.items():
            start = time.perf_counter()
            run(t)
            if t >= 2:  # the first two compile and warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    given = params.load()
    device = prepared(given.device)
    pool = make_pool(device)
    settings = given.meta_train.episode_inversion

    def start(**changes: object) -> EpisodeInversionRun:
        return EpisodeInversionRun(
            pool,
            settings.model_copy(update=changes),
            given.meta_train.eci,
            Setting(
                architecture="conv4",
                view=pool[0].info.view,
                scenario=given.scenarios.ss,
                budget=given.budgets["paper"].meta_train,
                n_way=5,
                n_shot=5,
                n_query=15,
                seed=0,
                device=device,
            ),
        )

    compiled, eager = start(compile="always"), start(compile="never")
    medians = alternate(
        {
            "iteration, compiled": compiled.step,
            "iteration, eager": eager.step,
            "inversion alone, compiled": compiled._update_images,
            "inversion alone, eager": eager._update_images,
        }
    )
    base = medians["iteration, compiled"]
    print("| part | seconds | times the compiled iteration | per second |")
    print("| --- | ---: | ---: | ---: |")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.3f} | {seconds / base:.2f} | {1 / seconds:.2f} |")


if __name__ == "__main__":
    main()
