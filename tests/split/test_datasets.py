from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.interface.errors import BadInput
from stages.split import sources
from stages.split.canonical import canonical, checksum
from stages.split.catalogue import CATALOGUE, SPLITS
from stages.split.layouts import read_source
from stages.split.params import RealDataset
from stages.split.sources import find_cifar_fs, find_mini_imagenet
from tests.conftest import ROOT


@pytest.mark.parametrize("name", CATALOGUE)
def test_class_splits_are_disjoint_and_of_the_published_sizes(name: str) -> None:
    splits = CATALOGUE[name].splits()
    assert {split: len(names) for split, names in splits.items()} == {
        "train": 64,
        "val": 16,
        "test": 20,
    }
    assert len({n for names in splits.values() for n in names}) == 100


@pytest.mark.parametrize(("name", "size"), [("glyphs", 32), ("textures", 40)])
def test_rendered_classes_are_deterministic_and_different(name: str, size: int) -> None:
    module = __import__(f"stages.split.{name}", fromlist=["render"])
    one, two = CATALOGUE[name].splits()["train"][:2]
    images = module.render(one, 20, size)
    assert images.shape == (20, size, size, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, module.render(one, 20, size))
    assert not np.array_equal(images, module.render(two, 20, size))
    assert len({image.tobytes() for image in images}) == 20
    assert images.std() > 20  # there is something to see


def test_every_rendered_class_renders() -> None:
    from stages.split import glyphs, textures

    for module, name in ((glyphs, "glyphs"), (textures, "textures")):
        spec = CATALOGUE[name]
        for names in spec.splits().values():
            for class_name in names:
                images = module.render(class_name, 2, spec.image_size)
                assert images.std(axis=(1, 2, 3)).min() > 5, class_name


def test_real_cifar_fs_has_the_pinned_checksum(shared_data: Path) -> None:
    spec = CATALOGUE["cifar_fs"]
    names = {n for part in spec.splits().values() for n in part}
    classes = canonical(spec, read_source(shared_data / "cifar100", names), "shared")
    assert checksum(classes) == spec.sha256
    pixels = np.concatenate([images[::10] for images in classes.values()]) / 255
    assert np.allclose(pixels.mean((0, 1, 2)), spec.mean, atol=0.01)
    classes["apple"][0, 0, 0, 0] ^= 1
    with pytest.raises(BadInput, match="damaged or another data set"):
        canonical(spec, classes, "shared")


def test_real_mini_imagenet_is_whole(shared_data: Path) -> None:
    spec = CATALOGUE["mini_imagenet"]
    names = {n for part in spec.splits().values() for n in part}
    classes = canonical(spec, read_source(shared_data / "mini_imagenet", names), "shared")
    assert len(classes) == 100


def test_a_missing_mini_imagenet_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PURER_MINI_IMAGENET", raising=False)
    with pytest.raises(BadInput, match=r"data/raw/mini_imagenet") as error:
        find_mini_imagenet(CATALOGUE["mini_imagenet"], RealDataset(path="auto"))
    for hint in ("PURER_MINI_IMAGENET", "train.csv", "cache-{train,val,test}.pkl", "parquet"):
        assert hint in str(error.value)


def test_a_failed_download_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PURER_CIFAR_FS", raising=False)
    monkeypatch.setattr(utils, "download_and_extract_archive", refuse)
    with pytest.raises(BadInput, match=r"download failed \(no network\)"):
        find_cifar_fs(CATALOGUE["cifar_fs"], RealDataset(path="auto"))


def test_the_download_is_torchvisions_cifar100(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is unpacked to cifar-100-python/ and read without torchvision's pickle.load."""
    from torchvision.datasets import CIFAR100, utils

    asked: list[object] = []

    def download(url: str, folder: str, md5: str) -> None:
        asked.extend([url, md5])
        (Path(folder) / CIFAR100.base_folder).mkdir()

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PURER_CIFAR_FS", raising=False)
    monkeypatch.setattr(utils, "download_and_extract_archive", download)
    monkeypatch.setattr(sources, "_read", lambda _spec, path: {"at": path})
    classes, source = find_cifar_fs(CATALOGUE["cifar_fs"], RealDataset(path="auto"))
    assert asked == [CIFAR100.url, CIFAR100.tgz_md5]
    assert str(classes["at"]).endswith("cifar-100-python")
    assert source == "downloaded by torchvision"


def test_a_place_is_found_by_parameter_then_environment_then_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_read", lambda _spec, path: {"at": path})
    spec = CATALOGUE["cifar_fs"]
    (tmp_path / "data/raw/cifar_fs/x").mkdir(parents=True)

    def found(path: str) -> str:
        return str(find_cifar_fs(spec, RealDataset(path=path))[0]["at"])

    monkeypatch.delenv("PURER_CIFAR_FS", raising=False)
    assert found("auto") == "data/raw/cifar_fs"
    monkeypatch.setenv("PURER_CIFAR_FS", "/somewhere")
    assert found("auto") == "/somewhere"
    assert found("/given") == "/given"


def test_the_command_refuses_an_unknown_dataset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.split", "--dataset", "cifarfs", "--out"]
    result = subprocess.run(
        [*command, str(tmp_path / "x")], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "dataset = 'cifarfs': allowed: glyphs" in result.stderr
    assert not list(tmp_path.iterdir())
    assert SPLITS == ("train", "val", "test")
