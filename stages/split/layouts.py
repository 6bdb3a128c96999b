"""The forms in which users have CIFAR-FS and miniImageNet, each read into {class: images}.

A layout is two functions: does this folder look like it, and read it. Archives are unpacked into
a temporary folder first. A new layout is a row of `LAYOUTS`.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import ArrowException

from stages.interface.errors import BadInput
from stages.split.canonical import Images
from stages.split.catalogue import SPLITS
from stages.split.unpickle import load_arrays

Classes = dict[str, Images]
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Layout(NamedTuple):
    name: str
    matches: Callable[[Path, set[str]], bool]  # (folder, class names of the data set)
    read: Callable[[Path, set[str]], Classes]


def read_source(path: Path, names: set[str]) -> Classes:
    """Read the data set at `path`, a folder or an archive in any known layout.

    `names` are the data set's class names; other classes of the source are not read where the
    layout allows it.

    Raises BadInput if there is nothing of a known layout, or a file of it is damaged.
    """
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if path.is_file():
        if not path.name.endswith(ARCHIVES):
            raise BadInput(f"{path}: neither a folder nor an archive ({', '.join(ARCHIVES)})")
        with _unpacked(path) as folder:
            return _read_folder(folder, names, path)
    if _match(path, names):
        return _read_folder(path, names, path)
    archives = sorted(p for p in path.iterdir() if p.name.endswith(ARCHIVES))
    if len(archives) == 1:
        return read_source(archives[0], names)
    return _read_folder(path, names, path)


def _read_folder(folder: Path, names: set[str], source: Path) -> Classes:
    match = _match(folder, names)
    if match is None:
        layouts = "; ".join(layout.name for layout in LAYOUTS)
        raise BadInput(f"{source}: no known layout of this data set there; known: {layouts}")
    layout, root = match
    try:
        return layout.read(root, names)
    except (ValueError, TypeError, LookupError, AttributeError, csv.Error) as error:
        kind = type(error).__name__
        raise BadInput(f"{root}: damaged, or not {layout.name}: {kind}: {error}") from None


def _match(folder: Path, names: set[str]) -> tuple[Layout, Path] | None:
    """The first layout found in the folder itself, its subfolders, or theirs."""
    below = sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in names)
    deeper = [q for p in below for q in sorted(p.iterdir()) if q.is_dir() and q.name not in names]
    for root in [folder, *below, *deeper]:
        for layout in LAYOUTS:
            if layout.matches(root, names):
                return layout, root
    return None


def _extract(tarred: tarfile.TarFile, folder: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        tarred.extractall(folder, filter="data")
        return
    for member in tarred:  # Python before 3.11.4, as in Debian 12
        inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if not inside or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name}: allowed: files and folders within")
    tarred.extractall(folder)


@contextmanager
def _unpacked(archive: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="purer-") as folder:
        try:
            if archive.name.endswith(".zip"):
                with zipfile.ZipFile(archive) as zipped:
                    zipped.extractall(folder)
            else:
                with tarfile.open(archive) as tarred:
                    _extract(tarred, Path(folder))
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            OSError,
            RuntimeError,  # encrypted
            NotImplementedError,  # a compression that zipfile does not know
        ) as error:
            raise BadInput(f"{archive}: damaged archive: {error}") from None
        yield Path(folder)


# --- CIFAR-100 as pickled batches: cifar-100-python/{train,test,meta} -------------------------


def _is_cifar_batches(root: Path, names: set[str]) -> bool:
    return all((root / file).is_file() for file in ("train", "test", "meta"))


def _read_cifar_batches(root: Path, names: set[str]) -> Classes:
    label_names = _field(load_arrays(root / "meta"), "fine_label_names", root / "meta")
    rows, labels = [], []
    for file in ("train", "test"):
        batch = load_arrays(root / file)
        data = np.asarray(_field(batch, "data", root / file))
        fine = np.asarray(_field(batch, "fine_labels", root / file))
        if data.dtype != np.uint8 or data.shape != (len(fine), 3072):
            raise BadInput(
                f"{root / file}: data of shape {data.shape} {data.dtype} for {len(fine)} labels;"
                f" expected ({len(fine)}, 3072) uint8"
            )
        rows.append(data)
        labels.append(fine)
    return _by_label(_planes(np.concatenate(rows)), np.concatenate(labels), label_names, root)


# --- CIFAR-100's binary version: {train,test}.bin + fine_label_names.txt ----------------------


def _is_cifar_binary(root: Path, names: set[str]) -> bool:
    return all((root / f).is_file() for f in ("train.bin", "test.bin", "fine_label_names.txt"))


def _read_cifar_binary(root: Path, names: set[str]) -> Classes:
    rows = []
    for file in ("train.bin", "test.bin"):
        content = np.fromfile(root / file, np.uint8)
        if content.size % 3074:
            raise BadInput(
                f"{root / file}: {content.size} bytes, not a multiple of 3074: it is cut short"
            )
        rows.append(content.reshape(-1, 3074))
    table = np.concatenate(rows)
    label_names = (root / "fine_label_names.txt").read_text().split()
    return _by_label(_planes(table[:, 2:]), table[:, 1], label_names, root)


def _planes(rows: Images) -> Images:
    """CIFAR's rows (n, 3072), one colour plane after the other, as (n, 32, 32, 3)."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


# --- the hub's Parquet: an image column struct<bytes, path> and an integer label --------------


def _is_parquet(root: Path, names: set[str]) -> bool:
    return any(root.glob("*.parquet"))


