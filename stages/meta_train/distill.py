"""One small network that carries the whole pool, learned without any data (METHODS 5.1).

1. images of every teacher's classes, inverted from procedural ones   (natural_inversion.py)
2. the bank: these, procedural images, mixtures; what teachers say of them         (bank.py)
3. the student learns what they say,                                  (distillation_loss.py)
   and of which class images are, and how they were turned                        (turns.py)
4. its readout weighs what tells classes apart                           (readout_metric.py)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from stages.common.architectures import at, build, channels_last
from stages.common.distilled import Distilled, DistilledForm, ReadoutMetric
from stages.common.loop import Records, recent
from stages.common.meta_learners import adam_state, load_adam_state
from stages.common.natural_inversion import Labelled
from stages.common.pool import Teacher
from stages.meta_train.bank import batch_of, output_numbers
from stages.meta_train.distillation_loss import class_numbers, distillation_terms
from stages.meta_train.methods import Setting
from stages.meta_train.params import Distill, Distillation, DistillationBudget, DistillWeights
from stages.meta_train.preparation import filled_bank, inverted_images, stream
from stages.meta_train.readout_metric import readout_metric, views
from stages.meta_train.turns import Turns, turned, turns_loss

SHOWN = 20  # inverted images of a class that are kept with the learner
SHOWN_CLASSES = 20  # of a teacher, the first: of a thousand the images would fill the memory
WEIGHING = 100  # of a class that make the metric: with 20 it was 0.2 / 0.4 points worse
DIRECTIONS = 128  # that the readout's metric changes: with all 577 it was the same to 0.02 points
WARM_UP = 0.15  # share of the steps in which the learning rate rises
TURNED = 4  # one turned image for so many others of a batch
LOSS_TERMS = tuple(DistillWeights.model_fields)

M = TypeVar("M", bound=nn.Module)


def learning_rate(t: int, n_steps: int, highest: float) -> float:
    """Linear up to `highest`, then down along a cosine to zero (one cycle)."""
    rise = max(1, int(WARM_UP * n_steps))
    if t < rise:
        return highest * (t + 1) / rise
    return highest * (1 + math.cos(math.pi * (t - rise) / (n_steps - rise))) / 2


class DistillRun:
    """The student and its optimizer; every batch of step t is drawn from a stream named by t.

    What comes before the first step is in preparation.py.
    """

    meta_learner = "distilled"

    def __init__(
        self,
        pool: Sequence[Teacher],
        shared: Distillation,
        own: Distill,
        setting: Setting,
    ) -> None:
        self.architecture = own.architecture
        self._shared, self._own, self._setting, self._pool = shared, own, setting, pool
        self._budget: DistillationBudget = setting.budget
        self._stream = functools.partial(stream, setting.seed)
        self._heads = [teacher.info.n_outputs for teacher in pool]
        build(own.architecture, 1, setting.view.image_size)  # refuses a size before minutes of work
        self._inverted = inverted_images(pool, shared, own, setting)
        self._bank = filled_bank(pool, self._inverted, shared, own, setting)
        self.distilled = DistilledForm(
            heads=tuple(self._heads),
            n_components=self._bank.features.shape[1],
            readout=tuple(own.readout.split("+")),
            mirror=shared.mirror,
            n_directions=DIRECTIONS if own.metric else 0,
        )
        self._class_of = class_numbers(pool).to(setting.device)
        self._student = self._drawn(
            lambda: Distilled(
                own.architecture, self.distilled, setting.n_way, setting.view.image_size
            )
        )
        n_features = self._student.projection.in_features
        self._turns = self._drawn(lambda: Turns(self._classes_to_turn(), n_features), "turns")
        trained = [p for name, p in self._student.named_parameters() if not name.startswith("head")]
        trained += self._turns.parameters()
        self._optimizer = torch.optim.AdamW(trained, shared.lr, weight_decay=shared.weight_decay)

    # --- one iteration ------------------------------------------------------------------------

    def step(self, t: int) -> dict[str, float]:
        """Iteration t, from 0: one step of AdamW on one batch of the bank."""
        shared, weights, bank = self._shared, self._own.weights, self._bank
        drawn = torch.randint(
            len(bank.images), (shared.batch_size,), generator=self._stream("batch", t)
        )
        asked = self._turns.draw(math.ceil(shared.batch_size / TURNED), self._stream("turns", t))
        images = bank.images[torch.cat([drawn, asked.images])].to(self._setting.device)
        x = self._moved(self._setting.view.of(images), t)
        classes, turns = asked.classes.to(x.device), asked.turns.to(x.device)
        x[len(drawn) :] = turned(x[len(drawn) :], turns)
        logits, features, labels = (tensor[drawn].to(x.device) for tensor in bank[1:])
        terms = self._terms(x, logits, features, labels, classes, turns)
        loss = sum(weight * terms[name] for name, weight in weights)
        self._optimizer.param_groups[0]["lr"] = learning_rate(
            t, self._budget.n_iterations, shared.lr
        )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        values = torch.stack([term.detach() for term in (loss, *terms.values())]).tolist()
        return dict(zip(("loss", *terms), values, strict=True))

    def _moved(self, x: Tensor, t: int) -> Tensor:
        """Images mirrored or not, and rolled by a pixel or two: what the teachers say stays.

        So the student learns what a teacher would say on average over such changes.
        """
        stream, reach = self._stream("moves", t), self._shared.max_roll
        mirrored = torch.rand(len(x), 1, 1, 1, generator=stream).to(x.device) < 0.5
        roll = torch.randint(-reach, reach + 1, (2,), generator=stream).tolist()
        return channels_last(torch.where(mirrored, x.flip(3), x).roll(roll, (2, 3)))

    def _terms(
        self,
        x: Tensor,
        logits: Tensor,
        features: Tensor,
        labels: Tensor,
        classes: Tensor,
        turns: Tensor,
    ) -> dict[str, Tensor]:
        """The loss's terms of images x: as many as have `logits`, then turned ones of `classes`."""
        n = len(logits)
        with at(self._shared.precision, x.device.type):
            output = self._student.body(x)
            projected = self._student.projection(output.features[:n])
            told = self._turns(output.features[n:])
        terms = distillation_terms(
            output.logits[:n].float(),
            projected.float(),
            logits.float(),
            features.float(),
            labels,
            self._heads,
            self._class_of,
            self._shared.temperature,
        )
        return {**terms._asdict(), "turns": turns_loss(told.float(), classes, turns)}

    # --- the start ----------------------------------------------------------------------------

    def _classes_to_turn(self) -> Tensor:
        """Of the bank's images (N,), -1 for those that are not to be turned."""
        labels = self._bank.labels
        known = (labels >= 0) & bool(self._own.weights.turns)
        return torch.where(known, self._class_of.cpu()[labels.clamp(min=0)], -1)

    def _drawn(self, make: Callable[[], M], *purpose: str) -> M:
        """A network to be trained, its parameters drawn."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._stream("initialisation", *purpose).initial_seed())
            net = make()
        layout = torch.channels_last
        return net.to(self._setting.device, memory_format=layout).train()  # type: ignore[call-overload, no-any-return]

    # --- what is kept -------------------------------------------------------------------------

    def progress(self, records: Records) -> dict[str, float | str]:
        return {name: recent(records, name) for name in LOSS_TERMS}

    def snapshot(self) -> dict[str, Tensor]:
        state = {name: t.detach().clone() for name, t in self._student.state_dict().items()}
        return state | (self._metric()._asdict() if self._own.metric else {})

    def _metric(self) -> ReadoutMetric:
        """Of the student as it is, by the classes of inverted images, in several views each."""
        chosen, device = self._first(WEIGHING), self._setting.device
        labels = self._class_of[output_numbers(self._pool, chosen).to(device)]
        batch = batch_of(self._setting.view.image_size)
        self._student.eval()
        with torch.no_grad():
            readouts = [
                torch.stack([self._readout(images.to(device)) for images in views(few)])
                for part in chosen
                for few in part.images.split(batch)
            ]
        self._student.train()
        return readout_metric(
            torch.cat(readouts, 1),
            labels,
            self._shared.readout_metric,
            self.distilled.n_directions,
        )

    def _readout(self, images: Tensor) -> Tensor:
        """(n, d) of uint8 images, without the metric."""
        features: Tensor = self._student(self._setting.view.of(images)).features
        return features

    def _first(self, n: int) -> list[Labelled]:
        """The first n inverted images of every class, in order of their labels."""
        found = []
        for teacher, (images, labels) in zip(self._pool, self._inverted, strict=False):
            order = labels[: n * len(teacher.info.class_ids)].argsort(stable=True)
            found.append(Labelled(images[order], labels[order]))
        return found

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        """The first of the inverted images of the first classes, normalised as they were made."""
        kept = []
        for teacher, (images, labels) in zip(self._pool, self._first(SHOWN), strict=False):
            few = torch.isin(labels, labels.unique()[:SHOWN_CLASSES])
            kept.append((teacher.info.inverted_as.apply(images[few]), labels[few]))
        return kept

    def state(self) -> dict[str, Tensor]:
        buffers = {f"buffer.{name}": b for name, b in self._student.named_buffers()}
        return buffers | adam_state({"student": self._optimizer})

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for name, buffer in self._student.named_buffers():
            buffer.copy_(tensors[f"buffer.{name}"])
        load_adam_state({"student": self._optimizer}, tensors)
