from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.common.dataset import Normalisation, View, load_split, load_splits, resized
from stages.common.learner import learner_view
from stages.interface.errors import BadInput
from tests.conftest import save_classes, teacher_info

A = Normalisation((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
B = Normalisation((0.1, 0.6, 0.5), (0.5, 0.1, 0.4))


def _pixels(size: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, size, size, 3), generator=g, dtype=torch.uint8)


def test_convert_and_back_is_the_identity(double: None) -> None:
    """Also where synthetic images leave the valid pixels: nothing is clamped."""
    x = 10 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    there = A.convert(x, B)
    assert torch.allclose(B.convert(there, A), x, atol=1e-12)
    assert torch.equal(A.convert(x, A), x)
    # By hand: pixel 0.5 + 2 * 0.25 = 1 of the first channel is (1 - 0.1) / 0.5 = 1.8 to B.
    assert A.convert(torch.full((1, 3, 1, 1), 2.0), B)[0, 0, 0, 0].item() == pytest.approx(1.8)


def test_convert_equals_normalising_the_pixels_anew() -> None:
    images = _pixels()
    x = A.apply(images)
    assert torch.allclose(A.convert(x, B), B.apply(images), atol=1e-5)
    assert torch.equal(A.invert(x), images)
    assert torch.allclose(A.convert(x, B), B.apply(A.invert(x)), atol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 24])
def test_a_view_sees_pixels_and_anothers_input_alike(size: int) -> None:
    view, images = View(size, B), _pixels()
    assert view.of(images).shape == (2, 3, size, size)
    assert torch.allclose(view.of(images), view.of_another(A.apply(images), A), atol=1e-5)


@pytest.mark.parametrize("size", [5, 16, 40])
def test_resizing_keeps_constants_and_equal_sizes(size: int) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized(x, 16), x)
    constant = x[:, :, :1, :1].expand_as(x)
    expected = x[:, :, :1, :1].expand(2, 3, size, size)
    assert torch.allclose(resized(constant, size), expected, atol=1e-6)


def _weights(n: int, size: int) -> Tensor:
    """(size, n): triangles as wide as an output pixel, or as an input pixel where it grows."""
    scale = n / size
    rows = []
    for i in range(size):
        centre, reach = (i + 0.5) * scale, max(scale, 1)
        row = torch.tensor([max(0.0, 1 - abs(j + 0.5 - centre) / reach) for j in range(n)])
        rows.append(row / row.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("size", [4, 11, 24])
def test_resizing_is_smoothed_and_differentiable(double: None, size: int) -> None:
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    w = _weights(16, size)
    found = resized(x, size)
    assert torch.allclose(found, w @ x @ w.T, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    per_pixel = w.sum(0)[:, None] * w.sum(0)
    assert torch.allclose(gradient, per_pixel.expand_as(gradient), atol=1e-6)
    assert gradient.min() > 0  # no pixel is skipped, however far the image shrinks


def test_the_learner_sees_as_the_smallest_or_largest_teachers_do() -> None:
    sizes = {32: A, 16: B, 48: A}
    pool = [
        teacher_info(i, image_size=size, mean=norm.mean, std=norm.std)
        for i, (size, norm) in enumerate(sizes.items())
    ]
    assert learner_view(pool, "smallest") == View(16, B)
    assert learner_view(pool, "largest") == View(48, A)


def _write(path: Path, dataset: str, splits: dict[str, list[str]]) -> Path:
    """Image j of the i-th sorted class, which has i + 2, is full of 10 i + j."""
    n_classes = sum(map(len, splits.values()))
    images = [
        torch.stack([torch.full((4, 4, 3), 10 * i + j) for j in range(2 + i)])
        for i in range(n_classes)
    ]
    return save_classes(path, dataset, splits, [part.to(torch.uint8) for part in images], A)


@pytest.fixture
def farm(tmp_path: Path) -> Path:
    splits = {"train": ["cow", "ant"], "val": ["bee"], "test": ["dog"]}
    return _write(tmp_path / "farm.safetensors", "farm", splits)


def test_a_split_is_its_classes_and_their_images(farm: Path) -> None:
    train = load_split(farm, "train")
    assert (train.dataset, train.image_size, train.normalisation) == ("farm", 4, A)
    assert train.class_names == ["ant", "cow"]
    assert train.class_ids == [0, 2]  # of ant, bee, cow, dog
    values = [images[:, 0, 0, 0].tolist() for images in train.images]
    assert values == [[0, 1], [20, 21, 22, 23]]
    assert load_split(farm, "test").images[0].shape == (5, 4, 4, 3)


def test_splits_of_several_data_sets(farm: Path, tmp_path: Path) -> None:
    zoo = _write(
        tmp_path / "zoo.safetensors", "zoo", {"train": ["yak"], "val": ["emu"], "test": ["owl"]}
    )
    assert [data.dataset for data in load_splits([zoo, farm], "val")] == ["zoo", "farm"]
    assert [data.class_names for data in load_splits([zoo, farm], "val")] == [["emu"], ["bee"]]
    assert [data.dataset for data in load_splits([farm, farm], "train")] == ["farm"]


@pytest.mark.parametrize("where", ["train", "val", "test"])
def test_a_class_name_in_two_data_sets_is_refused(farm: Path, tmp_path: Path, where: str) -> None:
    """Whatever its split: a teacher of the one could know an unseen class of the other."""
    splits: dict[str, list[str]] = {"train": ["yak"], "val": ["emu"], "test": ["owl"]}
    splits[where].append("dog")
    other = _write(tmp_path / "other.safetensors", "zoo", splits)
    for split in ("train", "val", "test"):
        with pytest.raises(BadInput, match=r"class 'dog' is in farm and in zoo"):
            load_splits([farm, other], split)
