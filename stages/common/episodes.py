"""Few-shot episodes: which images they hold, and the images themselves.

Shapes: n_way classes, n_shot support and n_query query images per class; episode labels are
0..n_way-1 in the order the classes were drawn, class ids are global.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Episode(NamedTuple):
    support_x: Tensor  # (n_way * n_shot, 3, h, w), grouped by label
    support_y: Tensor  # (n_way * n_shot,)
    query_x: Tensor  # (n_way * n_query, 3, h, w), grouped by label
    query_y: Tensor  # (n_way * n_query,)


class EpisodeIndex(NamedTuple):
    """An episode before its images are fetched."""

    classes: Tensor  # (n_way,) positions in the list of classes
    support: Tensor  # (n_way, n_shot) positions within the class
    query: Tensor  # (n_way, n_query) positions within the class, disjoint from support


def sample_index(
    class_sizes: Sequence[int],
    n_way: int,
    n_shot: int,
    n_query: int,
    generator: torch.Generator,
) -> EpisodeIndex:
    """Draw classes without replacement, then support and query images without replacement.

    Raises ValueError, with the numbers, if there are too few classes or images.
    """
    if n_way > len(class_sizes):
        raise ValueError(f"n_way = {n_way}: only {len(class_sizes)} classes to draw from")
    if n_shot + n_query > min(class_sizes):
        raise ValueError(
            f"n_shot + n_query = {n_shot} + {n_query}: a class has only {min(class_sizes)} images"
        )
    classes = torch.randperm(len(class_sizes), generator=generator)[:n_way]
    images = torch.stack(
        [
            torch.randperm(class_sizes[c], generator=generator)[: n_shot + n_query]
            for c in classes.tolist()
        ]
    )
    return EpisodeIndex(classes, images[:, :n_shot], images[:, n_shot:])


def build_episode(index: EpisodeIndex, fetch: Callable[[int, Tensor], Tensor]) -> Episode:
    """The images of `index`; `fetch(class, positions)` gives (len(positions), 3, h, w)."""
    n_way, n_shot = index.support.shape
    n_query = index.query.shape[1]
    classes = index.classes.tolist()
    support = [fetch(c, index.support[i]) for i, c in enumerate(classes)]
    query = [fetch(c, index.query[i]) for i, c in enumerate(classes)]
    support_x, query_x = torch.cat(support), torch.cat(query)
    labels = torch.arange(n_way, device=support_x.device)
    return Episode(
        support_x,
        labels.repeat_interleave(n_shot),
        query_x,
        labels.repeat_interleave(n_query),
    )
