"""Varied inverted images, and the term of the loss that is learned on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.common.pool import load_pool
from stages.common.seeds import generator
from stages.meta_train.distillation_loss import label_loss
from stages.meta_train.params import Variation
from stages.meta_train.variation import varied
from tests.meta_train.test_distill import run


def made(x: torch.Tensor, crop: float, colour: float, seed: int = 0) -> torch.Tensor:
    params = Variation(batch_size=len(x), crop=crop, colour=colour)
    return varied(x, params, generator(seed, "variation"))


def test_without_crop_and_colour_an_image_stays_or_is_mirrored() -> None:
    x = torch.randn(40, 3, 16, 16, generator=generator(0, "x"))
    found = made(x, crop=1.0, colour=0.0)
    stays = (found - x).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (found - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (stays ^ mirrored).all()
    assert stays.any()
    assert mirrored.any()


def test_a_crop_is_a_part_of_the_image_enlarged() -> None:
    """Of a ramp, bilinear crops are ramps: their slope is the crop's side, their ends its place."""
    place = (torch.arange(32) + 0.5) / 32
    across, down = place.expand(32, 32), place[:, None].expand(32, 32)
    x = torch.stack([across, down, torch.zeros(32, 32)]).expand(200, 3, 32, 32)
    found = made(x, crop=0.5, colour=0.0)
    inner = found[:, :, 1:-1, 1:-1]  # the outermost sample points may lie between edge and border
    slope = (inner[:, 0, 0, -1] - inner[:, 0, 0, 0]) / (29 / 32)
    side = (inner[:, 1, -1, 0] - inner[:, 1, 0, 0]) / (29 / 32)
    assert torch.allclose(slope.abs(), side, atol=1e-4)  # as wide as high; mirrored across only
    assert 0.5 <= side.min() < 0.55
    assert 0.95 < side.max() <= 1.0
    assert 0.35 < float((slope < 0).float().mean()) < 0.65
    upper = inner[:, 1, 0, 0] - 1.5 / 32 * side  # edges of the crop
    left = inner[:, 0, 0].amin(1) - 1.5 / 32 * side
    small = side < 0.9
    for edge in (upper, left):
        place = edge[small] / (1 - side[small])  # anywhere that there is room, 0 to 1
        assert -0.01 < place.min() < 0.1
        assert 0.9 < place.max() < 1.01
    assert (upper - left).abs()[small].max() > 0.1
    assert torch.equal(found[:, 2], torch.zeros(200, 32, 32))
    for i in range(1, 3):
        assert not torch.allclose(found[i], found[0])  # each image by itself


def test_colours_change_within_their_bounds() -> None:
    x = torch.ones(300, 3, 16, 16)
    x[150:] = 0.0
    found = made(x, crop=1.0, colour=0.2)
    assert torch.allclose(found, found[:, :, :1, :1].expand_as(found), atol=1e-5)
    bright, dark = found[:150, :, 0, 0], found[150:, :, 0, 0]
    assert torch.allclose(dark, dark[:, :1].expand_as(dark))  # brightness is of all channels
    assert 0.15 < dark.abs().max() <= 0.2
    assert 0.35 < (bright - 1).abs().max() <= 0.5
    assert not torch.allclose(bright, bright[:, :1].expand_as(bright), atol=0.05)


def test_the_student_is_asked_for_the_classes_of_varied_inverted_images(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = load_pool(tiny_pool)
    student = run(pool, tmp_path / "work")
    inverted = {
        tuple(image.flatten().tolist()): first + int(label)
        for first, part in zip((0, 3, 6), student._inverted, strict=True)
        for image, label in zip(*part, strict=True)
    }
    assert len(inverted) == 27
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remembered(x: torch.Tensor, *rest: object) -> torch.Tensor:
        asked.append((x, varied(x, *rest)))  # type: ignore[arg-type]
        return asked[-1][1]

    def judged(logits: torch.Tensor, labels: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        images = pool[0].info.normalisation.invert(asked[-1][0])
        assert labels.tolist() == [inverted[tuple(x.flatten().tolist())] for x in images]
        shown = student._student.body(asked[-1][1].contiguous()).logits
        assert torch.allclose(logits, shown, atol=1e-5)  # of the varied images
        return label_loss(logits, labels, *rest)

    monkeypatch.setattr("stages.meta_train.distill.varied", remembered)
    monkeypatch.setattr("stages.meta_train.distill.label_loss", judged)
    found = [student._varied_labels(t).item() for t in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_the_term_of_varied_images_is_part_of_the_loss(tiny_pool: Path, tmp_path: Path) -> None:
    student = run(load_pool(tiny_pool), tmp_path / "work")
    weights = student._own.weights
    found = student.step(0)
    assert found["varied_labels"] > 0
    assert found["loss"] == pytest.approx(
        weights.kl * found["kl"]
        + weights.ratios * found["ratios"]
        + weights.features * found["features"]
        + weights.labels * (found["labels"] + found["varied_labels"]),
        rel=1e-5,
    )


def test_both_passes_are_in_the_running_statistics(tiny_pool: Path, tmp_path: Path) -> None:
    """A third of the gain, or more: FINDINGS."""
    student = run(load_pool(tiny_pool), tmp_path / "work")
    student.step(0)
    assert int(student._student.body.norms[0].num_batches_tracked) == 2


def test_without_labels_or_inverted_images_nothing_is_varied(
    tiny_pool: Path, tmp_path: Path
) -> None:
    pool = load_pool(tiny_pool)
    for method in ("distill_no_labels", "distill_procedural"):
        student = run(pool, tmp_path / method, method)
        assert student.step(0)["varied_labels"] == 0
    student = run(pool, tmp_path / "none")
    student._shared = student._shared.model_copy(
        update={"variation": Variation(batch_size=0, crop=0.6, colour=0.3)}
    )
    assert student.step(0)["varied_labels"] == 0


@pytest.mark.parametrize("known", [True, False])
def test_the_label_loss_of_a_case_by_hand(known: bool) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    class_of = torch.tensor([0, 1, 0, -1])  # outputs 0 and 2 are one class, output 3 is spare
    labels = torch.tensor([2 if known else -1, -1])
    expected = -torch.tensor(2 / 3).log() if known else torch.tensor(0.0)
    assert torch.allclose(label_loss(logits, labels, class_of), expected)
