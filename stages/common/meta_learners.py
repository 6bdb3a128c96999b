"""Meta-learners: what an episode teaches a network, and the outer loop around it.

    L_outer(theta; S, Q) = CE(predict(theta, S, Q_x), Q_y)          (PURER, equation 1a)

MAML and ANIL predict with the network adapted to S, a prototypical network by the distance to the
means of S. Second order throughout. meta_train gives them synthetic episodes, data_based real ones.

Shapes: n_way classes, n_shot support and n_query query images each, grouped by label; d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.episodes import Episode
from stages.common.learner import Learner, Theta, adapt


class Outer(NamedTuple):
    loss: Tensor  # scalar
    accuracy: Tensor  # scalar in [0, 1]


class MetaLearner(NamedTuple):
    # (learner, theta, episode, inner_lr, inner_steps) -> logits of the query images
    query_logits: Callable[[Learner, Theta, Episode, float, int], Tensor]
    adapts: str  # parameters that its inner loop moves: names start with this


def maml(
    learner: Learner, theta: Theta, episode: Episode, inner_lr: float, inner_steps: int
) -> Tensor:
    """Finn et al., 2017: all parameters are adapted."""
    adapted = adapt(learner, theta, episode.support_x, episode.support_y, inner_lr, inner_steps)
    return learner.forward(adapted, episode.query_x).logits


def anil(
    learner: Learner, theta: Theta, episode: Episode, inner_lr: float, inner_steps: int
) -> Tensor:
    """Raghu et al., 2020: only the head is adapted."""
    x, y = episode.support_x, episode.support_y
    adapted = adapt(learner, theta, x, y, inner_lr, inner_steps, part="head.")
    return learner.forward(adapted, episode.query_x).logits


def protonet(
    learner: Learner, theta: Theta, episode: Episode, inner_lr: float, inner_steps: int
) -> Tensor:
    """Snell et al., 2017: logits -||z - c_k||^2 + ||z||^2, c_k the mean support feature of class k.

    No inner loop. The term ||z||^2 is the same for every class, so the softmax does not see it.
    """
    support = learner.forward(theta, episode.support_x).features
    prototypes = support.unflatten(0, (learner.n_way, -1)).mean(1)  # (n_way, d)
    query = learner.forward(theta, episode.query_x).features
    logits: Tensor = 2 * query @ prototypes.T - prototypes.square().sum(1)
    return logits


META_LEARNERS = {
    "maml": MetaLearner(maml, adapts=""),
    "anil": MetaLearner(anil, adapts="head."),
    "protonet": MetaLearner(protonet, adapts=""),  # it has no inner loop
}


def outer_loss(
    name: str, learner: Learner, theta: Theta, episode: Episode, inner_lr: float, inner_steps: int
) -> Outer:
    """Loss and accuracy on the query images of what meta-learner `name` makes of the support."""
    logits = META_LEARNERS[name].query_logits(learner, theta, episode, inner_lr, inner_steps)
    accuracy = (logits.argmax(1) == episode.query_y).float().mean()
    return Outer(F.cross_entropy(logits, episode.query_y), accuracy)


class OuterLoop:
    """theta and its Adam: one step on the summed losses of some episodes (second order)."""

    def __init__(
        self,
        theta: Theta,
        loss: Callable[[Theta, Episode], Outer],
        outer_lr: float,
    ) -> None:
        self.theta = {name: p.detach().requires_grad_() for name, p in theta.items()}
        self.loss = loss
        self.optimizer = torch.optim.Adam(list(self.theta.values()), outer_lr)

    def step(self, episodes: Iterable[Episode]) -> dict[str, float]:
        """Means of loss and accuracy over the episodes, as `outer_loss` and `outer_accuracy`."""
        self.optimizer.zero_grad()
        outers = []
        for episode in episodes:
            outer = self.loss(self.theta, episode)
            outer.loss.backward()  # gradients add up: the losses are summed
            outers.append(torch.stack([outer.loss.detach(), outer.accuracy]))
        self.optimizer.step()
        loss, accuracy = torch.stack(outers).mean(0).tolist()
        return {"outer_loss": loss, "outer_accuracy": accuracy}

    def snapshot(self) -> Theta:
        return {name: p.detach() for name, p in self.theta.items()}


Adams = Mapping[str, torch.optim.Optimizer]


def adam_state(optimizers: Adams) -> dict[str, Tensor]:
    """Parameters and moments of every optimizer, as tensors by name."""
    tensors = {}
    for name, i, optimizer, p in _parameters(optimizers):
        tensors[f"{name}.{i}"] = p.detach()
        for key, value in optimizer.state[p].items():
            tensors[f"{name}.{i}.{key}"] = value
    return tensors


def load_adam_state(optimizers: Adams, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `adam_state`, in place; a parameter that was never stepped has no moments."""
    with torch.no_grad():
        for name, i, optimizer, p in _parameters(optimizers):
            prefix = f"{name}.{i}"
            p.copy_(tensors[prefix])
            optimizer.state.pop(p, None)
            if f"{prefix}.step" in tensors:
                optimizer.state[p] = {
                    "step": tensors[f"{prefix}.step"].clone(),
                    **{
                        key: torch.empty_like(p).copy_(tensors[f"{prefix}.{key}"])
                        for key in ("exp_avg", "exp_avg_sq")
                    },
                }


def _parameters(
    optimizers: Adams,
) -> Iterable[tuple[str, int, torch.optim.Optimizer, Tensor]]:
    for name, optimizer in optimizers.items():
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            yield name, i, optimizer, p
