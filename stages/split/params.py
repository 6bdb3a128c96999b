"""Parameters of the data sets (section `datasets`)."""

from __future__ import annotations

from pydantic import PositiveInt

from stages.common.params import Section


class RenderedDataset(Section):
    """A data set that the project renders itself."""

    images_per_class: PositiveInt


class RealDataset(Section):
    """A data set of photographs that must be there or be downloaded."""

    path: str  # "auto": $PURER_<NAME>, else data/raw/<name>, else download where that is allowed


class Datasets(Section):
    glyphs: RenderedDataset
    textures: RenderedDataset
    cifar_fs: RealDataset
    mini_imagenet: RealDataset
