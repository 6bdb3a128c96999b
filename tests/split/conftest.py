"""A miniature data set of six classes in every layout that users have at home."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.split import catalogue
from stages.split.catalogue import DatasetSpec

Classes = dict[str, NDArray[np.uint8]]
SPLITS = {"train": ["ant", "cat", "dog"], "val": ["bee", "eel"], "test": ["fox"]}
NAMES = sorted(name for names in SPLITS.values() for name in names)
PER_CLASS = 4


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSpec:
    monkeypatch.setattr(catalogue, "CLASSES", tmp_path / "classes")
    for split, names in SPLITS.items():
        path = tmp_path / "classes" / "tiny" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names))
    return DatasetSpec("tiny", 32, (0.5,) * 3, (0.25,) * 3, PER_CLASS, None)


@pytest.fixture
def classes() -> Classes:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (PER_CLASS, 32, 32, 3), np.uint8) for name in NAMES}


def png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def shuffled(classes: Classes) -> tuple[NDArray[np.uint8], list[int]]:
    """All images in random order with labels that index NAMES."""
    rng = np.random.default_rng(1)
    images = np.concatenate([classes[name] for name in NAMES])
    labels = np.repeat(np.arange(len(NAMES)), PER_CLASS)
    order = rng.permutation(len(images))
    return images[order], labels[order].tolist()


def planes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar_batches(root: Path, classes: Classes, protocol: int = 2) -> None:
    images, labels = shuffled(classes)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, part in (("train", slice(0, 20)), ("test", slice(20, None))):
        batch = {
            "data": planes(images[part]),
            "fine_labels": labels[part],
            "filenames": ["x.png"] * len(labels[part]),
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES}, protocol))


def cifar_binary(root: Path, classes: Classes) -> None:
    images, labels = shuffled(classes)
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    rows = np.concatenate(
        [np.zeros((len(labels), 1), np.uint8), np.array(labels, np.uint8)[:, None], planes(images)],
        axis=1,
    )
    rows[:20].tofile(folder / "train.bin")
    rows[20:].tofile(folder / "test.bin")
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n")


def cifar_fs_folders(root: Path, classes: Classes) -> None:
    for name, images in classes.items():
        folder = root / "cifar100" / "data" / name
        folder.mkdir(parents=True)
        for i, image in enumerate(images[::-1]):
            (folder / f"{i}.png").write_bytes(png(image))
    lists = root / "cifar100" / "splits" / "bertinetto"
    lists.mkdir(parents=True)
    for split, names in SPLITS.items():
        (lists / f"{split}.txt").write_text("\n".join(names))


def split_folders(root: Path, classes: Classes) -> None:
    for split, names in SPLITS.items():
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, image in enumerate(classes[name]):
                (folder / f"{i}.png").write_bytes(png(image))


def csv_lists(root: Path, classes: Classes) -> None:
    (root / "images").mkdir(parents=True)
    for split, names in SPLITS.items():
        with (root / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["filename", "label"])
            for name in names:
                for i, image in enumerate(classes[name]):
                    (root / "images" / f"{name}{i}.png").write_bytes(png(image))
                    writer.writerow([f"{name}{i}.png", name])


def caches(root: Path, classes: Classes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split, names in SPLITS.items():
        content = {
            "image_data": np.concatenate([classes[name] for name in names]),
            "class_dict": {
                name: list(range(i * PER_CLASS, (i + 1) * PER_CLASS))
                for i, name in enumerate(names)
            },
        }
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content, 4))


def hub_parquet(root: Path, classes: Classes) -> None:
    (root / "data").mkdir(parents=True)
    images, labels = shuffled(classes)
    cells = [{"bytes": png(image), "path": None} for image in images]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"img": {"_type": "Image"}, "fine_label": {"names": NAMES, "_type": "ClassLabel"}}
    features |= {"tags": [{"dtype": "string", "_type": "Value"}]}  # nothing to us
    table = pa.table({"img": pa.array(cells, image_type), "fine_label": labels})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table.slice(0, 10), root / "data" / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(10), root / "data" / "train-00001-of-00002.parquet")


LAYOUTS: dict[str, Callable[[Path, Classes], None]] = {
    "cifar_batches": cifar_batches,
    "cifar_binary": cifar_binary,
    "cifar_fs_folders": cifar_fs_folders,
    "split_folders": split_folders,
    "csv_lists": csv_lists,
    "caches": caches,
    "hub_parquet": hub_parquet,
}
