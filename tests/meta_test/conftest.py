"""Data sets, and a learner, that several files of tests judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.common.dataset import ClassImages
from stages.common.learner import initial_theta, save_learner
from stages.common.seeds import generator
from tests.conftest import HALF, learner_info


@pytest.fixture
def data() -> ClassImages:
    """Five classes of 16x16 images told apart by colour."""
    g = torch.Generator().manual_seed(0)
    colours = [(30, 30, 30), (220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)]
    images = []
    for colour in colours:
        noise = torch.randint(-25, 26, (12, 16, 16, 3), generator=g)
        images.append((torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8))
    return ClassImages("tiny", list(range(5)), [str(i) for i in range(5)], images, 16, HALF)


def noisy_images(dataset: str, first_class: int, n_classes: int = 6) -> ClassImages:
    """Classes of noisy 16x16 images, hard to tell apart."""
    g = generator(0, "images", dataset)
    noise = torch.randint(0, 200, (n_classes, 8, 16, 16, 3), generator=g)
    images = (noise + torch.randint(0, 56, (n_classes, 1, 16, 16, 3), generator=g)).to(torch.uint8)
    names = [f"class{first_class + i}" for i in range(n_classes)]
    return ClassImages(dataset, list(range(n_classes)), names, list(images), 16, HALF)


@pytest.fixture
def pair() -> list[ClassImages]:
    return [noisy_images("tiny", 0), noisy_images("second", 6)]


@pytest.fixture
def learner(tmp_path: Path) -> Path:
    """A 3-way learner of EI."""
    theta = initial_theta("conv4", 3, 16, generator(0, "theta"))
    save_learner(tmp_path / "learner/snapshots/iteration-000010.safetensors", theta, learner_info())
    return tmp_path / "learner"
