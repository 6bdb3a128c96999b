"""EI and ECI: episode (curriculum) inversion, PURER (CVPR 2023), section 4.2 and algorithm 1.

One iteration, with synthetic images D, learner theta, teachers f_i:

    1. D     <- Adam step on  sum_i L_inv(f_i; D_i)  - lambda * L_outer(theta; D)   (eq. 2, 6)
                the second term only when the Gradient Switch is on (ECI), on one fresh episode
    2. theta <- Adam step on  sum over episodes of L_outer(theta; episode)          (eq. 1)
                L_outer of MAML, or of another meta-learner (stages/common/meta_learners.py)
    3. the switch observes the mean accuracy of these episodes                      (eq. 5)

EI is ECI with lambda = 0. All teachers weigh the same (METHODS 1.1 on the released program). Where
they are many or heavy, each iteration inverts a drawn sample of them (teachers_per_step); an
adversarial step inverts the teachers of its episode too, so that no image moves by the second term
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.compiling import compiler
from stages.common.inversion import InversionLoss
from stages.common.learner import Learner, Theta
from stages.common.loop import Records, recent
from stages.common.meta_learners import OuterLoop, adam_state, load_adam_state, outer_loss
from stages.common.pool import Teacher
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.errors import BadInput
from stages.meta_train.curriculum import GradientSwitch
from stages.meta_train.methods import Setting
from stages.meta_train.params import Curriculum, EpisodeInversion, NoCurriculum
from stages.meta_train.starts import STARTS
from stages.meta_train.synthetic import DynamicDataset

P = ParamSpec("P")
R = TypeVar("R")
Record = dict[str, float]


class EpisodeInversionRun:
    """The state of one meta-training run and its `step`.

    Every random draw of iteration t comes from a stream named by t, so `load_state` followed by
    the remaining steps gives the bytes of an uninterrupted run.
    """

    distilled = None

    def __init__(
        self,
        pool: Sequence[Teacher],
        params: EpisodeInversion,
        own: Curriculum | NoCurriculum,
        setting: Setting,
    ) -> None:
        self._params, self._own, self._setting = params, own, setting
        self.architecture, self.meta_learner = setting.architecture, own.meta_learner
        self._shape = (setting.n_way, setting.n_shot, setting.n_query)
        n_classes = sum(len(teacher.info.class_ids) for teacher in pool)
        if setting.n_way > n_classes:
            raise BadInput(
                f"n_way = {setting.n_way}: the {len(pool)} teachers to learn from know only"
                f" {n_classes} classes"
            )
        self.dataset = DynamicDataset(
            pool,
            setting.n_shot + setting.n_query,
            max(params.max_classes, setting.n_way),
            setting.view,
            self._stream("synthetic images"),
            setting.device,
        )
        wish = setting.scenario.teachers_per_step
        self._per_step = len(pool) if wish == "all" else min(wish, len(pool))
        self._teachers = teacher_losses(
            pool, params.weights, "float32", self._teacher_compiler(len(pool))
        )
        self.outer = self._outer_loop(pool)
        self.switch = GradientSwitch(setting.budget.curriculum_start, params.patience)
        self.feedback = False  # positive: the next update of D is adversarial
        self._image_optimizer = torch.optim.Adam(self.dataset.images, params.inversion_lr)

    # --- one iteration ------------------------------------------------------------------------

    def step(self, t: int) -> Record:
        """Iteration t, counted from 0: update D, then theta, then the switch."""
        record = self._update_images(t)
        record |= self._update_learner(t)
        if self._own.curriculum_weight > 0:
            self.feedback = self.switch.observe(t, record["outer_accuracy"])
        return record

    def _update_images(self, t: int) -> Record:
        self._image_optimizer.zero_grad()  # Adam passes over images without a gradient
        adversarial_loss = self._add_adversarial_gradient(t) if self.feedback else 0.0
        challenged = {i for i, x in enumerate(self.dataset.images) if x.grad is not None}
        terms = []
        for i, roll in self._drawn_teachers(t, challenged):
            state, loss = self._teachers[i]
            rolled = channels_last(torch.roll(self.dataset.images[i], roll, (2, 3)))
            losses = loss(state, rolled, self.dataset.labels[i])
            losses.total.backward()
            terms.append(torch.stack([term.detach() for term in losses]))
        record = _named(torch.stack(terms).mean(0), InversionLoss._fields, prefix="inversion_")
        record["adversarial_loss"] = adversarial_loss
        record["feedback"] = float(self.feedback)
        self._image_optimizer.step()
        return record

    def _drawn_teachers(self, t: int, challenged: set[int]) -> list[tuple[int, list[int]]]:
        """The teachers of iteration t, each with its roll (dy, dx): all of them, or a sample and
        those whose images the adversarial step moves."""
        n, reach = len(self._teachers), self._params.max_roll
        rolls = torch.randint(-reach, reach + 1, (n, 2), generator=self._stream("roll", t))
        drawn = list(range(n))
        if self._per_step < n:
            order = torch.randperm(n, generator=self._stream("teachers", t))
            drawn = sorted(challenged.union(order[: self._per_step].tolist()))
        return [(i, rolls[i].tolist()) for i in drawn]

    def _add_adversarial_gradient(self, t: int) -> float:
        """Add the gradient of -lambda * L_outer with respect to D; theta stays fixed."""
        episode = self.dataset.episode(
            *self._shape, self._stream("adversarial episode", t), detach=False
        )
        outer = self.outer.loss(self.outer.snapshot(), episode)
        (-self._own.curriculum_weight * outer.loss).backward()
        return float(outer.loss.detach())

    def _update_learner(self, t: int) -> Record:
        streams = (self._stream("episode", t, i) for i in range(self._params.episodes_per_step))
        return self.outer.step(self.dataset.episode(*self._shape, s, detach=True) for s in streams)

    # --- the start ----------------------------------------------------------------------------

    def _teacher_compiler(self, pool_size: int) -> Callable[[int], Callable[..., Any]]:
        """Compiles a loss that serves n of the teachers."""
        calls = self._setting.budget.n_iterations * self._per_step
        return lambda n: self._compiler(calls * n // pool_size)

    def _outer_loop(self, pool: Sequence[Teacher]) -> OuterLoop:
        """The learner at its start: the pool's average, head included (SS), drawn [C], or given."""
        setting, params = self._setting, self._params
        name = "distilled" if setting.start else setting.scenario.start
        start = STARTS[name](pool, setting)
        theta = {name: p.to(setting.device) for name, p in start.items()}
        learner = Learner(
            setting.architecture, setting.n_way, setting.view.image_size, setting.device
        )
        compiled = self._compiler(setting.budget.n_iterations * params.episodes_per_step)
        loss = compiled(
            lambda theta, episode: outer_loss(
                self.meta_learner, learner, theta, episode, params.inner_lr, params.inner_steps
            )
        )
        return OuterLoop(theta, loss, params.outer_lr)

    def _compiler(self, n_calls: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
        return compiler(self._params.compile, n_calls, self._setting.device)

    def _stream(self, *purpose: str | int) -> torch.Generator:
        return generator(self._setting.seed, "meta_train", *purpose)

    # --- what is kept -------------------------------------------------------------------------

    def progress(self, records: Records) -> dict[str, float | str]:
        """Means of the last twenty iterations, and the curriculum's state."""
        return {
            "inversion": recent(records, "inversion_total"),
            "outer": recent(records, "outer_loss"),
            "accuracy": f"{100 * recent(records, 'outer_accuracy'):.1f} %",
            "switches": f"{sum(records['feedback']):.0f}",
        }

    def snapshot(self) -> Theta:
        return self.outer.snapshot()

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        images = [x.detach() for x in self.dataset.images]
        return list(zip(images, self.dataset.labels, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors."""
        switch = [self.switch.best, self.switch.stale, self.feedback]
        return {"switch": torch.tensor(switch, dtype=torch.float64)} | adam_state(self._adams())

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        best, stale, feedback = tensors["switch"].tolist()
        self.switch.best, self.switch.stale = best, int(stale)
        self.feedback = bool(feedback)
        load_adam_state(self._adams(), tensors)

    def _adams(self) -> dict[str, torch.optim.Optimizer]:
        return {"images": self._image_optimizer, "theta": self.outer.optimizer}


def _named(values: Tensor, names: Sequence[str], prefix: str) -> Record:
    return {prefix + name: value for name, value in zip(names, values.tolist(), strict=True)}
