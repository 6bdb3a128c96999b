"""Which figures a set of cells gives, drawn into a folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stages.aggregate.cells import EVALUATIONS, Cell, by_task, path_of
from stages.aggregate.figures import (
    save_accuracies,
    save_classes,
    save_curriculum,
    save_similarity,
    save_training,
)
from stages.aggregate.names import PURER, data_name, marked, method_name, row_name, row_order
from stages.aggregate.results import Result, labelled
from stages.common.files import load_json, written_whole
from stages.interface.errors import BadInput

RUN, PANELS = "run", "panels"  # texts in a PNG file; stages/meta_train/picture.py writes the latter
LABELS = 30  # rows of a figure that can be read on a screen and on a printed page


@dataclass(frozen=True)
class Picture:
    section: str  # under which heading of the report it stands
    caption: str
    path: Path
    wide: bool = True


def draw_all(folder: Path, cells: Sequence[Cell], results: Sequence[Result]) -> list[Picture]:
    """Every figure that the cells have data for, as PNG files in `folder`."""
    pictures: list[Picture] = []
    for task, found in by_task(cells).items():
        name = f"{task[0]}-{task[1]}-{task[2]}way"
        title = _title(found[0])
        rows = [r for r in results if (r.scenario, r.dataset, r.n_way) == task]
        pictures += _accuracies(folder, name, title, labelled(rows))
        pictures += _curves(folder, name, title, found)
        pictures += _details(folder, title, found)
    return pictures


def _accuracies(
    folder: Path, name: str, title: str, rows: Sequence[tuple[str, Result]]
) -> Iterator[Picture]:
    """The rows in as many figures as their labels need to be read, with one axis for all."""
    labels = list(dict.fromkeys(label for label, _ in rows))
    parts = np.array_split(labels, math.ceil(len(labels) / LABELS))
    top = 1.05 * max(max(r.accuracy + r.ci95, r.published or 0) for _, r in rows)
    for i, part in enumerate(parts, 1):
        path = folder / (f"accuracy-{name}-{i}.png" if i > 1 else f"accuracy-{name}.png")
        which = f" ({i} of {len(parts)})" if len(parts) > 1 else ""
        here = [(label, result) for label, result in rows if label in part]
        save_accuracies(path, here, title + which, top)
        caption = (
            f"{title}{which}: every row with its 95 % interval. Diamonds: published. Red: PURER."
            " Grey: rows marked data-based, which see real meta-training images; no competitors."
        )
        yield Picture("Accuracies", caption, path)


def keep_pictures(cells: Sequence[Cell]) -> None:
    """Copy PURER's synthetic images from models/ to beside the cells, where git keeps them.

    A copy says of which run it is: the cell may be replaced where models/ holds another one.
    """
    for cell in cells:
        if (source := _made(cell)) is not None:
            with Image.open(source) as image, written_whole(_kept(cell)) as temporary:
                notes = PngInfo()
                for name, text in {**_texts(source), RUN: _run(cell)}.items():
                    notes.add_text(name, text)
                image.save(temporary, format="PNG", pnginfo=notes)


def synthetic_pictures(cells: Sequence[Cell]) -> list[Picture]:
    """Synthetic images (PURER, figure 5) of the very runs that the cells tell of."""
    pictures = []
    for cell in cells:
        path = _made(cell) or _kept(cell)
        texts = _texts(path) if path.is_file() else None
        # One kept before it was noted of which run it is counts as the cell's.
        if texts is not None and texts.get(RUN, _run(cell)) == _run(cell):
            panels = texts.get(PANELS)
            caption = (
                f"{_title(cell)}; {cell.n_shot}-shot, {method_name(cell.method)}, seed {cell.seed}:"
                " synthetic images, a row a class"
                f"{f'; teachers from left to right: {panels}' if panels else ''}."
            )
            pictures.append(Picture("Synthetic images (figure 5)", caption, path))
    return pictures


def _title(cell: Cell) -> str:
    """E.g. 'SS, CIFAR-FS, 5-way, budget quick'."""
    data = data_name(cell.datasets, cell.n_way)
    return f"{cell.scenario.upper()}, {data}, budget {cell.budget}"


def _kept(cell: Cell) -> Path:
    return path_of(cell.key, cell.budget, cell.seed).parent / "pictures" / f"{cell.key}.png"


def _made(cell: Cell) -> Path | None:
    """PURER's images in models/, if they are of this run: it may hold another budget's by now."""
    evaluation = EVALUATIONS / cell.key
    source, provenance = evaluation / "synthetic.png", evaluation / "provenance.json"
    if cell.method != PURER[0] or not (source.is_file() and provenance.is_file()):
        return None
    own = cell.provenance[-1].model_dump(exclude={"stage"}, exclude_unset=True)
    return source if own.items() <= load_json(provenance).items() else None


def _run(cell: Cell) -> str:
    """What tells a run from others of the same cell."""
    run = cell.provenance[-1]
    return f"commit {run.commit}, {run.minutes} minutes"


def _texts(path: Path) -> dict[str, str]:
    """What a PNG file says of itself. Raises BadInput if it is none."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {str(k): text for k, text in image.info.items() if isinstance(text, str)}
    except OSError:
        raise BadInput(f"{path}: not a PNG file, which is all that is allowed there") from None


