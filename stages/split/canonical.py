"""The one file that a data set becomes, whatever layout it came in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stages.common.files import save_tensors
from stages.interface.errors import BadInput
from stages.split.catalogue import DatasetSpec

Images = NDArray[np.uint8]  # (n, h, w, 3)


def canonical(spec: DatasetSpec, classes: Mapping[str, Images], source: str) -> dict[str, Images]:
    """The classes of the spec's splits, sorted by name, each class's images sorted by content.

    Classes that no split names are dropped (a source may hold more).

    Raises BadInput, naming `source`, for a missing class, a wrong count, a wrong shape, or pixels
    that differ from the pinned checksum.
    """
    names = sorted(name for names in spec.splits().values() for name in names)
    missing = [name for name in names if name not in classes]
    if missing:
        raise BadInput(
            f"{source}: {len(missing)} of {len(names)} classes of {spec.name} are missing:"
            f" {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    ordered = {}
    for name in names:
        images = classes[name]
        shape = (spec.image_size, spec.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise BadInput(
                f"{source}: class {name}: images of shape {images.shape[1:]} {images.dtype};"
                f" {spec.name} has {shape} uint8"
            )
        if spec.images_per_class is not None and len(images) != spec.images_per_class:
            raise BadInput(
                f"{source}: class {name}: {len(images)} images;"
                f" {spec.name} has {spec.images_per_class} per class"
            )
        ordered[name] = images[sorted(range(len(images)), key=lambda i: images[i].tobytes())]
    if spec.sha256 is not None and (found := checksum(ordered)) != spec.sha256:
        raise BadInput(
            f"{source}: the images are not those of {spec.name}: checksum {found},"
            f" expected {spec.sha256}; the source is damaged or another data set"
        )
    return ordered


def checksum(classes: Mapping[str, Images]) -> str:
    """SHA-256 over class names and pixels, in order."""
    digest = hashlib.sha256()
    for name, images in classes.items():
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def write(path: Path, spec: DatasetSpec, classes: Mapping[str, Images]) -> None:
    """The canonical file; `stages.common.dataset.load_split` reads it."""
    starts = np.cumsum([0, *(len(images) for images in classes.values())]).tolist()
    metadata = {
        "dataset": spec.name,
        "class_names": list(classes),
        "class_starts": starts,
        "splits": spec.splits(),
        "image_size": spec.image_size,
        "mean": spec.mean,
        "std": spec.std,
        "sha256": checksum(classes),
    }
    images = torch.from_numpy(np.concatenate(list(classes.values())))
    save_tensors(path, {"images": images}, metadata)
