"""How a pool, and a distilled learner, are read out: nearest class mean on meta-validation.

    python benchmarks/readout_choices.py LEARNER_FOLDER POOL_FOLDER data/<data set>.safetensors

The last snapshot of a learner that has its metric, and its pool, of one data set; 600 episodes of
the meta-validation classes, 1-shot and 5-shot. Only meta-validation classes are read. Prints a
Markdown table; differences are paired.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.aggregate.results import interval
from stages.common.architectures import channels_last
from stages.common.dataset import ClassImages, load_split
from stages.common.distilled import Distilled, log_ratios
from stages.common.files import load_tensors
from stages.common.learner import LearnerInfo, load_learner, snapshots
from stages.common.pool import Teacher, load_pool
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.meta_test.episodes import Task, fixed_tasks, right
from stages.meta_test.pool_features import by_means, readout, seen_by, side_by_side

N_EPISODES, N_WAY, N_QUERY = 600, 5, 15
BATCH = 500

Classes = list[Tensor]  # features (n_c, d) of each class
Read = Callable[[Tensor], Tensor]  # normalised images (n, 3, h, w) to features (n, d)


def learner_rows(folder: Path, data: ClassImages) -> Iterator[tuple[str, Classes]]:
    _, theta, info = load_learner(snapshots(folder)[-1])
    assert info.distilled is not None
    names = info.distilled.readout
    whole = reader(info, theta, names)
    view = [info.view.of(images) for images in data.images]
    yield "as it was made", [whole(x) for x in view]
    for title, part in {
        "damping": "damped",
        "amplification": "amplified",
        "damping of what is common": "common",
    }.items():
        other = reader(info, theta | {part: torch.zeros_like(theta[part])}, names)
        yield f"without its {title}", [other(x) for x in view]
    plain = reader(info, theta, names, mirror=False)
    yield "without the mirror image", [plain(x) for x in view]
    shifted = [sum(whole(x.roll(by, (2, 3))) for by in _shifts()) for x in view]
    yield "mean over shifts by two pixels", [F.normalize(z, dim=1) for z in shifted]  # type: ignore[arg-type]
    drawn = info.view.of(procedural_images(2000, info.image_size, generator(0, "centre")))
    inverted = whole(inverted_images(folder))
    for name, mean in (("procedural", whole(drawn).mean(0)), ("inverted", inverted.mean(0))):
        yield f"centred by the mean of {name} images", [whole(x) - mean for x in view]


def block_rows(folder: Path, data: ClassImages) -> Iterator[tuple[str, Classes]]:
    """Without the metric, which is of all blocks together."""
    _, theta, info = load_learner(snapshots(folder)[-1])
    assert info.distilled is not None
    names = info.distilled.readout
    view = [info.view.of(images) for images in data.images]
    for title, chosen in {"all": names, **{f"{name} alone": (name,) for name in names}}.items():
        plain = reader(info, theta, chosen, metric=False)
        yield title, [plain(x) for x in view]


def _shifts() -> list[tuple[int, int]]:
    return [(0, 0), (-2, 0), (2, 0), (0, -2), (0, 2)]


def reader(
    info: LearnerInfo,
    theta: dict[str, Tensor],
    names: tuple[str, ...],
    mirror: bool = True,
    metric: bool = True,
) -> Read:
    """The learner's network, read out by the blocks of these names."""
    assert info.distilled is not None
    form = replace(
        info.distilled,
        readout=names,
        mirror=mirror and info.distilled.mirror,
        n_directions=info.distilled.n_directions if metric else 0,
    )
    net = Distilled(info.architecture, form, info.n_way, info.image_size).eval()
    own = {k: v for k, v in theta.items() if k in net.state_dict() and not k.startswith("head.")}
    net.load_state_dict(own, strict=False)

    def read(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([net(channels_last(part)).features for part in x.split(BATCH)])

    return read


def inverted_images(folder: Path) -> Tensor:
    """Those kept with the learner, as its teachers see them."""
    tensors, _ = load_tensors(folder / "synthetic.safetensors")
    return torch.cat([images for name, images in tensors.items() if name.endswith("images")])


def pool_rows(pool: list[Teacher], data: ClassImages) -> Iterator[tuple[str, Classes]]:
    seen = [seen_by(teacher, [data], "float32", "cpu") for teacher in pool]
    (features,) = side_by_side([one.features for one in seen])
    yield "features", features
    (words,) = side_by_side([one.log_probabilities for one in seen])
    yield "log-probabilities", words
    ratios = [
        [[log_ratios(z, [z.shape[1]]) for z in part] for part in one.log_probabilities]
        for one in seen
    ]
    yield "log-ratios", side_by_side(ratios)[0]
    yield "features and log-ratios, mirrored too", readout(seen)[0]


def compared(classes: Classes, tasks: dict[int, list[Task]], base: dict[int, Tensor]) -> str:
    """Cells of a table, for each number of shots: accuracy, and its difference to `base`, paired.

    By the cosine to class means. The first call sets `base`, percent of each episode.
    """
    words = []
    for n_shot, own in tasks.items():
        found = 100 * right(by_means([classes], own, "cosine"), own).double().mean(1)
        more = (found - base.setdefault(n_shot, found)).numpy()
        words.append(f"{found.mean():.2f} ± {interval(found.numpy()):.2f}")
        words.append(f"{more.mean():+.2f} ± {interval(more):.2f}")
    return " | ".join(words)


def main(learner: Path, pool: Path, data_file: Path) -> None:
    data = load_split(data_file, "val")
    tasks = {n: fixed_tasks([data], "val", N_EPISODES, N_WAY, n, N_QUERY) for n in (1, 5)}
    print(f"{learner.name}, {N_EPISODES} meta-val episodes; minus the first of its kind, paired\n")
    print("| network | read out by | 1-shot | minus the first | 5-shot | minus the first |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    kinds = {
        "learner": learner_rows(learner, data),
        "learner without metric": block_rows(learner, data),
        "pool": pool_rows(load_pool(pool), data),
    }
    for kind, rows in kinds.items():
        base: dict[int, Tensor] = {}
        for name, classes in rows:
            print(f"| {kind} | {name} | {compared(classes, tasks, base)} |", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
