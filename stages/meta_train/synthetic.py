"""The dynamic dataset: synthetic images of every class of every teacher (PURER, section 4.2).

Shapes: teacher i has k_i classes with n_per_class images each, in the teacher's own size and
normalised input space (`TeacherInfo.inverted_as`), never clamped (METHODS 1.1). Episodes show them
as the learner sees images. A class that two teachers know is two pseudo classes, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.common.architectures import channels_last
from stages.common.dataset import View
from stages.common.episodes import Episode, build_episode, sample_index
from stages.common.pool import Teacher


class DynamicDataset:
    """`images[i]`: (k_i * n_per_class, 3, h_i, w_i), grouped by class; `labels[i]` likewise.

    Of a teacher with more than `max_classes` classes a draw takes part: a step shows a teacher all
    its images at once.
    """

    def __init__(
        self,
        pool: Sequence[Teacher],
        n_per_class: int,
        max_classes: int,
        view: View,
        generator: torch.Generator,
        device: str,
    ) -> None:
        self.n_per_class = n_per_class
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []
        self._view = view
        self._normalisations = [teacher.info.inverted_as for teacher in pool]
        self._classes: list[tuple[int, int]] = []  # (teacher, place among its classes here)
        for i, teacher in enumerate(pool):
            known, size = len(teacher.info.class_ids), teacher.info.image_size
            chosen = torch.arange(known)
            if known > max_classes:
                chosen = torch.randperm(known, generator=generator)[:max_classes].sort().values
            k = len(chosen)
            noise = torch.randn(k * n_per_class, 3, size, size, generator=generator)
            self.images.append(channels_last(noise.to(device)).requires_grad_())
            self.labels.append(chosen.to(device).repeat_interleave(n_per_class))
            self._classes += [(i, place) for place in range(k)]

    def episode(
        self, n_way: int, n_shot: int, n_query: int, generator: torch.Generator, *, detach: bool
    ) -> Episode:
        """A pseudo episode: classes of *all* teachers mixed, all their images used.

        With `detach` False, gradients of a function of the episode flow to `images`.

        Raises ValueError if there are fewer classes or images than asked for.
        """
        sizes = [self.n_per_class] * len(self._classes)
        index = sample_index(sizes, n_way, n_shot, n_query, generator)

        def fetch(pseudo_class: int, positions: Tensor) -> Tensor:
            teacher, place = self._classes[pseudo_class]
            images = self.images[teacher]
            images = images.detach() if detach else images
            chosen = images[(place * self.n_per_class + positions).to(images.device)]
            return self._view.of_another(chosen, self._normalisations[teacher])

        episode = build_episode(index, fetch)
        return episode._replace(
            support_x=channels_last(episode.support_x),
            query_x=channels_last(episode.query_x),
        )
