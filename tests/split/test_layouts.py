from __future__ import annotations

import json
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.common.dataset import load_split
from stages.interface.errors import BadInput
from stages.split.canonical import canonical, checksum, write
from stages.split.catalogue import DatasetSpec
from stages.split.layouts import read_source
from tests.split.conftest import LAYOUTS, NAMES, SPLITS, Classes, cifar_batches, png


def _canonical_bytes(spec: DatasetSpec, source: Path, out: Path) -> bytes:
    ordered = canonical(spec, read_source(source, set(NAMES)), str(source))
    write(out, spec, ordered)
    return out.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "zip", "gztar"])
def test_every_layout_and_archive_gives_the_same_bytes(
    layout: str, form: str, spec: DatasetSpec, classes: Classes, tmp_path: Path
) -> None:
    write(tmp_path / "expected", spec, canonical(spec, classes, "memory"))
    source = tmp_path / "source"
    LAYOUTS[layout](source, classes)
    if form != "folder":
        shutil.make_archive(str(tmp_path / "archives" / "data"), form, source)
        source = tmp_path / "archives"  # a folder with the archive in it, as data/raw/<name>
    found = _canonical_bytes(spec, source, tmp_path / "found")
    assert found == (tmp_path / "expected").read_bytes()


def test_the_canonical_file_reads_back_by_split(
    spec: DatasetSpec, classes: Classes, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.safetensors"
    write(path, spec, canonical(spec, classes, "memory"))
    for split, names in SPLITS.items():
        data = load_split(path, split)  # type: ignore[arg-type]
        assert data.class_names == sorted(names)
        assert data.class_ids == [NAMES.index(name) for name in sorted(names)]
        for name, images in zip(data.class_names, data.images, strict=True):
            assert sorted(i.tobytes() for i in images.numpy()) == sorted(
                i.tobytes() for i in classes[name]
            )
    with pytest.raises(BadInput, match="no such file"):
        load_split(tmp_path / "nothing", "train")


def test_normalisation_there_and_back(spec: DatasetSpec, classes: Classes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    write(path, spec, canonical(spec, classes, "memory"))
    data = load_split(path, "test")
    x = data.normalisation.apply(data.images[0])
    assert x.shape == (4, 3, 32, 32)
    pixel = data.images[0][0, 2, 3, 1].item() / 255
    assert x[0, 1, 2, 3].item() == pytest.approx((pixel - 0.5) / 0.25, abs=1e-6)
    assert np.array_equal(data.normalisation.invert(x).numpy(), data.images[0].numpy())


def test_wrong_contents_are_named(spec: DatasetSpec, classes: Classes) -> None:
    with pytest.raises(BadInput, match="1 of 6 classes of tiny are missing: cat"):
        canonical(spec, {n: x for n, x in classes.items() if n != "cat"}, "here")
    with pytest.raises(BadInput, match="class dog: 3 images; tiny has 4 per class"):
        canonical(spec, classes | {"dog": classes["dog"][:3]}, "here")
    with pytest.raises(BadInput, match=r"class dog: images of shape \(31, 32, 3\)"):
        canonical(spec, classes | {"dog": classes["dog"][:, 1:]}, "here")
    pinned = DatasetSpec("tiny", 32, spec.mean, spec.std, 4, checksum(canonical(spec, classes, "")))
    canonical(pinned, classes, "here")
    changed = {n: x.copy() for n, x in classes.items()}
    changed["ant"][0, 0, 0, 0] ^= 1
    with pytest.raises(BadInput, match="here: the images are not those of tiny: checksum"):
        canonical(pinned, changed, "here")


def test_damaged_sources_are_named(classes: Classes, tmp_path: Path) -> None:
    names = set(NAMES)
    with pytest.raises(BadInput, match="no such file or folder"):
        read_source(tmp_path / "nowhere", names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: no known layout .* known: cifar-100-python"):
        read_source(tmp_path / "empty", names)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput, match="neither a folder nor an archive"):
        read_source(tmp_path / "notes.txt", names)

    LAYOUTS["cifar_batches"](tmp_path / "a", classes)
    file = tmp_path / "a/cifar-100-python/train"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"train: damaged pickle"):
        read_source(tmp_path / "a", names)

    LAYOUTS["cifar_binary"](tmp_path / "b", classes)
    file = tmp_path / "b/cifar-100-binary/test.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"test.bin: .* not a multiple of 3074"):
        read_source(tmp_path / "b", names)

    LAYOUTS["csv_lists"](tmp_path / "c", classes)
    (tmp_path / "c/images/fox1.png").write_bytes(png(classes["fox"][1])[:300])
    with pytest.raises(BadInput, match=r"fox1.png: not a readable image"):
        read_source(tmp_path / "c", names)
    (tmp_path / "c/images/fox1.png").unlink()
    with pytest.raises(BadInput, match=r"fox1.png: no such file, but .* lists it"):
        read_source(tmp_path / "c", names)

    LAYOUTS["hub_parquet"](tmp_path / "d", classes)
    file = tmp_path / "d/data/train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="not a whole Parquet file"):
        read_source(tmp_path / "d", names)

    LAYOUTS["cifar_fs_folders"](tmp_path / "e", classes)
    archive = Path(shutil.make_archive(str(tmp_path / "e"), "zip", tmp_path / "e"))
    content = bytearray(archive.read_bytes())
    for place in range(1000, len(content) - 3000, 997):
        content[place] ^= 255
    archive.write_bytes(content)
    with pytest.raises(BadInput, match=r"e.zip: damaged archive|not a readable image"):
        read_source(archive, names)

    LAYOUTS["csv_lists"](tmp_path / "f", classes)
    with (tmp_path / "f/val.csv").open("a") as stream:
        stream.write("short\n")
    with pytest.raises(BadInput, match=r"val.csv, line 10: no filename or no label"):
        read_source(tmp_path / "f", names)

    (tmp_path / "x.tar.gz").write_bytes(b"not a tar")
    with pytest.raises(BadInput, match="damaged archive"):
        read_source(tmp_path / "x.tar.gz", names)


def _bomb(root: Path, classes: Classes) -> None:
    """A picture whose header promises 90,000 by 90,000 pixels."""
    LAYOUTS["csv_lists"](root, classes)
    head = b"IHDR" + struct.pack(">IIBBBBB", 90_000, 90_000, 8, 2, 0, 0, 0)
    path = root / "images/fox1.png"
    content = path.read_bytes()
    path.write_bytes(
        content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[16 + 13 + 4 :]
    )


def _latin(root: Path, classes: Classes) -> None:
    LAYOUTS["csv_lists"](root, classes)
    with (root / "val.csv").open("a", encoding="latin-1") as stream:
        stream.write("caf\u00e9.png,bee\n")


def _features(features: object) -> Callable[[Path, Classes], None]:
    def write(root: Path, classes: Classes) -> None:
        LAYOUTS["hub_parquet"](root, classes)
        for path in (root / "data").iterdir():
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)

    return write


