"""Ordinary meta-training on real meta-training images (METHODS 1.6: MAML-dagger; the ceilings).

The same learner, outer loop and episode shapes as episode inversion; the images are real, and the
learner starts from a draw.

Shapes: class i has images[i], uint8 (n_i, h, w, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.compiling import compiler
from stages.common.dataset import View
from stages.common.episodes import Episode, build_episode, sample_index
from stages.common.learner import Learner, Theta, initial_theta
from stages.common.loop import Records, recent
from stages.common.meta_learners import OuterLoop, adam_state, load_adam_state, outer_loss
from stages.common.seeds import generator
from stages.data_based.params import RealMetaTraining


def subset(images: Sequence[Tensor], n_per_class: int, seed: int) -> list[Tensor]:
    """`n_per_class` images of each class, drawn once: the only real images MAML-dagger sees."""
    return [
        x[torch.randperm(len(x), generator=generator(seed, "data_based", "subset", i))][
            :n_per_class
        ]
        for i, x in enumerate(images)
    ]


class RealRun:
    """The state of one meta-training run on real episodes and its `step`."""

    distilled = None

    def __init__(
        self,
        images: Sequence[Tensor],
        view: View,
        architecture: str,
        params: RealMetaTraining,
        *,
        compile_wish: str,
        n_iterations: int,
        n_way: int,
        n_shot: int,
        n_query: int,
        seed: int,
        device: str,
    ) -> None:
        self.architecture, self.meta_learner = architecture, params.meta_learner
        self._images, self._view, self._params = images, view, params
        self._shape = (n_way, n_shot, n_query)
        self._seed, self._device = seed, device
        stream = generator(seed, "data_based", "initialisation")
        start = initial_theta(architecture, n_way, view.image_size, stream)
        learner = Learner(architecture, n_way, view.image_size, device)
        compiled = compiler(compile_wish, n_iterations * params.episodes_per_step, device)
        loss = compiled(
            lambda theta, episode: outer_loss(
                self.meta_learner, learner, theta, episode, params.inner_lr, params.inner_steps
            )
        )
        theta = {name: p.to(device) for name, p in start.items()}
        self.outer = OuterLoop(theta, loss, params.outer_lr)

    def step(self, t: int) -> dict[str, float]:
        """Iteration t, from 0: one outer step on freshly drawn real episodes."""
        return self.outer.step(self._episode(t, i) for i in range(self._params.episodes_per_step))

    def _episode(self, t: int, i: int) -> Episode:
        sizes = [len(x) for x in self._images]
        stream = generator(self._seed, "data_based", "episode", t, i)
        return build_episode(sample_index(sizes, *self._shape, stream), self._fetch)

    def _fetch(self, class_position: int, positions: Tensor) -> Tensor:
        pixels = self._images[class_position][positions].to(self._device)
        return channels_last(self._view.of(pixels))

    def progress(self, records: Records) -> dict[str, float | str]:
        return {
            "outer": recent(records, "outer_loss"),
            "accuracy": f"{100 * recent(records, 'outer_accuracy'):.1f} %",
        }

    def snapshot(self) -> Theta:
        return self.outer.snapshot()

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        return []

    def state(self) -> dict[str, Tensor]:
        return adam_state({"theta": self.outer.optimizer})

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        load_adam_state({"theta": self.outer.optimizer}, tensors)