def _read_parquet(root: Path, names: set[str]) -> Classes:
    images: dict[str, list[Images]] = defaultdict(list)
    for file in sorted(root.glob("*.parquet")):
        try:
            schema = pq.read_schema(file)
            image_column, label_column, label_names = _hub_columns(schema, names, file)
            table = pq.read_table(file, columns=[image_column, label_column])
        except (ArrowException, OSError, json.JSONDecodeError) as error:
            raise BadInput(f"{file}: not a whole Parquet file: {error}") from None
        labels = table[label_column].to_pylist()
        for row, (cell, label) in enumerate(zip(table[image_column], labels, strict=True)):
            if label is None or not 0 <= label < len(label_names):
                raise BadInput(
                    f"{file}, row {row}: label {label}; there are {len(label_names)} class names"
                )
            name = label_names[label]
            if name in names:
                encoded = cell["bytes"].as_py()
                images[name].append(_decode(encoded, f"{file}, row {row}"))
    return {name: _stack(arrays, root) for name, arrays in images.items()}


def _hub_columns(schema: Any, names: set[str], file: Path) -> tuple[str, str, list[str]]:
    """Image column, label column and its class names, as the hub describes them."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})
    image = [n for n in schema.names if str(schema.field(n).type).startswith("struct<bytes")]
    label = [
        n
        for n, f in features.items()
        if isinstance(f, dict) and names & {*map(str, f.get("names") or ())}
    ]
    if len(image) != 1 or len(label) != 1:
        raise BadInput(
            f"{file}: expected one image column (struct<bytes, path>) and one label column whose"
            f" class names are those of the data set; found columns {', '.join(schema.names)}"
        )
    return image[0], label[0], features[label[0]]["names"]


# --- images/*.jpg + {train,val,test}.csv ------------------------------------------------------


def _is_csv(root: Path, names: set[str]) -> bool:
    return (root / "images").is_dir() and all((root / f"{s}.csv").is_file() for s in SPLITS)


def _read_csv(root: Path, names: set[str]) -> Classes:
    files: dict[str, list[Path]] = defaultdict(list)
    for split in SPLITS:
        table = root / f"{split}.csv"
        with table.open(newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"filename", "label"} <= set(reader.fieldnames or ()):
                raise BadInput(f"{table}: columns {reader.fieldnames}; expected filename,label")
            for row in reader:
                if not row["filename"] or not row["label"]:
                    raise BadInput(f"{table}, line {reader.line_num}: no filename or no label")
                files[row["label"]].append(root / "images" / row["filename"])
    return {name: _read_images(paths, root) for name, paths in files.items() if name in names}


# --- a folder per class, directly or below {train,val,test}/ or data/ -------------------------


def _is_class_folders(root: Path, names: set[str]) -> bool:
    return any(_class_folders(root, names))


def _read_class_folders(root: Path, names: set[str]) -> Classes:
    files: dict[str, list[Path]] = defaultdict(list)
    for folder in _class_folders(root, names):
        files[folder.name] += sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES)
    return {name: _read_images(paths, root) for name, paths in files.items() if paths}


def _class_folders(root: Path, names: set[str]) -> list[Path]:
    parents = [root, *(root / part for part in (*SPLITS, "data"))]
    return [
        folder
        for parent in parents
        if parent.is_dir()
        for folder in sorted(parent.iterdir())
        if folder.is_dir() and folder.name in names
    ]


# --- mini-imagenet-cache-{train,val,test}.pkl -------------------------------------------------


def _caches(root: Path) -> list[Path]:
    return [root / f"mini-imagenet-cache-{split}.pkl" for split in SPLITS]


def _is_caches(root: Path, names: set[str]) -> bool:
    return all(path.is_file() for path in _caches(root))


def _read_caches(root: Path, names: set[str]) -> Classes:
    classes: Classes = {}
    for path in _caches(root):
        cache = load_arrays(path)
        images = np.asarray(_field(cache, "image_data", path))
        for name, positions in _field(cache, "class_dict", path).items():
            if len(positions) and max(positions) >= len(images):
                raise BadInput(
                    f"{path}: class {name} names image {max(positions)} of {len(images)}"
                )
            classes[name] = images[np.asarray(positions, dtype=np.int64)]
    return classes


LAYOUTS = (
    Layout("cifar-100-python/ (pickled batches)", _is_cifar_batches, _read_cifar_batches),
    Layout("cifar-100-binary/ (train.bin, test.bin)", _is_cifar_binary, _read_cifar_binary),
    Layout("mini-imagenet-cache-{train,val,test}.pkl", _is_caches, _read_caches),
    Layout("images/ + {train,val,test}.csv", _is_csv, _read_csv),
    Layout("Parquet of the Hugging Face hub", _is_parquet, _read_parquet),
    Layout("a folder per class", _is_class_folders, _read_class_folders),
)


def _by_label(images: Images, labels: Any, label_names: list[str], source: Path) -> Classes:
    if len(labels) and max(labels) >= len(label_names):
        raise BadInput(f"{source}: label {max(labels)}, but only {len(label_names)} class names")
    return {name: images[labels == i] for i, name in enumerate(label_names)}


def _read_images(paths: list[Path], source: Path) -> Images:
    arrays = []
    for path in paths:
        try:
            arrays.append(_decode(path.read_bytes(), str(path)))
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file, but {source} lists it") from None
    return _stack(arrays, source)


def _decode(encoded: bytes, name: str) -> Images:
    """One encoded image as RGB (h, w, 3)."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # whatever Pillow makes of a broken file
        raise BadInput(f"{name}: not a readable image: {error}") from None


def _stack(arrays: list[Images], source: Path) -> Images:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise BadInput(f"{source}: images of different shapes: {sorted(shapes)[:3]}")
    return np.stack(arrays)


def _field(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise BadInput(f"{path}: no {key!r} in it; found {found}")
    return content[key]
