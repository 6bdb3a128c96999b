"""The table of adaptations: a new one is a module, its section of params.yaml, and a row.

Which learners each suits stands in `params.SUITS`, where it is read without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from stages.common.learner import Learner, LearnerInfo, Theta, load_learner
from stages.common.meta_learners import META_LEARNERS
from stages.common.seeds import generator
from stages.interface.progress import Reporter
from stages.meta_test import icfil, nearest_class_mean, one_step, tuned_steps
from stages.meta_test.episodes import RealEpisodes
from stages.meta_test.linear_probe import probe
from stages.meta_test.params import MetaTest, fresh_head

Done = Callable[[int], None]


@dataclass(frozen=True)
class Model:
    """A snapshot of a learner."""

    learner: Learner
    theta: Theta
    info: LearnerInfo

    @staticmethod
    def load(path: Path, device: str) -> Model:
        return Model(*load_learner(path, device))

    @property
    def adapts(self) -> str:
        """Which parameters its inner loop moves: all, or those whose names start with this.

        The head alone of a distilled learner: it starts at zero, so its first step moves no other.
        """
        if self.learner.keeps_statistics:
            return "head."
        row = META_LEARNERS.get(self.info.meta_learner)
        return row.adapts if row else ""

    def features(self, x: Tensor) -> Tensor:
        """(n, 3, size, size) to (n, d)."""
        return self.learner.forward(self.theta, x).features

    def metric(self, params: MetaTest) -> str:
        """Of nearest class mean; a prototypical network keeps that of its training."""
        return "euclidean" if self.info.euclidean else params.nearest_class_mean.metric

    def batch_norm(self, params: MetaTest) -> str:
        """A distilled learner normalises with its own statistics, which see no query image."""
        return "inductive" if self.learner.keeps_statistics else params.batch_norm


def _as_given(model: Model, episodes: RealEpisodes, params: MetaTest) -> MetaTest:
    return params


@dataclass(frozen=True)
class Adaptation:
    """How a learner solves episodes."""

    # -> labels (n_episodes, n_way * n_query); calls back with episodes done
    predict: Callable[[Model, RealEpisodes, MetaTest, Done], Tensor]
    protocol: Callable[[Model, MetaTest], str]  # steps, learning rate, BatchNorm mode, in words
    chosen_by: str  # the adaptation whose meta-validation accuracy chooses the snapshot
    # What is left to choose on meta-validation before meta-test: -> params with the choice.
    tune: Callable[[Model, RealEpisodes, MetaTest], MetaTest] = field(default=_as_given)


def _one_step(model: Model, episodes: RealEpisodes, params: MetaTest, done: Done) -> Tensor:
    if model.learner.keeps_statistics:
        features = _features(model, episodes, params, done)
        return one_step.predict_by_head(model.theta, *features, params.one_step)
    rows = []
    for i, episode in enumerate(episodes):
        rows.append(
            one_step.predict(
                model.learner,
                model.theta,
                episode,
                params.one_step,
                params.batch_norm,
                model.adapts,
            )
        )
        done(i + 1)
    return torch.stack(rows)


def _features(
    model: Model, episodes: RealEpisodes, params: MetaTest, done: Done
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (e, s, d) and (e, q, d) of the unadapted learner, and support labels (s,)."""
    labels = episodes.support_y
    if model.learner.keeps_statistics:
        parts = [torch.cat(part) for part in zip(*episodes.gathered(), strict=True)]
        done(len(episodes))
        return parts[0], parts[1], labels
    support, query = [], []
    for i, episode in enumerate(episodes):
        with torch.no_grad():
            s, q = one_step.outputs(model.learner, model.theta, episode, params.batch_norm)
        support.append(s.features)
        query.append(q.features)
        done(i + 1)
    return torch.stack(support), torch.stack(query), labels


def _nearest_class_mean(
    model: Model, episodes: RealEpisodes, params: MetaTest, done: Done
) -> Tensor:
    support, query, _ = _features(model, episodes, params, done)
    return nearest_class_mean.nearest(support, query, model.info.n_way, model.metric(params))


def _linear_probe(model: Model, episodes: RealEpisodes, params: MetaTest, done: Done) -> Tensor:
    support, query, labels = _features(model, episodes, params, done)
    return probe(support, labels, query, params.linear_probe)


def _icfil(model: Model, episodes: RealEpisodes, params: MetaTest, done: Done) -> Tensor:
    support, query = [], []
    for i, episode in enumerate(episodes):
        stream = generator(0, "meta_test", "icfil", i)  # as the episodes: the same for every seed
        features = icfil.calibrated_features(
            model.learner,
            model.theta,
            episode,
            model.info.normalisation,
            params.one_step,
            params.icfil,
            params.batch_norm,
            stream,
            model.adapts,
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


def _tune_steps(model: Model, episodes: RealEpisodes, params: MetaTest) -> MetaTest:
    few = episodes.first(params.tuned_steps.n_episodes)
    with Reporter("tuned_steps (choice)", len(few)) as report:
        found = tuned_steps.choose(
            model.learner, model.theta, few, params.tuned_steps, params.batch_norm, report
        )
    return params.model_copy(update={"one_step": found})


def _inner_loop(model: Model, params: MetaTest) -> str:
    own = params.one_step
    steps = "1 step" if own.inner_steps == 1 else f"{own.inner_steps} steps"
    part = " of the head" if model.adapts == "head." else ""
    return f"{steps}{part}, lr {own.inner_lr:g}, {model.batch_norm(params)}"


def _icfil_protocol(model: Model, params: MetaTest) -> str:
    calibration = f"calibration lr {params.icfil.calibration_lr:g}"
    return f"{_inner_loop(model, params)}; {calibration}; {fresh_head(params.icfil)}"


def _means(model: Model, params: MetaTest) -> str:
    return f"no step, {model.metric(params)}, {model.batch_norm(params)}"


def _probe_protocol(model: Model, params: MetaTest) -> str:
    return f"{fresh_head(params.linear_probe)}, {model.batch_norm(params)}"


ADAPTATIONS = {
    "one_step": Adaptation(_one_step, _inner_loop, chosen_by="one_step"),
    "tuned_steps": Adaptation(_one_step, _inner_loop, chosen_by="one_step", tune=_tune_steps),
    # ICFIL works on top of the one-step learner, so that one's snapshot is taken.
    "icfil": Adaptation(_icfil, _icfil_protocol, chosen_by="one_step"),
    "nearest_class_mean": Adaptation(_nearest_class_mean, _means, chosen_by="nearest_class_mean"),
    "linear_probe": Adaptation(_linear_probe, _probe_protocol, chosen_by="nearest_class_mean"),
}
