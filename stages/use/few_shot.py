"""A learner at work: a few labelled images in, a classifier out.

    learner = load_learner("learner.safetensors")
    classifier = learner.adapt(images, labels)      # paths, PIL images, arrays or tensors
    classifier.predict(others)                      # class names; `others` may be one image alone
    classifier.probabilities(others)                # (n, n_classes)

Images are judged one by one: BatchNorm uses the learner's own statistics where it has them (a
distilled learner), else those of the support images, never those of the other query images.
A prototypical network compares by the Euclidean distance that it was trained with, every other
learner by cosines.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.architectures import batch_moments, channels_last
from stages.common.learner import Learner, LearnerInfo, Theta
from stages.common.learner import load_learner as _load
from stages.common.pool import check_finite
from stages.interface.device import resolve
from stages.interface.errors import BadInput
from stages.use.images import many, stack

BATCH = 64  # images at once: of the whole, only features are kept
# Of the softmax over cosines. Not calibrated: it orders answers by confidence, no more.
TEMPERATURE = 0.1

Images = Any  # whatever `many` of stages/use/images.py takes


def load_learner(path: str | Path, device: str | torch.device = "cpu") -> FewShotLearner:
    """The learner of a file of `purer export`, or of a snapshot of meta_train.

    `device`: cpu, cuda, cuda:1, or auto, which is cuda where there is one.

    Raises BadInput for a file that is missing, truncated, or no learner's, for a learner that
    diverged, and for a device that is not there.
    """
    device = resolve(str(device))
    learner, theta, info = _load(Path(path), device)
    check_finite(theta, Path(path))
    return FewShotLearner(learner, theta, info, device)


class FewShotLearner:
    """A learner and the way it sees images."""

    def __init__(self, learner: Learner, theta: Theta, info: LearnerInfo, device: str) -> None:
        self.info = info
        self._learner, self._theta, self._device = learner, theta, device

    def adapt(self, images: Images, labels: Iterable[Any]) -> Classifier:
        """A classifier by the nearest class mean, from images and the label of each.

        `labels`: names or numbers, also as a tensor or array; of any number of classes, two or
        more, and any number of images of each.

        Raises BadInput if there are not as many labels as images, or only one class.
        """
        images = many(images)
        labels = [_label(label) for label in labels]
        if len(labels) != len(images):
            raise BadInput(f"{len(images)} images and {len(labels)} labels: allowed: one for each")
        classes = list(dict.fromkeys(labels))
        if len(classes) < 2:
            raise BadInput(f"one class only ({classes[0]!r}): allowed: two or more")
        moments = None
        if self._learner.keeps_statistics:
            z = self._features(images, None)
        else:  # one batch, whose statistics later images are normalised with too
            with torch.inference_mode():
                seen = self._learner.forward(self._theta, self._input(images))
                moments, z = batch_moments(seen.bn_inputs), self._compared(seen.features)
        belongs = torch.tensor([[label == name for label in labels] for name in classes]).to(z)
        share = belongs / belongs.sum(1, keepdim=True)
        return Classifier(self, classes, self._compared(share @ z), moments)

    def embed(self, images: Images) -> Tensor:
        """Unit features (n, d), for searching, clustering, or a classifier of one's own.

        Raises BadInput for a learner whose BatchNorm has no statistics of its own: its features
        depend on what else is in the batch.
        """
        if not self._learner.keeps_statistics:
            raise BadInput(
                f"a learner of method {self.info.method} normalises with a batch's statistics, so"
                " an image has no features of its own; allowed: distilled learners"
            )
        return self._features(many(images), None)

    def _input(self, images: list[Any]) -> Tensor:
        pixels = stack(images, self.info.image_size).to(self._device)
        return channels_last(self.info.view.of(pixels))

    def _features(self, images: list[Any], moments: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Features (n, d) as they are compared, read and made `BATCH` images at a time."""
        with torch.no_grad():  # not inference_mode: what embed gives may be trained on
            parts = [
                self._learner.forward(
                    self._theta, self._input(images[i : i + BATCH]), moments
                ).features
                for i in range(0, len(images), BATCH)
            ]
            return self._compared(torch.cat(parts))

    def _compared(self, features: Tensor) -> Tensor:
        return features if self.info.euclidean else F.normalize(features, dim=1)


def _label(label: Any) -> Any:
    """A name or number; of an element of a tensor, its value: no two tensors are one to a dict."""
    value = label.tolist() if hasattr(label, "tolist") else label
    if isinstance(value, list):
        raise BadInput(f"a label {value}: allowed: one name or number an image")
    return value


class Classifier:
    """A learner adapted to a task. `means`: class means (n_classes, d); for cosines, unit ones."""

    def __init__(
        self,
        learner: FewShotLearner,
        classes: list[Any],
        means: Tensor,
        moments: list[tuple[Tensor, Tensor]] | None,
    ) -> None:
        self.classes, self.means = classes, means
        self._learner, self._moments = learner, moments

    def probabilities(self, images: Images) -> Tensor:
        """(n, n_classes): a softmax over the cosines to the class means; rows sum to 1.

        Of a prototypical network over minus the squared distances (Snell et al., 2017, equation 2).
        """
        z = self._learner._features(many(images), self._moments)
        if self._learner.info.euclidean:
            return (-torch.cdist(z, self.means).square()).softmax(1)
        return (z @ self.means.T / TEMPERATURE).softmax(1)

    def predict(self, images: Images) -> list[Any]:
        """The most probable class of each image."""
        return [self.classes[i] for i in self.probabilities(images).argmax(1).tolist()]
