"""The file of a data set (DESIGN 3): written by split, read by pretrain, data_based and meta_test.

Images are uint8, sorted by class name and within a class by content, so that any source of the
same images gives the same bytes. The metadata holds the class names, the three class splits and
how a network should see the images. Where there is no data set, pseudo writes a file in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common.files import metadata_of, open_tensors
from stages.interface.errors import BadInput

Split = Literal["train", "val", "test"]  # of *classes*: meta-train, meta-val, meta-test
# Deviations for which learning rates and weights of model inversion are meant.
MEANT = (0.1, 0.6)


@dataclass(frozen=True)
class Normalisation:
    """Pixel p in [0, 1] is shown to networks as (p - mean) / std, per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, images: Tensor) -> Tensor:
        """uint8 (n, h, w, 3) to float32 (n, 3, h, w), channels-last in memory."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return (pixels - self._column(self.mean, pixels)) / self._column(self.std, pixels)

    def invert(self, x: Tensor) -> Tensor:
        """float (n, 3, h, w) back to uint8 (n, h, w, 3), clamped to valid pixels."""
        pixels = x * self._column(self.std, x) + self._column(self.mean, x)
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def convert(self, x: Tensor, other: Normalisation) -> Tensor:
        """x (n, 3, h, w), normalised by this one, as the other one would have normalised it."""
        if other == self:
            return x
        pixels = x * self._column(self.std, x) + self._column(self.mean, x)
        return (pixels - self._column(other.mean, x)) / self._column(other.std, x)

    def pixel_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What black and white are to a network: (3, 1, 1) each, of x's type and device."""
        low = -self._column(self.mean, x) / self._column(self.std, x)
        return low, low + 1 / self._column(self.std, x)

    @property
    def for_inversion(self) -> Normalisation:
        """The one in which a network of this one is inverted: itself, or ImageNet's.

        ImageNet's where the scale is quite another (pixels of 0 to 255 have deviations of 1/255):
        an Adam step of the inversion is a share of the deviation.
        """
        low, high = MEANT
        return self if all(low <= s <= high for s in self.std) else IMAGENET

    @staticmethod
    def _column(values: tuple[float, float, float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class View:
    """How a network wants to see images: side in pixels, and normalisation."""

    image_size: int
    normalisation: Normalisation

    def of(self, images: Tensor) -> Tensor:
        """uint8 (n, h, w, 3) of any size to this network's input (n, 3, size, size)."""
        return resized(self.normalisation.apply(images), self.image_size)

    def of_another(self, x: Tensor, normalisation: Normalisation) -> Tensor:
        """Another network's input x (n, 3, h, w) as this network's; differentiable."""
        return resized(normalisation.convert(x, self.normalisation), self.image_size)


def resized(x: Tensor, size: int) -> Tensor:
    """(n, 3, h, w) to (n, 3, size, size): bilinear, smoothed first where it shrinks."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True)
class ClassImages:
    """The images of one split: class i is `images[i]`, uint8 (n_i, h, w, 3)."""

    dataset: str
    class_ids: list[int]  # position of the class in the data set's sorted class names
    class_names: list[str]
    images: list[Tensor]
    image_size: int
    normalisation: Normalisation


def load_splits(paths: Sequence[Path], split: Split) -> list[ClassImages]:
    """One split of each of several data sets (MH); a path given twice is read once.

    Raises BadInput as `load_split`, and for a class name of any split that two data sets share:
    a teacher of the one could know an unseen class of the other.
    """
    loaded = {path: load_split(path, split) for path in dict.fromkeys(paths)}
    owner: dict[str, str] = {}
    for path, data in loaded.items():
        with open_tensors(path) as file:
            for name in metadata_of(file, path)["class_names"]:
                if name in owner:
                    raise BadInput(
                        f"class {name!r} is in {owner[name]} and in {data.dataset}: data sets of"
                        " one pool must not share a class name"
                    )
                owner[name] = data.dataset
    return list(loaded.values())


def load_split(path: Path, split: Split) -> ClassImages:
    """The classes of one split of a canonical file; only their images are read.

    Raises BadInput for a file that is missing or not a canonical data set.
    """
    with open_tensors(path) as file:
        metadata = metadata_of(file, path)
        if "splits" not in metadata:
            raise BadInput(f"{path}: not a canonical data set (no class splits in its metadata)")
        names: list[str] = metadata["class_names"]
        wanted = sorted(metadata["splits"][split])
        ids = [names.index(name) for name in wanted]
        return ClassImages(
            dataset=metadata["dataset"],
            class_ids=ids,
            class_names=wanted,
            images=[_images_of(file, metadata, split, i) for i in ids],
            image_size=metadata["image_size"],
            normalisation=Normalisation(tuple(metadata["mean"]), tuple(metadata["std"])),
        )


def _images_of(file: Any, metadata: Mapping[str, Any], split: Split, i: int) -> Tensor:
    """Those of class i, (n, h, w, 3): of one size they stand in one tensor, else in one a class."""
    if starts := metadata.get("class_starts"):
        images: Tensor = file.get_slice("images")[starts[i] : starts[i + 1]]
        return images
    own: Tensor = file.get_tensor(class_tensor(split, i))
    return own


def class_tensor(split: Split, i: int) -> str:
    """The name of the tensor with class i of the split, in a file of images of several sizes."""
    return f"{split}-{i:04d}"