def _curves(folder: Path, name: str, title: str, cells: Sequence[Cell]) -> Iterator[Picture]:
    both = [cell for cell in cells if cell.method in ("ei", "eci") and cell.curve]
    pairs = {cell.n_shot for cell in both if cell.method == "ei"}
    pairs &= {cell.n_shot for cell in both if cell.method == "eci"}
    if pairs:
        path = folder / f"curriculum-{name}.png"
        drawn = [cell for cell in both if cell.n_shot in pairs]
        save_curriculum(path, drawn, title)
        caption = (
            f"{title}: meta-test accuracy of every snapshot, without (EI) and with (ECI) the"
            f" curriculum, with 95 % bands{_curve_episodes(drawn)}, a line a seed. Drawn after the"
            " fact; no snapshot was chosen by it."
        )
        yield Picture("The curriculum (figure 4)", caption, path)
    firsts = {cell.key: cell for cell in reversed(cells)}  # the first seed of each
    if trained := [c for c in cells if c.history.iteration and firsts[c.key] is c]:
        path = folder / f"training-{name}.png"
        save_training(path, trained, title)
        caption = (
            f"{title}: meta-training, first seed. Thin lines: accuracy on training episodes"
            " (moving mean), which are pseudo episodes but for data-based rows. Dots: the"
            " snapshots on meta-validation, by one step if it chooses any."
        )
        yield Picture("Meta-training", caption, path)


def _curve_episodes(cells: Sequence[Cell]) -> str:
    """How many episodes the curves are of, which is fewer than the rows'; '' if nobody noted it."""
    counts = {point.n_episodes for cell in cells for point in cell.curve}
    known = sorted(count for count in counts if count is not None)
    return f" over the first {' or '.join(map(str, known))} meta-test episodes" if known else ""


def _details(folder: Path, title: str, cells: Sequence[Cell]) -> Iterator[Picture]:
    """Classes and similarity, a figure a number of shots, of the cell that stands for the task."""
    for n_shot in sorted({cell.n_shot for cell in cells}):
        here = [cell for cell in cells if cell.n_shot == n_shot]
        for cell in _representative([c for c in here if c.by_class]):
            row = PURER[1] if PURER[1] in cell.by_class else next(iter(cell.by_class))
            path = folder / f"classes-{cell.key}.png"
            label = marked(row_name(cell.method, row), cell.method, [cell.data_used])
            what = f"{title}; {n_shot}-shot, {label}, seed {cell.seed}"
            save_classes(path, cell, row, what)
            yield Picture("Accuracy by class", f"{what}.", path, wide=False)
        for cell in _representative([c for c in here if c.similarity]):
            assert cell.similarity is not None
            path = folder / f"similarity-{cell.key}.png"
            label = marked(method_name(cell.method), cell.method, [cell.data_used])
            what = f"{title}; {n_shot}-shot, {label}, seed {cell.seed}"
            save_similarity(path, cell.similarity, what)
            yield Picture("Synthetic against real images", f"{what}.", path, wide=False)


def _representative(cells: Sequence[Cell]) -> list[Cell]:
    """PURER's cell of the first seed, or else the first method's, or none."""
    purer = PURER[0]
    order = sorted(cells, key=lambda c: (c.method != purer, row_order(c.method), c.seed))
    return order[:1]
