"""Images of any kind as pixels: files, PIL images, arrays, tensors.

An image that is not square is scaled so that its shorter side fits and cropped at the centre. What
is transparent is white. Of grey in more than 8 bits few files say what white is (PGM does; cameras
of 12 bits write files of 16): 1 or 255 for floats, 255, 4095 or 65535 for whole numbers, the least
of them that no pixel exceeds; else its own lightest is white and its darkest black.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from stages.interface.errors import BadInput, first_of

# Of files that a folder is searched for: what Pillow reads as pixels by itself. It registers more
# (.pdf, .mpg, .h5, .eps), which it can only write, only recognise, or reads by other programs, and
# some that are oftener something else (.pcd, .fit, .gbr).
ENDINGS = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fits"),
        *(".gif", ".icb", ".icns", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe"),
        *(".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".psd", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif"),
        *(".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm"),
    )
)
ALLOWED = (
    "allowed: a path, a PIL image, or an array or tensor (h, w), (h, w, c) or (c, h, w) of 1, 3 or"
    " 4 channels c"
)
CHANNELS = (1, 3, 4)
# What white may be, by Pillow's names of grey of more than 8 bits.
WHITE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N", "I"), (255, 4095, 65535)),
    "F": (1, 255),
}
PHOTOMETRIC = 262  # TIFF's tag of what a 0 means
WHITE_IS_ZERO = 0


def image_files(place: Path) -> list[Path]:
    """The image files of a folder, sorted by name, or the one file that `place` is.

    Raises BadInput if there is no such place, or no image in it.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise BadInput(f"{place}: no such file or folder")
    files = [path for path in _visible(place) if _is_image(path)]
    if not files:
        others = first_of((text(path.name) for path in passed_over(place)), 3)
        raise BadInput(
            f"{place}: no image in this folder (files ending in .png, .jpg, ...)"
            + (f"; not read: {others}" if others else "")
        )
    return files


def passed_over(place: Path) -> list[Path]:
    """What else is in a folder: folders, and files whose ending is no image's to Pillow (.heic)."""
    return [path for path in _visible(place) if not _is_image(path)] if place.is_dir() else []


def beside_classes(place: Path) -> list[Path]:
    """What else is in a folder whose folders are classes."""
    return [path for path in _visible(place) if not path.is_dir()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def _visible(place: Path) -> list[Path]:
    return [path for path in sorted(place.iterdir()) if not path.name.startswith(".")]


def class_folders(place: Path) -> dict[str, list[Path]]:
    """Image files by class: every folder in `place` is a class.

    Raises BadInput if there are fewer than two classes, or a class without an image.
    """
    if not place.is_dir():
        raise BadInput(f"{place}: no such folder")
    folders = [path for path in _visible(place) if path.is_dir()]
    if len(folders) < 2:
        found = ", ".join(p.name for p in folders) or "none"
        raise BadInput(
            f"{place}: its folders are the classes, and a task needs two or more; found: {found}"
        )
    return {text(folder.name): image_files(folder) for folder in folders}


def pixels(image: Any, size: int) -> Tensor:
    """One image as uint8 (size, size, 3).

    Raises BadInput for a file that is no whole image, and for anything else that is none.
    """
    return torch.from_numpy(np.asarray(_square(_picture(image), size)).copy())


def many(images: Any) -> list[Any]:
    """The single images of a list, an iterator, or an array or tensor of four dimensions.

    One image alone, of any kind that `pixels` takes, is a list of it. Raises BadInput if there is
    none.
    """
    array = isinstance(images, np.ndarray | Tensor)
    if isinstance(images, str | Path | Image.Image) or (array and images.ndim < 4):
        return [images]
    if not isinstance(images, Iterable):
        raise BadInput(f"images of type {type(images).__name__}: {ALLOWED}, or a list of these")
    found = list(images)
    if not found:
        raise BadInput("no image given")
    return found


def stack(images: Iterable[Any], size: int) -> Tensor:
    """Images as uint8 (n, size, size, 3), n of at least 1. Raises BadInput as `pixels`."""
    return torch.stack([pixels(image, size) for image in images])


def _picture(image: Any) -> Image.Image:
    """As RGB, of one pixel or more."""
    if isinstance(image, str | Path | Image.Image):
        return _read(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float().numpy() if image.is_floating_point() else image.numpy()
    if isinstance(image, np.ndarray):
        return _rgb(_of_array(image))
    raise BadInput(f"an image of type {type(image).__name__}: {ALLOWED}")


def _read(source: str | Path | Image.Image) -> Image.Image:
    name = "an image" if isinstance(source, Image.Image) else source
    try:
        if isinstance(source, Image.Image):
            return _rgb(source)
        with Image.open(source) as file:
            return _rgb(file)
    except FileNotFoundError:
        raise BadInput(f"{name}: no such file") from None
    except Exception as error:  # whatever Pillow makes of a broken file
        raise BadInput(f"{name}: not a readable image: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    """As it is meant to be seen. Raises ValueError if there is nothing to see."""
    if 0 in image.size:
        raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels")
    white, negative = WHITE.get(image.mode), _is_negative(image)
    if white and image.format == "PPM" and image.mode != "F":
        white = white[-1:]  # Pillow has scaled a PGM by its own maximum, a PFM has none
    image = _upright(image)
    if white:
        image = _shallow(image, white)
        image = ImageOps.invert(image) if negative else image
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def _is_negative(image: Image.Image) -> bool:
    """A scan whose 0 is white, which Pillow turns by itself only in 8 bits or fewer."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _upright(image: Image.Image) -> Image.Image:
    """Turned back: phones store a turned picture with a note of how."""
    image.load()  # what is broken in the picture itself is an error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever Pillow makes of a broken note
        return image


def _shallow(image: Image.Image, whites: Sequence[int]) -> Image.Image:
    """Grey of more than 8 bits as of 8; white is the first of `whites` that no pixel exceeds."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    black, lightest = values.min(), values.max()
    white = next((white for white in whites if black >= 0 and lightest <= white), None)
    if white is not None:
        black, lightest = 0, white
    share = (values - black) / (lightest - black or 1)
    return Image.fromarray((255 * share).round().astype(np.uint8))


def _of_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """Grey, RGB or RGBA. Whole numbers are 0 to 255, floats 0 to 1, False and True 0 and 1."""
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and shape[2] not in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise BadInput(f"an image of shape {shape}: {ALLOWED}")
    if array.size == 0:
        raise BadInput(f"an image of shape {shape}: allowed: one pixel or more")
    if array.dtype.kind not in "buif":
        raise BadInput(f"an image of {array.dtype}: allowed: numbers")
    if array.dtype.kind in "bf":
        array = array.astype(np.float64)
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise BadInput(
                f"an image of floats from {array.min():.3g} to {array.max():.3g}: allowed: 0 to 1"
            )
        array = (array * 255).round()
    elif array.min() < 0 or array.max() > 255:
        raise BadInput(
            f"an image of numbers from {array.min()} to {array.max()}: allowed: 0 to 255"
        )
    array = array[..., 0] if array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _square(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def names(files: Sequence[Path]) -> list[str]:
    """File names, or whole paths where names repeat."""
    short = [path.name for path in files]
    return [text(name) for name in (short if len(set(short)) == len(short) else map(str, files))]


def text(name: str) -> str:
    """A file's name as UTF-8 can say it: names from old archives are bytes of another encoding."""
    return os.fsencode(name).decode(errors="backslashreplace")
