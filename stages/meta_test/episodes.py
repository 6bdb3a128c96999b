"""The real few-shot tasks on which learners are chosen (meta-val) and judged (meta-test).

Shapes: d features; e episodes, s support and q query images of each, grouped by label.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.dataset import ClassImages, Split, View
from stages.common.episodes import Episode, EpisodeIndex, build_episode, sample_index
from stages.common.seeds import generator

BATCH = 100  # images that a network sees together
CHUNK = 100  # episodes at once: the features of a whole pool are long

Blocks = list[list[Tensor]]  # features per data set, per class: (n_c, d)


class Task(NamedTuple):
    """One episode of one data set."""

    data: int  # position in the list of data sets
    episode: EpisodeIndex


def fixed_tasks(
    data: Sequence[ClassImages],
    split: Split,
    n_episodes: int,
    n_way: int,
    n_shot: int,
    n_query: int,
) -> list[Task]:
    """The same episodes for every method, adaptation, budget *and seed* of a cell.

    So methods are compared on equal tasks, and the spread over seeds is the spread of training.
    Several data sets (MH) take turns, each with the first of the episodes it has alone.

    Raises ValueError if a split has too few classes or images.
    """
    tasks = []
    for i in range(n_episodes):
        which = i % len(data)
        stream = generator(0, "meta_test", data[which].dataset, split, i // len(data))
        sizes = [len(images) for images in data[which].images]
        tasks.append(Task(which, sample_index(sizes, n_way, n_shot, n_query, stream)))
    return tasks


class RealEpisodes:
    """The episodes of `tasks` as a network of `view` sees them.

    They are built one at a time: 600 of them need not fit into memory.

    `features`: of a network that sees every image alone, (n, 3, size, size) to (n, d).
    """

    def __init__(
        self,
        data: Sequence[ClassImages],
        tasks: Sequence[Task],
        view: View,
        device: str,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._data, self._tasks, self._view, self._device = data, tasks, view, device
        self._features = features

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def support_y(self) -> Tensor:
        """(s,), the same for every episode."""
        return support_labels(self._tasks, self._device)

    def __iter__(self) -> Iterator[Episode]:
        for task in self._tasks:
            images = self._data[task.data].images

            def fetch(position: int, chosen: Tensor, images: list[Tensor] = images) -> Tensor:
                return self._seen(images[position][chosen])

            yield build_episode(task.episode, fetch)

    def first(self, n: int) -> RealEpisodes:
        return RealEpisodes(self._data, self._tasks[:n], self._view, self._device, self._features)

    @functools.cached_property
    def embedded(self) -> Blocks:
        """What `features` makes of every image: once, however many episodes it is in."""
        features = self._features
        if features is None:
            raise ValueError("no network's features were given")

        def of_a_class(images: Tensor) -> Tensor:
            return torch.cat([features(self._seen(batch)) for batch in images.split(BATCH)])

        with torch.no_grad():
            return [[of_a_class(images) for images in part.images] for part in self._data]

    def gathered(self) -> Iterator[tuple[Tensor, Tensor]]:
        return gathered(self.embedded, self._tasks)

    def _seen(self, images: Tensor) -> Tensor:
        return channels_last(self._view.of(images.to(self._device)))


def gathered(blocks: Blocks, tasks: Sequence[Task]) -> Iterator[tuple[Tensor, Tensor]]:
    """Support (c, s, d) and query (c, q, d) features, a chunk of c episodes at a time."""
    for start in range(0, len(tasks), CHUNK):
        support, query = [], []
        for task in tasks[start : start + CHUNK]:
            classes = [blocks[task.data][c] for c in task.episode.classes.tolist()]
            pairs = zip(classes, task.episode.support, task.episode.query, strict=True)
            chosen = [(block[s], block[q]) for block, s, q in pairs]
            support.append(torch.cat([s for s, _ in chosen]))
            query.append(torch.cat([q for _, q in chosen]))
        yield torch.stack(support), torch.stack(query)


def support_labels(tasks: Sequence[Task], device: str) -> Tensor:
    """(n_way * n_shot,), the same for every episode."""
    n_way, n_shot = tasks[0].episode.support.shape
    return torch.arange(n_way, device=device).repeat_interleave(n_shot)


def query_labels(tasks: Sequence[Task], device: str) -> Tensor:
    """(n_way * n_query,), the same for every episode."""
    n_way, n_query = tasks[0].episode.query.shape
    return torch.arange(n_way, device=device).repeat_interleave(n_query)


def right(predictions: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Which of the predictions (n_episodes, n_way * n_query) are right: bool, on the CPU."""
    return (predictions == query_labels(tasks, str(predictions.device))).cpu()


def class_accuracy(
    share: Tensor, tasks: Sequence[Task], data: Sequence[ClassImages]
) -> dict[str, float]:
    """Accuracy in percent on the queries of every class that occurs, over all episodes.

    `share`: (n_episodes, n_way * n_query), 1 where a prediction is right (or a mean of such).
    """
    n_way = len(tasks[0].episode.classes)
    found: dict[str, list[Tensor]] = {}
    for task, row in zip(tasks, share.unflatten(1, (n_way, -1)).mean(2), strict=True):
        for position, accuracy in zip(task.episode.classes.tolist(), row, strict=True):
            found.setdefault(data[task.data].class_names[position], []).append(accuracy)
    return {name: round(100 * float(torch.stack(found[name]).mean()), 2) for name in sorted(found)}
