"""Images of any kind as pixels: files, PIL images, arrays, tensors.

An image that is not square is scaled so that its shorter side fits and cropped at the centre.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stages.interface.errors import BadInput

ENDINGS = frozenset(Image.registered_extensions())
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
)
ALLOWED = "allowed: a path, a PIL image, or an array or tensor (h, w, 3), (3, h, w) or (h, w)"


def image_files(place: Path) -> list[Path]:
    """The image files of a folder, sorted by name, or the one file that `place` is.

    Raises BadInput if there is no such place, or no image in it.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise BadInput(f"{place}: no such file or folder")
    files = [
        path
        for path in sorted(place.iterdir())
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    ]
    if not files:
        raise BadInput(f"{place}: no image in this folder (files ending in .png, .jpg, ...)")
    return files


def class_folders(place: Path) -> dict[str, list[Path]]:
    """Image files by class: every folder in `place` is a class.

    Raises BadInput if there are fewer than two classes, or a class without an image.
    """
    if not place.is_dir():
        raise BadInput(f"{place}: no such folder")
    folders = [p for p in sorted(place.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if len(folders) < 2:
        found = ", ".join(p.name for p in folders) or "none"
        raise BadInput(
            f"{place}: its folders are the classes, and a task needs two or more; found: {found}"
        )
    return {folder.name: image_files(folder) for folder in folders}


def pixels(image: Any, size: int) -> Tensor:
    """One image as uint8 (size, size, 3).

    Raises BadInput for a file that is no whole image, and for anything else that is none.
    """
    return torch.from_numpy(np.asarray(_square(_picture(image), size)).copy())


def stack(images: Iterable[Any] | Tensor, size: int) -> Tensor:
    """Images as uint8 (n, size, size, 3). Raises BadInput as `pixels`, and if there is none."""
    found = [pixels(image, size) for image in images]
    if not found:
        raise BadInput("no image given")
    return torch.stack(found)


def _picture(image: Any) -> Image.Image:
    if isinstance(image, str | Path):
        return _read(Path(image))
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _of_array(image)
    raise BadInput(f"an image of type {type(image).__name__}: {ALLOWED}")


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            # Phones store a turned picture with a note of how to turn it back.
            return ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except UNREADABLE as error:
        raise BadInput(f"{path}: not a readable image: {error}") from None


def _of_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """Whole numbers are 0 to 255, floats 0 to 1."""
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, 2)
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3:
        raise BadInput(f"an image of shape {array.shape}: {ALLOWED}")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise BadInput(
                f"an image of floats from {array.min():.3g} to {array.max():.3g}: allowed: 0 to 1"
            )
        array = (array * 255).round()
    elif array.min() < 0 or array.max() > 255:
        raise BadInput(
            f"an image of numbers from {array.min()} to {array.max()}: allowed: 0 to 255"
        )
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _square(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def names(files: Sequence[Path]) -> list[str]:
    """File names, or whole paths where names repeat."""
    short = [path.name for path in files]
    return short if len(set(short)) == len(short) else [str(path) for path in files]
