from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.common.episodes import build_episode, sample_index
from stages.common.seeds import generator


@given(
    sizes=st.lists(st.integers(4, 12), min_size=3, max_size=9),
    n_way=st.integers(2, 3),
    n_shot=st.integers(1, 2),
    n_query=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_support_and_query_never_meet(
    sizes: list[int], n_way: int, n_shot: int, n_query: int, seed: int
) -> None:
    index = sample_index(sizes, n_way, n_shot, n_query, generator(seed, "test"))
    assert len(set(index.classes.tolist())) == n_way
    assert index.support.shape == (n_way, n_shot)
    assert index.query.shape == (n_way, n_query)
    for c, support, query in zip(index.classes.tolist(), index.support, index.query, strict=True):
        images = support.tolist() + query.tolist()
        assert len(set(images)) == len(images)
        assert max(images) < sizes[c]


def test_impossible_requests_say_their_numbers() -> None:
    g = generator(0, "test")
    with pytest.raises(ValueError, match="n_way = 5: only 4 classes"):
        sample_index([9] * 4, 5, 1, 1, g)
    with pytest.raises(ValueError, match=r"n_shot \+ n_query = 5 \+ 15: a class has only 9 images"):
        sample_index([9] * 5, 5, 5, 15, g)


def test_images_and_labels_belong_together() -> None:
    # Class c is full of the value 100 c + position.
    def fetch(c: int, positions: torch.Tensor) -> torch.Tensor:
        return (100 * c + positions).view(-1, 1, 1, 1).float()

    index = sample_index([7] * 6, 3, 2, 3, generator(0, "test"))
    episode = build_episode(index, fetch)
    for x, y in ((episode.support_x, episode.support_y), (episode.query_x, episode.query_y)):
        assert (x.flatten() // 100).tolist() == [index.classes[label].item() for label in y]
    assert episode.support_x.flatten().tolist() == (
        (100 * index.classes[:, None] + index.support).flatten().tolist()
    )
