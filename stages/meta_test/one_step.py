"""Adaptation of the paper: the inner loop on the support set, then the adapted network (MAML).

PURER, section 3.2: theta' = theta - inner_lr * grad L(theta; S); predict with f_theta'.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import Output, batch_moments
from stages.common.episodes import Episode
from stages.common.learner import Learner, Theta, adapt
from stages.meta_test.params import OneStep


def predict(
    learner: Learner,
    theta: Theta,
    episode: Episode,
    params: OneStep,
    batch_norm: str,
    part: str = "",
) -> Tensor:
    """Episode labels (n_way * n_query,) of the query images; `part` as in `adapt`."""
    adapted = adapt(
        learner,
        theta,
        episode.support_x,
        episode.support_y,
        params.inner_lr,
        params.inner_steps,
        part,
    )
    with torch.no_grad():
        _, query = outputs(learner, adapted, episode, batch_norm)
        return query.logits.argmax(1)


def predict_by_head(
    theta: Theta,
    support: Tensor,
    query: Tensor,
    support_y: Tensor,
    params: OneStep,
) -> Tensor:
    """`predict` with part "head." for all episodes at once, from their features.

    support (e, s, d), query (e, q, d), support_y (s,); labels (e, q). With p the softmax of the
    head's logits and Y the labels one-hot, the gradients are (p - Y)^T support / s and its sum.
    """
    weight, bias = theta["head.weight"].expand(len(support), -1, -1), theta["head.bias"]
    right = F.one_hot(support_y, len(bias)).to(support.dtype)
    for _ in range(params.inner_steps):
        error = ((support @ weight.mT + bias).softmax(-1) - right) / len(support_y)
        weight = weight - params.inner_lr * error.mT @ support
        bias = bias - params.inner_lr * error.sum(1, keepdim=True)
    return (query @ weight.mT + bias).argmax(-1)


def outputs(
    learner: Learner, theta: Theta, episode: Episode, batch_norm: str
) -> tuple[Output, Output]:
    """The network's outputs on support and query images.

    `batch_norm`: the query batch is normalised with its own statistics (transductive, as
    published) or with those of the support batch (inductive).
    """
    support = learner.forward(theta, episode.support_x)
    moments = batch_moments(support.bn_inputs) if batch_norm == "inductive" else None
    return support, learner.forward(theta, episode.query_x, moments)
