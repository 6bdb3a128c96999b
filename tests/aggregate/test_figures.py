"""Figures show the numbers of their cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.aggregate import figures
from stages.aggregate.cells import Cell, load_cell
from stages.aggregate.results import labelled, results
from tests.aggregate.fakes import write_cell


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    keys = [f"ss-cifar_fs-5way-{n_shot}shot-eci" for n_shot in (1, 5)]
    return [load_cell(write_cell(tmp_path, key)) for key in keys]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, instead of their files."""
    kept: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    return kept


def test_bars_are_accuracies_with_their_intervals(cells: list[Cell], drawn: list[Any]) -> None:
    rows = labelled(results(cells))
    figures.save_accuracies(Path("a.png"), rows, "title")
    for axes, n_shot in zip(drawn[0].axes, (1, 5), strict=True):
        own = [result for _, result in rows if result.n_shot == n_shot]
        assert [bar.get_width() for bar in axes.patches] == [r.accuracy for r in own]
        lines = axes.containers[-1].errorbar.lines[2][0].get_segments()
        halves = [(line[1, 0] - line[0, 0]) / 2 for line in lines]
        assert halves == pytest.approx([r.ci95 for r in own])


def test_similarity_has_synthetic_rows_and_real_columns(
    cells: list[Cell], drawn: list[Any]
) -> None:
    assert cells[0].similarity is not None
    two = {"matrix": [[0.0, 1.0], [2.0, 3.0]], "classes": ["a", "b"]}
    figures.save_similarity(Path("s.png"), cells[0].similarity.model_copy(update=two), "title")
    assert drawn[0].axes[0].images[0].get_array().tolist() == [[0, 1], [2, 3]]


def test_the_curriculum_has_bands_and_its_adversarial_steps(
    cells: list[Cell], drawn: list[Any]
) -> None:
    cell = cells[0]
    figures.save_curriculum(Path("c.png"), [cell], "title")
    band, ticks = drawn[0].axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(min(p.accuracy - p.ci95 for p in cell.curve))
    assert heights.max() == pytest.approx(max(p.accuracy + p.ci95 for p in cell.curve))
    assert [line[0, 0] for line in ticks.get_segments()] == cell.history.switches


def test_a_moving_mean_by_hand() -> None:
    assert figures._moving_mean(np.array([1.0, 3.0, 5.0]), 2).tolist() == [1, 2, 4]
