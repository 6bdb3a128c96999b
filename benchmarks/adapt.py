"""How long `purer adapt` takes, start-up included. Run it on an idle machine.

    python benchmarks/adapt.py LEARNER.safetensors

A 5-way 5-shot task: 25 support images and 75 others, photographs' size, as JPEG. The whole command
in a process of its own, beside a process that only imports torch, in turn: medians of both, and the
ratio. The images are procedural, since the time does not depend on what they show.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from speed import alternate

from stages.common.procedural import procedural_images
from stages.common.seeds import generator

N_WAY, N_SHOT, N_QUERY = 5, 5, 15
SIZE = (500, 375)


def save_images(folder: Path) -> None:
    """`support/<class>/*.jpg` and `new/*.jpg`."""
    pixels = procedural_images(N_WAY * (N_SHOT + N_QUERY), 64, generator(0, "benchmark", "adapt"))
    for i, image in enumerate(pixels.numpy()):
        label, place = i % N_WAY, i // N_WAY
        home = folder / ("new" if place >= N_SHOT else f"support/class-{label}")
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize(SIZE).save(home / f"{i:03d}.jpg")


def run(*command: str) -> Callable[[int], object]:
    """What runs it in a process of its own, and fails where it fails."""
    return lambda t: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main(learner: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_images(folder)
        purer = str(Path(sys.executable).with_name("purer"))
        adapt = [purer, "adapt", str(folder / "support"), "--learner", str(learner)]
        medians = alternate(
            {
                "purer adapt": run(*adapt, "--predict", str(folder / "new")),
                "import torch": run(sys.executable, "-c", "import torch"),
            }
        )
    print("| process | seconds | times importing torch |")
    print("| --- | ---: | ---: |")
    for title, median in medians.items():
        print(f"| {title} | {median:.2f} | {median / medians['import torch']:.2f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
