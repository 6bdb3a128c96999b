"""The data sets: what each must hold and how a network sees it. A new one is a row here.

Class splits are data: `classes/<dataset>/{train,val,test}.txt`.
CIFAR-FS: Bertinetto et al., arXiv 1805.08136. miniImageNet: Ravi & Larochelle, ICLR 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CLASSES = Path(__file__).parent / "classes"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DatasetSpec:
    """What a canonical data set must hold."""

    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images_per_class: int | None  # None: a parameter says
    sha256: str | None  # of the canonical file's pixels, where every right source gives the same

    def splits(self) -> dict[str, list[str]]:
        """Class names of meta-train, meta-val and meta-test, each sorted."""
        return {
            split: sorted((CLASSES / self.name / f"{split}.txt").read_text().split())
            for split in SPLITS
        }


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

CATALOGUE = {
    spec.name: spec
    for spec in (
        DatasetSpec("glyphs", 32, *_HALF, None, None),
        DatasetSpec("textures", 40, *_HALF, None, None),
        DatasetSpec(
            "cifar_fs",
            32,
            (0.5071, 0.4867, 0.4408),
            (0.2675, 0.2565, 0.2761),
            600,
            "68cb2e1c16eb48f5f8d10fd4df7d7831838ced66382ccea81fce5cc3fd55bdb7",
        ),
        DatasetSpec("mini_imagenet", 84, *_IMAGENET, 600, None),
    )
}
