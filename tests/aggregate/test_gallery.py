from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from stages.aggregate import figures
from stages.aggregate.cells import Cell, load_cell
from stages.aggregate.gallery import LABELS, draw_all, keep_pictures, synthetic_pictures
from stages.aggregate.results import labelled, results
from stages.interface.provenance import IMAGE_PRIOR
from tests.aggregate.fakes import fake_cell, row_of, write_cell

CELL = "ss-cifar_fs-5way-1shot-eci"


def load(root: Path, key: str, **changes: Any) -> Cell:
    return load_cell(write_cell(root, key, **changes))


def test_the_longest_title_fits_into_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two data sets and a long row: it was cut at both ends."""
    inside = []

    def measured(figure: Figure, path: Path) -> None:
        figure.canvas.draw()
        title = figure.get_suptitle()
        (text,) = [text for text in figure.texts if text.get_text() == title]
        box = text.get_window_extent()
        inside.append((title, box.x0 >= 0 and box.x1 <= figure.bbox.x1))
        path.touch()

    monkeypatch.setattr(figures, "_save", measured)
    cell = load(tmp_path, "mh-cifar_fs-10way-5shot-distill_no_outputs", data_used=IMAGE_PRIOR)
    cell = cell.model_copy(update={"similarity": load(tmp_path, CELL).similarity})
    draw_all(tmp_path, [cell], results([cell]))
    assert [title.startswith("MH, CIFAR-FS and MiniImageNet") for title, _ in inside] == [True] * 3
    assert all(fits for _, fits in inside)


def test_a_figures_labels_and_colours_tell_what_saw_data(tmp_path: Path) -> None:
    keys = [CELL, CELL.replace("eci", "real_maml"), CELL.replace("eci", "distill")]
    used = ["none", "all real meta-training images", IMAGE_PRIOR]
    cells = [load(tmp_path, key, data_used=words) for key, words in zip(keys, used, strict=True)]
    rows = dict(labelled(results(cells)))
    assert rows["ECI + ICFIL (PURER)"].method == "eci"
    assert rows["MAML + ICFIL (data-based)"].method == "real_maml"
    assert rows["Distilled Conv4-32 + ICFIL (image prior)"].method == "distill"
    colours = {label: figures._colour(row) for label, row in rows.items() if "ICFIL" in label}
    assert list(colours.values()) == [
        figures.PURER_COLOUR,
        figures.OTHER_COLOUR,
        figures.DATA_COLOUR,
    ]
    assert len(set(colours.values())) == 3
    pictures = draw_all(tmp_path, cells[2:], results(cells[2:]))
    (classes,) = [p.caption for p in pictures if p.section == "Accuracy by class"]
    assert "Distilled Conv4-32 + ICFIL (image prior), seed 0" in classes


def test_twenty_methods_have_a_colour_each() -> None:
    assert len(set(figures.COLOURS)) == 20


def test_many_rows_stand_in_several_figures_that_can_be_read(tmp_path: Path) -> None:
    rows = {f"row {i:02d}": row_of(np.full(40, i / 2), 5, "") for i in range(2 * LABELS + 1)}
    cell = load(tmp_path, CELL, rows=rows)
    pictures = draw_all(tmp_path, [cell], results([cell]))
    parts = [picture for picture in pictures if picture.section == "Accuracies"]
    assert [part.path.name for part in parts] == [
        "accuracy-ss-cifar_fs-5way.png",
        "accuracy-ss-cifar_fs-5way-2.png",
        "accuracy-ss-cifar_fs-5way-3.png",
    ]
    assert parts[1].caption.startswith("SS, CIFAR-FS, 5-way, budget quick (2 of 3): every row")
    for part in parts:
        with Image.open(part.path) as image:
            assert image.height < 1.3 * image.width


def test_every_caption_names_the_budget_and_curves_their_episodes(tmp_path: Path) -> None:
    both = [CELL, CELL.replace("eci", "ei")]

    def captions(**changes: Any) -> dict[str, str]:
        cells = [load(tmp_path, key, **changes) for key in both]
        return {p.section: p.caption for p in draw_all(tmp_path, cells, results(cells))}

    before = captions()
    assert len(before) == 5
    assert all("budget quick" in caption for caption in before.values())
    assert "with 95 % bands, a line" in before["The curriculum (figure 4)"]
    curve = [{**point, "n_episodes": 30} for point in fake_cell(CELL)["curve"]]
    wanted = "with 95 % bands over the first 30 meta-test episodes, a line a seed"
    assert wanted in captions(curve=curve)["The curriculum (figure 4)"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models/ with the picture of the invented cell's run."""
    monkeypatch.chdir(tmp_path)
    evaluation = tmp_path / "models/evaluations" / CELL
    evaluation.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(evaluation / "synthetic.png")
    own = {k: v for k, v in fake_cell(CELL)["provenance"][-1].items() if k != "stage"}
    (evaluation / "provenance.json").write_text(json.dumps(own))
    return evaluation


def another(run: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"provenance": [*fake_cell(CELL)["provenance"][:-1], {**run, **changes}]}


def test_a_kept_picture_is_shown_of_its_own_run_alone(run: Path, tmp_path: Path) -> None:
    last = fake_cell(CELL)["provenance"][-1]
    cell = load(tmp_path, CELL)
    keep_pictures([cell])
    (run / "synthetic.png").unlink()
    (picture,) = synthetic_pictures([cell])
    assert picture.path == Path("reports/quick/seed-0/pictures") / f"{CELL}.png"
    with Image.open(picture.path) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)
    # the cell is replaced by another run
    assert not synthetic_pictures([load(tmp_path, CELL, **another(last, minutes=7.0))])
    assert not synthetic_pictures([load(tmp_path, CELL, **another(last, commit="0123456789"))])
    # kept before pictures said of which run they are
    Image.new("RGB", (8, 8), "blue").save(picture.path)
    assert synthetic_pictures([load(tmp_path, CELL, **another(last, minutes=7.0))])


def test_a_picture_of_another_run_in_models_is_not_taken(run: Path, tmp_path: Path) -> None:
    last = fake_cell(CELL)["provenance"][-1]
    cell = load(tmp_path, CELL, **another(last, minutes=7.0))
    keep_pictures([cell])
    assert not synthetic_pictures([cell])


def test_a_pictures_caption_names_data_scenario_and_panels(run: Path, tmp_path: Path) -> None:
    cell = load(tmp_path, CELL)
    (plain,) = synthetic_pictures([cell])
    assert plain.caption == (
        "SS, CIFAR-FS, 5-way, budget quick; 1-shot, ECI, seed 0: synthetic images, a row a class."
    )
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("panels", "conv4, cifar_fs; resnet10, cifar_fs")
    Image.new("RGB", (8, 8), "red").save(run / "synthetic.png", pnginfo=notes)
    for keep in (lambda: None, lambda: keep_pictures([cell])):
        keep()
        (named,) = synthetic_pictures([cell])
        assert named.caption.endswith(
            "a row a class; teachers from left to right: conv4, cifar_fs; resnet10, cifar_fs."
        )
