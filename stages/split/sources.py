"""Where the images of each data set come from. A new data set is a row of `SOURCES`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

from stages.interface.errors import BadInput
from stages.split.canonical import Images
from stages.split.catalogue import DatasetSpec
from stages.split.layouts import Classes, read_source
from stages.split.params import RealDataset, RenderedDataset

MINI_IMAGENET_HELP = """\
mini_imagenet: no images found. miniImageNet may not be redistributed, so it cannot be downloaded
for you. Put one of these under data/raw/mini_imagenet (or name another place: the environment
variable PURER_MINI_IMAGENET, or datasets.mini_imagenet.path in params.yaml):
  images/*.jpg with train.csv, val.csv, test.csv (columns filename,label)
  {train,val,test}/<wnid>/*.jpg
  mini-imagenet-cache-{train,val,test}.pkl
  *.parquet, as on the Hugging Face hub
or one zip or tar of it. Images: 84x84 RGB, 600 of each of Ravi & Larochelle's 100 classes."""

CIFAR_FS_HELP = """\
cifar_fs: no images found, and the download failed ({error}). Put one of these under
data/raw/cifar_fs (or name another place: the environment variable PURER_CIFAR_FS, or
datasets.cifar_fs.path in params.yaml):
  cifar-100-python.tar.gz or cifar-100-binary.tar.gz, or the folder in it
  CIFAR-FS's own cifar100.zip, or the folder in it (cifar100/data/<class>/*.png)
  *.parquet, as on the Hugging Face hub"""


def render_glyphs(spec: DatasetSpec, params: RenderedDataset) -> tuple[dict[str, Images], str]:
    from stages.split.glyphs import render

    names = [name for split in spec.splits().values() for name in split]
    return {n: render(n, params.images_per_class, spec.image_size) for n in names}, "rendered"


def render_textures(spec: DatasetSpec, params: RenderedDataset) -> tuple[dict[str, Images], str]:
    from stages.split.textures import render

    names = [name for split in spec.splits().values() for name in split]
    return {n: render(n, params.images_per_class, spec.image_size) for n in names}, "rendered"


def find_cifar_fs(spec: DatasetSpec, params: RealDataset) -> tuple[dict[str, Images], str]:
    """Whatever form of CIFAR-100 is there, else torchvision's download of it."""
    path = _place(spec, params)
    if path is not None:
        return _read(spec, path), str(path)
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    with tempfile.TemporaryDirectory(prefix="purer-") as folder:
        try:
            download_and_extract_archive(CIFAR100.url, folder, md5=CIFAR100.tgz_md5)
        except (URLError, OSError, RuntimeError) as error:
            raise BadInput(CIFAR_FS_HELP.format(error=error)) from None
        return _read(spec, Path(folder) / CIFAR100.base_folder), "downloaded by torchvision"


def find_mini_imagenet(spec: DatasetSpec, params: RealDataset) -> tuple[dict[str, Images], str]:
    path = _place(spec, params)
    if path is None:
        raise BadInput(MINI_IMAGENET_HELP)
    return _read(spec, path), str(path)


def _place(spec: DatasetSpec, params: RealDataset) -> Path | None:
    """Parameter, else environment variable, else data/raw/<name> if anything is in it."""
    if params.path != "auto":
        return Path(params.path)
    named = os.environ.get(f"PURER_{spec.name.upper()}")
    if named:
        return Path(named)
    usual = Path("data/raw") / spec.name
    return usual if usual.is_dir() and any(usual.iterdir()) else None


def _read(spec: DatasetSpec, path: Path) -> Classes:
    return read_source(path, {name for names in spec.splits().values() for name in names})


# Reads (spec, the data set's params) into ({class name: images}, where from).
SOURCES: dict[str, Callable[..., tuple[dict[str, Images], str]]] = {
    "glyphs": render_glyphs,
    "textures": render_textures,
    "cifar_fs": find_cifar_fs,
    "mini_imagenet": find_mini_imagenet,
}
