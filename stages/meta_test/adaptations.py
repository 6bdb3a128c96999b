"""The table of adaptations: a new one is a module, its section of params.yaml, and a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.common.learner import Learner, Theta
from stages.common.seeds import generator
from stages.meta_test import icfil, nearest_class_mean, one_step
from stages.meta_test.episodes import RealEpisodes
from stages.meta_test.params import MetaTest

Predict = Callable[[Learner, Theta, RealEpisodes, MetaTest, Callable[[int], None]], Tensor]


@dataclass(frozen=True)
class Adaptation:
    """How a meta-trained learner solves episodes."""

    predict: Predict  # -> labels (n_episodes, n_way * n_query); calls back with episodes done
    chosen_by: str  # the adaptation whose meta-validation accuracy chooses the snapshot


def _one_step(
    learner: Learner,
    theta: Theta,
    episodes: RealEpisodes,
    params: MetaTest,
    done: Callable[[int], None],
) -> Tensor:
    rows = []
    for i, episode in enumerate(episodes):
        rows.append(one_step.predict(learner, theta, episode, params.one_step, params.batch_norm))
        done(i + 1)
    return torch.stack(rows)


def _nearest_class_mean(
    learner: Learner,
    theta: Theta,
    episodes: RealEpisodes,
    params: MetaTest,
    done: Callable[[int], None],
) -> Tensor:
    rows = []
    for i, episode in enumerate(episodes):
        rows.append(
            nearest_class_mean.predict(
                learner, theta, episode, params.nearest_class_mean, params.batch_norm
            )
        )
        done(i + 1)
    return torch.stack(rows)


def _icfil(
    learner: Learner,
    theta: Theta,
    episodes: RealEpisodes,
    params: MetaTest,
    done: Callable[[int], None],
) -> Tensor:
    support, query = [], []
    for i, episode in enumerate(episodes):
        stream = generator(0, "meta_test", "icfil", i)  # as the episodes: the same for every seed
        features = icfil.calibrated_features(
            learner, theta, episode, params.one_step, params.icfil, params.batch_norm, stream
        )
        support.append(features.support)
        query.append(features.query)
        labels = episode.support_y
        done(i + 1)
    return icfil.head_predictions(
        torch.stack(support),
        labels,
        torch.stack(query),
        params.icfil.head_steps,
        params.icfil.head_lr,
    )


ADAPTATIONS = {
    "one_step": Adaptation(_one_step, "one_step"),
    # ICFIL works on top of the one-step learner, so that one's snapshot is taken.
    "icfil": Adaptation(_icfil, "one_step"),
    "nearest_class_mean": Adaptation(_nearest_class_mean, "nearest_class_mean"),
}
