"""EI and ECI: episode (curriculum) inversion, PURER (CVPR 2023), section 4.2 and algorithm 1.

One iteration, with synthetic images D, learner theta, teachers f_i:

    1. D     <- Adam step on  sum_i L_inv(f_i; D_i)  - lambda * L_outer(theta; D)   (eq. 2, 6)
                the second term only when the Gradient Switch is on (ECI), on one fresh episode
    2. theta <- Adam step on  sum over episodes of L_outer(theta; episode)          (eq. 1)
                L_outer(theta; S, Q) = CE(adapt(theta, S), Q), second order
    3. the switch observes the mean accuracy of these episodes                      (eq. 5)

EI is ECI with lambda = 0. All teachers weigh the same (METHODS 1.1 on the released program).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from stages.common.architectures import bn_layers, build, channels_last
from stages.common.episodes import Episode
from stages.common.inversion import InversionLoss, inversion_loss
from stages.common.learner import Learner, Theta, adapt, initial_theta
from stages.common.params import InversionWeights
from stages.common.pool import Teacher
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_train.compiling import compiler
from stages.meta_train.curriculum import GradientSwitch
from stages.meta_train.methods import Records
from stages.meta_train.params import (
    Curriculum,
    EpisodeInversion,
    MetaTrainBudget,
    NoCurriculum,
)
from stages.meta_train.synthetic import DynamicDataset

TeacherLoss = Callable[[dict[str, Tensor], Tensor, Tensor], InversionLoss]
Record = dict[str, float]


class Outer(NamedTuple):
    loss: Tensor  # scalar
    accuracy: Tensor  # scalar in [0, 1]


def outer_loss(
    learner: Learner, theta: Theta, episode: Episode, inner_lr: float, inner_steps: int
) -> Outer:
    """L_outer: the query loss after adapting to the support set (PURER, equation 1a)."""
    adapted = adapt(learner, theta, episode.support_x, episode.support_y, inner_lr, inner_steps)
    logits = learner.forward(adapted, episode.query_x).logits
    accuracy = (logits.argmax(1) == episode.query_y).float().mean()
    return Outer(F.cross_entropy(logits, episode.query_y), accuracy)


def teacher_loss(
    architecture: str, n_outputs: int, image_size: int, weights: InversionWeights
) -> TeacherLoss:
    """L_inv as a function of (a teacher's state, x, y), the same for every such teacher.

    The state is an argument, so one compiled function serves all teachers of an architecture.
    """
    net = build(architecture, n_outputs, image_size).eval()
    names = [name for name, _ in bn_layers(net)]

    def loss(state: dict[str, Tensor], x: Tensor, y: Tensor) -> InversionLoss:
        reference = [(state[f"{n}.running_mean"], state[f"{n}.running_var"]) for n in names]
        return inversion_loss(functional_call(net, state, (x,)), x, y, reference, weights)

    return loss


class EpisodeInversionRun:
    """The state of one meta-training run and its `step`.

    Every random draw of iteration t comes from a stream named by t, so `load_state` followed by
    the remaining steps gives the bytes of an uninterrupted run.
    """

    def __init__(
        self,
        pool: Sequence[Teacher],
        params: EpisodeInversion,
        curriculum: Curriculum | NoCurriculum,
        *,
        budget: MetaTrainBudget,
        n_way: int,
        n_shot: int,
        n_query: int,
        seed: int,
        device: str,
    ) -> None:
        self._params, self._curriculum, self._seed = params, curriculum, seed
        self.architecture: str = params.learner
        self._shape = (n_way, n_shot, n_query)
        self._device = device
        image_size = pool[0].info.image_size
        self._learner = Learner(params.learner, n_way, image_size, device)
        self.theta = self._initial_theta(pool, n_way)
        self.dataset = DynamicDataset(
            pool, n_shot + n_query, self._stream("synthetic images"), device
        )
        self.switch = GradientSwitch(budget.curriculum_start, params.patience)
        self.feedback = False  # positive: the next update of D is adversarial
        self._image_optimizer = torch.optim.Adam(self.dataset.images, params.inversion_lr)
        self._theta_optimizer = torch.optim.Adam(list(self.theta.values()), params.outer_lr)

        compiled = compiler(params.compile, budget.n_iterations, device)
        losses: dict[tuple[str, int, int], TeacherLoss] = {}
        for info in (teacher.info for teacher in pool):
            key = (info.architecture, info.n_outputs, info.image_size)
            if key not in losses:
                losses[key] = compiled(teacher_loss(*key, params.weights))
        self._teachers = [
            (_state(t), losses[t.info.architecture, t.info.n_outputs, t.info.image_size])
            for t in pool
        ]
        self._outer: Callable[[Theta, Episode], Outer] = compiled(
            lambda theta, episode: outer_loss(
                self._learner, theta, episode, params.inner_lr, params.inner_steps
            )
        )

    # --- one iteration ------------------------------------------------------------------------

    def step(self, t: int) -> Record:
        """Iteration t, counted from 0: update D, then theta, then the switch."""
        record = self._update_images(t)
        record |= self._update_learner(t)
        if self._curriculum.curriculum_weight > 0:
            self.feedback = self.switch.observe(t, record["outer_accuracy"])
        return record

    def _update_images(self, t: int) -> Record:
        self._image_optimizer.zero_grad()
        rolls = torch.randint(
            -self._params.max_roll,
            self._params.max_roll + 1,
            (len(self._teachers), 2),
            generator=self._stream("roll", t),
        ).tolist()
        terms = []
        for (state, loss), images, labels, roll in zip(
            self._teachers, self.dataset.images, self.dataset.labels, rolls, strict=True
        ):
            rolled = channels_last(torch.roll(images, roll, (2, 3)))
            losses = loss(state, rolled, labels)
            losses.total.backward()
            terms.append(torch.stack([term.detach() for term in losses]))
        record = _named(torch.stack(terms).mean(0), InversionLoss._fields, prefix="inversion_")
        record["adversarial_loss"] = self._add_adversarial_gradient(t) if self.feedback else 0.0
        record["feedback"] = float(self.feedback)
        self._image_optimizer.step()
        return record

    def _add_adversarial_gradient(self, t: int) -> float:
        """Add the gradient of -lambda * L_outer with respect to D; theta stays fixed."""
        episode = self.dataset.episode(
            *self._shape, self._stream("adversarial episode", t), detach=False
        )
        theta = {name: p.detach() for name, p in self.theta.items()}
        outer = self._outer(theta, episode)
        (-self._curriculum.curriculum_weight * outer.loss).backward()
        return float(outer.loss.detach())

    def _update_learner(self, t: int) -> Record:
        self._theta_optimizer.zero_grad()
        outers = []
        for index in range(self._params.episodes_per_step):
            stream = self._stream("episode", t, index)
            outer = self._outer(self.theta, self.dataset.episode(*self._shape, stream, detach=True))
            outer.loss.backward()  # gradients add up: the losses are summed
            outers.append(torch.stack([outer.loss.detach(), outer.accuracy]))
        self._theta_optimizer.step()
        return _named(torch.stack(outers).mean(0), Outer._fields, prefix="outer_")

    # --- the start ----------------------------------------------------------------------------

    def _initial_theta(self, pool: Sequence[Teacher], n_way: int) -> Theta:
        """The pool's average, head included (SS), or freshly drawn parameters [C]."""
        if self._params.start == "random":
            theta = initial_theta(
                self._params.learner,
                n_way,
                pool[0].info.image_size,
                self._stream("initialisation"),
            )
        else:
            theta = average(pool, self._params.learner, n_way)
        return {name: p.to(self._device).requires_grad_() for name, p in theta.items()}

    def _stream(self, *purpose: str | int) -> torch.Generator:
        return generator(self._seed, "meta_train", *purpose)

    # --- what is kept -------------------------------------------------------------------------

    def progress(self, records: Records) -> dict[str, float | str]:
        """Means of the last twenty iterations, and the curriculum's state."""
        recent = {name: sum(values[-20:]) / len(values[-20:]) for name, values in records.items()}
        return {
            "inversion": recent["inversion_total"],
            "outer": recent["outer_loss"],
            "accuracy": f"{100 * recent['outer_accuracy']:.1f} %",
            "switches": f"{sum(records['feedback']):.0f}",
        }

    def snapshot(self) -> Theta:
        return {name: p.detach() for name, p in self.theta.items()}

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        images = [x.detach() for x in self.dataset.images]
        return list(zip(images, self.dataset.labels, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors."""
        switch = [self.switch.best, self.switch.stale, self.feedback]
        tensors = {"switch": torch.tensor(switch, dtype=torch.float64)}
        for name, optimizer, parameters in self._optimized():
            for i, p in enumerate(parameters):
                tensors[f"{name}.{i}"] = p.detach()
                for key, value in optimizer.state[p].items():
                    tensors[f"{name}.{i}.{key}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        best, stale, feedback = tensors["switch"].tolist()
        self.switch.best, self.switch.stale = best, int(stale)
        self.feedback = bool(feedback)
        with torch.no_grad():
            for name, optimizer, parameters in self._optimized():
                for i, p in enumerate(parameters):
                    prefix = f"{name}.{i}"
                    p.copy_(tensors[prefix])
                    optimizer.state[p] = {
                        key: tensors[f"{prefix}.{key}"].clone()
                        if key == "step"
                        else torch.empty_like(p).copy_(tensors[f"{prefix}.{key}"])
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }

    def _optimized(self) -> list[tuple[str, torch.optim.Optimizer, list[Tensor]]]:
        return [
            ("images", self._image_optimizer, self.dataset.images),
            ("theta", self._theta_optimizer, list(self.theta.values())),
        ]


def average(pool: Sequence[Teacher], architecture: str, n_way: int) -> Theta:
    """Parameter mean of the pool, head included (METHODS 1.2; the baseline "Average").

    Raises BadInput if a teacher differs in architecture or head.
    """
    for i, teacher in enumerate(pool):
        found = (teacher.info.architecture, teacher.info.n_outputs)
        if found != (architecture, n_way):
            raise BadInput(
                f"start = 'average': teacher {i} is a {found[0]} with {found[1]} outputs, the"
                f" learner a {architecture} with {n_way}; allowed for this pool: random"
            )
    states = [dict(teacher.net.named_parameters()) for teacher in pool]
    return {
        name: channels_last(torch.stack([state[name].detach() for state in states]).mean(0))
        for name in states[0]
    }


def _state(teacher: Teacher) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    named = {**dict(teacher.net.named_parameters()), **dict(teacher.net.named_buffers())}
    return {name: channels_last(t.detach()) for name, t in named.items()}


def _named(values: Tensor, names: Sequence[str], prefix: str) -> Record:
    return {prefix + name: value for name, value in zip(names, values.tolist(), strict=True)}
