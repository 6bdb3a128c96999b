"""One small network that carries the whole pool, learned without any data (METHODS 5).

1. images of every teacher's classes, inverted from procedural ones   (natural_inversion.py)
2. the bank: these, procedural images, mixtures; what teachers say of them         (bank.py)
3. the student learns what they say                                   (distillation_loss.py)
4. its readout weighs what tells classes apart                           (readout_metric.py)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stages.common.architectures import at, channels_last
from stages.common.compiling import compiler
from stages.common.distilled import Distilled, DistilledForm, ReadoutMetric
from stages.common.files import load_tensors, save_tensors
from stages.common.loop import Records, recent
from stages.common.meta_learners import adam_state, load_adam_state
from stages.common.natural_inversion import Labelled, invert, n_batches
from stages.common.pool import Teacher
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.progress import Reporter
from stages.meta_train.bank import BATCH, Bank, fill, plain_images
from stages.meta_train.distillation_loss import Terms, class_numbers, distillation_terms
from stages.meta_train.methods import Setting
from stages.meta_train.params import Distill, Distillation, DistillationBudget
from stages.meta_train.readout_metric import readout_metric

SHOWN = 20  # inverted images of a class that make the metric, and are kept with the learner
DIRECTIONS = 128  # that the readout's metric changes: with all 577 it was the same to 0.02 points
WARM_UP = 0.15  # share of the steps in which the learning rate rises


def learning_rate(t: int, n_steps: int, highest: float) -> float:
    """Linear up to `highest`, then down along a cosine to zero (one cycle)."""
    rise = max(1, int(WARM_UP * n_steps))
    if t < rise:
        return highest * (t + 1) / rise
    return highest * (1 + math.cos(math.pi * (t - rise) / (n_steps - rise))) / 2


class DistillRun:
    """The student and its optimizer; every batch of step t is drawn from a stream named by t.

    What comes before the first step (inverted images, the bank) is kept in the folder of unfinished
    work, so that an interrupted run finds it there.
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
        self._heads = [teacher.info.n_outputs for teacher in pool]
        self._inverted = [] if own.inversion == "none" else self._invert_all()
        self._bank = self._filled_bank()
        self.distilled = DistilledForm(
            heads=tuple(self._heads),
            n_components=self._bank.features.shape[1],
            readout=tuple(shared.readout.split("+")),
            mirror=shared.mirror,
            n_directions=DIRECTIONS if self._inverted else 0,
        )
        self._student = self._drawn_student()
        self._class_of = class_numbers(pool).to(setting.device)
        trained = [p for name, p in self._student.named_parameters() if not name.startswith("head")]
        self._optimizer = torch.optim.AdamW(trained, shared.lr, weight_decay=shared.weight_decay)

    # --- one iteration ------------------------------------------------------------------------

    def step(self, t: int) -> dict[str, float]:
        """Iteration t, from 0: one step of AdamW on one batch of the bank."""
        shared, weights, bank = self._shared, self._own.weights, self._bank
        drawn = torch.randint(
            len(bank.images), (shared.batch_size,), generator=self._stream("batch", t)
        )
        x = self._moved(self._setting.view.of(bank.images[drawn].to(self._setting.device)), t)
        known = (tensor[drawn].to(x.device) for tensor in bank[1:])
        terms = self._terms(x, *known)
        loss = (
            weights.kl * terms.kl
            + weights.features * terms.features
            + weights.labels * terms.labels
        )
        self._optimizer.param_groups[0]["lr"] = learning_rate(
            t, self._budget.n_iterations, shared.lr
        )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        values = torch.stack([term.detach() for term in (loss, *terms)]).tolist()
        return dict(zip(("loss", *Terms._fields), values, strict=True))

    def _moved(self, x: Tensor, t: int) -> Tensor:
        """Images mirrored or not, and rolled by a pixel or two: what the teachers say stays.

        So the student learns what a teacher would say on average over such changes.
        """
        stream, reach = self._stream("moves", t), self._shared.max_roll
        mirrored = torch.rand(len(x), 1, 1, 1, generator=stream).to(x.device) < 0.5
        roll = torch.randint(-reach, reach + 1, (2,), generator=stream).tolist()
        return channels_last(torch.where(mirrored, x.flip(3), x).roll(roll, (2, 3)))

    def _terms(self, x: Tensor, logits: Tensor, features: Tensor, labels: Tensor) -> Terms:
        with at(self._shared.precision, x.device.type):
            output = self._student.body(x)
            projected = self._student.projection(output.features)
        return distillation_terms(
            output.logits.float(),
            projected.float(),
            logits.float(),
            features.float(),
            labels,
            self._heads,
            self._class_of,
            self._shared.temperature,
        )

    # --- the start ----------------------------------------------------------------------------

    def _invert_all(self) -> list[Labelled]:
        """Every teacher's images, each teacher's in a file of its own as soon as they are made."""
        n_images = self._budget.inverted_images
        steps = n_batches(n_images) * self._budget.inversion_steps

        def compiled(n_teachers: int) -> Callable[..., Callable[..., object]]:
            return compiler(self._shared.compile, n_teachers * steps, self._setting.device)

        inversion = self._shared.inversion
        losses = teacher_losses(self._pool, inversion.weights, inversion.precision, compiled)
        images = []
        with Reporter("inversion", steps * len(self._pool)) as report:
            for i, (teacher, (state, loss)) in enumerate(zip(self._pool, losses, strict=True)):
                path = self._setting.folder / f"inverted-{i:02d}.safetensors"
                if not path.exists():
                    made = invert(
                        teacher.info,
                        state,
                        loss,
                        self._wanted(i),
                        self._own.inversion,
                        inversion,
                        self._budget.inversion_steps,
                        self._stream("inversion", i),
                        self._setting.device,
                        functools.partial(_further, report, i * steps),
                    )
                    save_tensors(path, made._asdict(), {})
                images.append(Labelled(**load_tensors(path)[0]))
                report((i + 1) * steps, teacher=i + 1)
        return images

    def _wanted(self, i: int) -> Tensor:
        """Labels of teacher i's images: its classes in turn, or a draw of them if they are many."""
        n_images, n_classes = self._budget.inverted_images, len(self._pool[i].info.class_ids)
        if n_images < n_classes:
            return torch.randperm(n_classes, generator=self._stream("classes", i))[:n_images]
        return torch.arange(n_images) % n_classes

    def _filled_bank(self) -> Bank:
        path = self._setting.folder / "bank.safetensors"
        if not path.exists():
            canvas = max(teacher.info.image_size for teacher in self._pool)
            n_images = self._budget.procedural_images if self._own.procedural else 0
            drawn = procedural_images(n_images, canvas, self._stream("procedural images"))
            plain, origin = plain_images(drawn, self._inverted, canvas)
            with Reporter("bank", 3 * len(plain)) as report:
                bank = fill(
                    self._pool,
                    plain,
                    origin,
                    self._setting.view.image_size,
                    self._shared.n_components,
                    self._shared.precision,
                    self._stream("bank"),
                    self._setting.device,
                    report,
                )
            save_tensors(path, bank._asdict(), {})
            del bank, plain, drawn  # gigabytes at 224 pixels
        return Bank(**load_tensors(path)[0])

    def _drawn_student(self) -> Distilled:
        size = self._setting.view.image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._stream("initialisation").initial_seed())
            student = Distilled(self.architecture, self.distilled, self._setting.n_way, size)
        layout = torch.channels_last
        return student.to(self._setting.device, memory_format=layout).train()  # type: ignore[call-overload, no-any-return]

    def _stream(self, *purpose: str | int) -> torch.Generator:
        return generator(self._setting.seed, "meta_train", "distill", *purpose)

    # --- what is kept -------------------------------------------------------------------------

    def progress(self, records: Records) -> dict[str, float | str]:
        return {name: recent(records, name) for name in Terms._fields}

    def snapshot(self) -> dict[str, Tensor]:
        state = {name: t.detach().clone() for name, t in self._student.state_dict().items()}
        if self._inverted:
            state |= self._metric(self._shown())._asdict()
        return state

    def _metric(self, shown: Sequence[Labelled]) -> ReadoutMetric:
        """Of the student as it is, by the classes of the images shown."""
        first = torch.tensor([0, *self._heads]).cumsum(0).tolist()
        outputs = torch.cat([part.labels + n for part, n in zip(shown, first, strict=False)])
        labels = self._class_of[outputs.to(self._setting.device)]
        self._student.eval()
        with torch.no_grad():
            readouts = [
                self._student(self._setting.view.of(images.to(self._setting.device))).features
                for part in shown
                for images in part.images.split(BATCH)
            ]
        self._student.train()
        return readout_metric(
            torch.cat(readouts), labels, self._shared.readout_metric, self.distilled.n_directions
        )

    def _shown(self) -> list[Labelled]:
        """The first of the inverted images of every class, in order of their labels."""
        found = []
        for teacher, (images, labels) in zip(self._pool, self._inverted, strict=False):
            order = labels[: SHOWN * len(teacher.info.class_ids)].argsort(stable=True)
            found.append(Labelled(images[order], labels[order]))
        return found

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        """The first of the inverted images, as their teachers see them."""
        return [
            (teacher.info.normalisation.apply(images), labels)
            for teacher, (images, labels) in zip(self._pool, self._shown(), strict=False)
        ]

    def state(self) -> dict[str, Tensor]:
        buffers = {f"buffer.{name}": b for name, b in self._student.named_buffers()}
        return buffers | adam_state({"student": self._optimizer})

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for name, buffer in self._student.named_buffers():
            buffer.copy_(tensors[f"buffer.{name}"])
        load_adam_state({"student": self._optimizer}, tensors)


def _further(report: Reporter, before: int, done: int) -> None:
    report(before + done)
