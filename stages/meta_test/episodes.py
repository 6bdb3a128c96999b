"""The real few-shot tasks on which learners are chosen (meta-val) and judged (meta-test)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.dataset import ClassImages, Split
from stages.common.episodes import Episode, EpisodeIndex, build_episode, sample_index
from stages.common.seeds import generator


def fixed_indices(
    data: ClassImages, split: Split, n_episodes: int, n_way: int, n_shot: int, n_query: int
) -> list[EpisodeIndex]:
    """The same episodes for every method, adaptation, budget *and seed* of a cell.

    So methods are compared on equal tasks, and the spread over seeds is the spread of training.

    Raises ValueError if the split has too few classes or images.
    """
    sizes = [len(images) for images in data.images]
    return [
        sample_index(
            sizes, n_way, n_shot, n_query, generator(0, "meta_test", data.dataset, split, i)
        )
        for i in range(n_episodes)
    ]


class RealEpisodes:
    """The episodes of `indices`, built one at a time: 600 of them need not fit into memory."""

    def __init__(self, data: ClassImages, indices: Sequence[EpisodeIndex], device: str) -> None:
        self._data, self._indices, self._device = data, indices, device

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Episode]:
        for index in self._indices:
            yield build_episode(index, self._fetch)

    def _fetch(self, class_position: int, positions: Tensor) -> Tensor:
        pixels = self._data.images[class_position][positions].to(self._device)
        return channels_last(self._data.normalisation.apply(pixels))


def accuracies(predictions: Tensor, query_y: Tensor) -> Tensor:
    """Percent of right predictions (n_episodes, n), per episode: (n_episodes,) float64."""
    return 100 * (predictions == query_y).to(torch.float64).mean(1)