def _ragged(root: Path, classes: Classes) -> None:
    LAYOUTS["caches"](root, classes)
    content = {"image_data": [[1, 2], [3]], "class_dict": {"fox": [0, 1]}}
    (root / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(content))


def _encoding(root: Path, classes: Classes) -> None:
    """One byte of the name of an encoding is another."""
    cifar_batches(root, classes, protocol=2)
    path = root / "cifar-100-python/train"
    content = path.read_bytes()
    assert b"latin1" in content
    path.write_bytes(content.replace(b"latin1", b"latim1"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_bomb, "fox1.png: not a readable image: "),
        (_latin, "damaged, or not images/ .* UnicodeDecodeError"),
        (_features([1]), "damaged, or not Parquet of the .* AttributeError"),
        (_features({"fine_label": {"names": 7}}), "damaged, or not Parquet of the .* TypeError"),
        (_features({"fine_label": 7}), "expected one image column"),
        (_ragged, "damaged, or not mini-imagenet-cache-.* ValueError"),
        (_encoding, "train: damaged pickle: unknown encoding"),
    ],
)
def test_whatever_a_source_is_like_it_is_one_message(
    write: Callable[[Path, Classes], None], message: str, classes: Classes, tmp_path: Path
) -> None:
    write(tmp_path / "source", classes)
    with pytest.raises(BadInput, match=message):
        read_source(tmp_path / "source", set(NAMES))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE])
def test_a_tar_is_read_before_python_3_11_4_too(
    kind: bytes,
    spec: DatasetSpec,
    classes: Classes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)  # it may be such a Python
    LAYOUTS["csv_lists"](tmp_path / "a", classes)
    archive = Path(shutil.make_archive(str(tmp_path / "data"), "tar", tmp_path / "a"))
    write(tmp_path / "expected", spec, canonical(spec, classes, "memory"))
    found = _canonical_bytes(spec, archive, tmp_path / "found")
    assert found == (tmp_path / "expected").read_bytes()
    with tarfile.open(archive, "a") as tarred:
        member = tarfile.TarInfo("../outside" if kind == tarfile.REGTYPE else "link")
        member.type, member.linkname = kind, "/etc"
        tarred.addfile(member)
    with pytest.raises(BadInput, match=f"{member.name}: allowed: files and folders within"):
        read_source(archive, set(NAMES))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_something_is_refused_before_it_does(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in SPLITS:
        content = {"image_data": _Evil(), "class_dict": {}}
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(BadInput, match=r"refused: it asks for (posix|os)\.system"):
        read_source(tmp_path, set(NAMES))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_pass_in_every_protocol(protocol: int, classes: Classes, tmp_path: Path) -> None:
    cifar_batches(tmp_path, classes, protocol)
    found = read_source(tmp_path, set(NAMES))
    assert set(found) == set(NAMES)
