"""Steps and learning rate of the inner loop, chosen on meta-validation.

For learners that were never trained to adapt (Random, Average, OTA, DRO): the paper's one step of
0.01 cannot train a head that fits no class of the episode (METHODS 2, 4). A meta-trained learner
has learned for its own inner loop and is not tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from stages.common.episodes import Episode
from stages.common.learner import Learner, Theta, adapt
from stages.meta_test.one_step import outputs
from stages.meta_test.params import OneStep, TunedSteps


def candidates(params: TunedSteps) -> tuple[list[float], list[int]]:
    """Learning rates, evenly spaced in their logarithm, and steps 1, 2, 4, ... up to the most."""
    n, low, high = params.n_lrs, params.lr_low, params.lr_high
    lrs = [low * (high / low) ** (i / max(n - 1, 1)) for i in range(n)]
    steps = [2**i for i in range(params.max_steps.bit_length())]
    return [float(f"{lr:.3g}") for lr in lrs], steps


def choose(
    learner: Learner,
    theta: Theta,
    episodes: Iterable[Episode],
    params: TunedSteps,
    batch_norm: str,
    done: Callable[[int], None],
) -> OneStep:
    """The best pair on these (meta-validation) episodes, the fewest steps of equals."""
    lrs, steps = candidates(params)
    hits = torch.zeros(len(steps), len(lrs))
    for i, episode in enumerate(episodes):
        for column, lr in enumerate(lrs):
            hits[:, column] += _trajectory(learner, theta, episode, lr, steps, batch_norm)
        done(i + 1)
    best = int(hits.flatten().argmax())
    return OneStep(inner_lr=lrs[best % len(lrs)], inner_steps=steps[best // len(lrs)])


def _trajectory(
    learner: Learner,
    theta: Theta,
    episode: Episode,
    lr: float,
    steps: list[int],
    batch_norm: str,
) -> Tensor:
    """Right query predictions after each number of `steps` of one inner loop: (len(steps),)."""
    hits, taken = [], 0
    for wanted in steps:
        x, y = episode.support_x, episode.support_y
        theta = adapt(learner, theta, x, y, lr, wanted - taken)
        taken = wanted
        with torch.no_grad():
            _, query = outputs(learner, theta, episode, batch_norm)
        hits.append((query.logits.argmax(1) == episode.query_y).sum().cpu())
    return torch.stack(hits).float()
