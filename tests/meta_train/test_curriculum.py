from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.common.loop import snapshot_iterations
from stages.meta_train.curriculum import GradientSwitch


def test_the_switch_by_hand() -> None:
    switch = GradientSwitch(start=2, patience=3)
    accuracies = [0.9, 0.9, 0.5, 0.4, 0.6, 0.6, 0.5, 0.6, 0.1, 0.1, 0.1, 0.1]
    #   from 2:  best 0.5, stale 1, best 0.6, stale 1, 2, 3 = positive, then a new best 0.1, 1, 2, 3
    feedback = [switch.observe(t, a) for t, a in enumerate(accuracies)]
    assert [t for t, positive in enumerate(feedback) if positive] == [7, 11]


def test_an_equal_accuracy_is_no_improvement() -> None:
    switch = GradientSwitch(start=0, patience=2)
    assert [switch.observe(t, 0.7) for t in range(6)] == [False, False, True] * 2


@given(n=st.integers(1, 500), k=st.integers(1, 60))
def test_snapshots_are_evenly_spaced_and_the_last_is_the_end(n: int, k: int) -> None:
    iterations = snapshot_iterations(n, k)
    assert iterations[-1] == n
    assert len(set(iterations)) == min(n, k)
    gaps = [b - a for a, b in zip([0, *iterations], iterations, strict=False)]
    assert max(gaps) - min(gaps) <= 1
