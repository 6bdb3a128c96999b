"""Choose on meta-validation, judge once on meta-test (METHODS 1.7).

The released program evaluates 120 times on meta-test and reports the maximum. Here the snapshot
is chosen on episodes of the meta-validation classes, and every adaptation is judged once, on the
fixed meta-test episodes. Figure 4's curve looks at some of these again, when all has been chosen.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.common.dataset import ClassImages
from stages.common.learner import snapshots
from stages.common.pool import Teacher
from stages.interface.errors import BadInput
from stages.interface.params import NO_DATASET
from stages.interface.progress import Reporter
from stages.meta_test.adaptations import ADAPTATIONS, Adaptation, Model
from stages.meta_test.episodes import RealEpisodes, Task, class_accuracy, right
from stages.meta_test.params import SUITS, MetaTest
from stages.meta_test.pool_features import predict_by_pool, protocol

Selection = list[dict[str, float]]  # a row a snapshot: iteration, accuracy (percent) by chooser


@dataclass(frozen=True)
class Tasks:
    """Data sets and fixed episodes of one class split."""

    data: Sequence[ClassImages]
    tasks: Sequence[Task]

    def seen_by(self, model: Model, device: str) -> RealEpisodes:
        """The episodes for this model; one object serves all its adaptations."""
        features = model.features if model.learner.keeps_statistics else None
        return RealEpisodes(self.data, self.tasks, model.info.view, device, features)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the episodes: classes, their sizes, support and query images by position.

        Equal for cells that may be compared episode by episode. It says which images a canonical
        file holds by their number alone: the sources pin or render the images themselves. Images
        that were made for the episodes (no data set) are in it.
        """
        data = [
            [part.dataset, part.image_size, part.class_names, [len(x) for x in part.images]]
            for part in self.data
        ]
        for part in self.data:
            if part.dataset == NO_DATASET:
                made = b"".join(x.numpy().tobytes() for x in part.images)
                data.append([hashlib.sha256(made).hexdigest()])
        tasks = [[t.data, *(x.tolist() for x in t.episode)] for t in self.tasks]
        return hashlib.sha256(json.dumps([data, tasks]).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One way of predicting, judged on meta-test."""

    share: Tensor  # (n_episodes, n_way * n_query): 1 where right; a mean of such over teachers
    protocol: str
    snapshot: int | None = None  # iteration of the chosen learner
    val_accuracy: float | None = None  # percent, of what chose it

    def summary(self) -> dict[str, Any]:
        """Mean, 95 % interval 1.96 s / sqrt(n) and standard deviation s over episodes, percent."""
        correct = self.share.double().sum(1)
        accuracy = 100 * correct / self.share.shape[1]
        n = len(accuracy)
        std = float(accuracy.std()) if n > 1 else 0.0
        content: dict[str, Any] = {
            "accuracy": round(float(accuracy.mean()), 4),
            "ci95": round(1.96 * std / math.sqrt(n), 4),
            "std": round(std, 4),
            "protocol": self.protocol,
            "correct": [round(c, 6) if c % 1 else int(c) for c in correct.tolist()],
        }
        if self.snapshot is not None:
            content["snapshot"] = self.snapshot
        if self.val_accuracy is not None:
            content["val_accuracy"] = round(self.val_accuracy, 4)
        return content


def adaptations_of(meta_learner: str) -> dict[str, Adaptation]:
    """Those that make sense for a learner of this kind."""
    return {name: row for name, row in ADAPTATIONS.items() if meta_learner in SUITS[name]}


def load_snapshots(folder: Path, device: str) -> list[Model]:
    """All snapshots of a learner, by iteration.

    Raises BadInput if there are none, or if they are not of one learner.
    """
    paths = snapshots(folder)
    models = [Model.load(path, device) for path in paths]
    first = models[0].info
    for path, model in zip(paths, models, strict=True):
        for field in ("architecture", "n_way", "image_size", "method", "meta_learner"):
            found, expected = getattr(model.info, field), getattr(first, field)
            if found != expected:
                raise BadInput(
                    f"{path}: its {field} is {found!r}, that of {paths[0].name} {expected!r}:"
                    " not snapshots of one learner"
                )
    return models


def select(models: Sequence[Model], val: Tasks, params: MetaTest, device: str) -> Selection:
    """Meta-validation accuracy of every snapshot by the adaptations that choose snapshots."""
    rows = adaptations_of(models[0].info.meta_learner)
    choosers = sorted({adaptation.chosen_by for adaptation in rows.values()})
    selection: Selection = []
    with Reporter("meta-validation", len(models) * len(choosers)) as report:
        for model in models:
            row: dict[str, float] = {"iteration": model.info.iteration}
            episodes = val.seen_by(model, device)
            for name in choosers:
                labels = ADAPTATIONS[name].predict(model, episodes, params, _silent)
                row[name] = round(100 * float(right(labels, val.tasks).double().mean()), 4)
                report(len(selection) * len(choosers) + len(row) - 1, **{name: row[name]})
            selection.append(row)
    return selection


def chosen(selection: Selection, by: str) -> int:
    """Position of the best snapshot on meta-validation, the earliest of equals."""
    accuracies = [row[by] for row in selection]
    return accuracies.index(max(accuracies))


def judge_learner(
    models: Sequence[Model],
    selection: Selection,
    val: Tasks,
    test: Tasks,
    params: MetaTest,
    device: str,
) -> dict[str, Row]:
    """Every suitable adaptation on meta-test, each with its own chosen snapshot."""
    seen = functools.cache(lambda position: test.seen_by(models[position], device))
    rows = {}
    for name, adaptation in adaptations_of(models[0].info.meta_learner).items():
        position = chosen(selection, adaptation.chosen_by)
        model = models[position]
        own = adaptation.tune(model, val.seen_by(model, device), params)
        with Reporter(name, len(test.tasks)) as report:
            labels = adaptation.predict(model, seen(position), own, report)
        rows[name] = Row(
            right(labels, test.tasks),
            adaptation.protocol(model, own),
            model.info.iteration,
            selection[position][adaptation.chosen_by],
        )
    return rows


def curve(
    models: Sequence[Model], test: Tasks, params: MetaTest, device: str
) -> list[dict[str, float]]:
    """Meta-test accuracy of every snapshot by its first adaptation, after the fact (figure 4).

    On the first `curve_episodes` tasks. Everything has been chosen before; nothing is by this.
    """
    if len(models) < 2 or not params.curve_episodes:
        return []
    adaptation = next(iter(adaptations_of(models[0].info.meta_learner).values()))
    tasks = test.tasks[: params.curve_episodes]
    points = []
    with Reporter("curve", len(models)) as report:
        for model in models:
            episodes = test.seen_by(model, device).first(len(tasks))
            labels = adaptation.predict(model, episodes, params, _silent)
            found = Row(right(labels, tasks), "").summary()
            point = {"iteration": model.info.iteration, "n_episodes": len(tasks)}
            points.append(point | {key: found[key] for key in ("accuracy", "ci95")})
            report(len(points), accuracy=found["accuracy"])
    return points


def judge_pool(
    pool: Sequence[Teacher], test: Tasks, params: MetaTest, device: str
) -> dict[str, Row]:
    """The pool's own rows on meta-test; those of single teachers are the mean over them."""
    rows = {}
    with Reporter("pool features", len(pool)) as report:
        for name, labels in predict_by_pool(pool, test.data, test.tasks, params, device, report):
            share = right(labels, test.tasks).float()
            rows[name] = Row(share.mean(0) if share.dim() == 3 else share, protocol(name, params))
    return rows


def class_accuracies(rows: dict[str, Row], test: Tasks) -> dict[str, dict[str, float]]:
    return {n: class_accuracy(row.share.float(), test.tasks, test.data) for n, row in rows.items()}


def _silent(done: int) -> None:
    """No progress of a part that is itself one step of a larger progress."""
