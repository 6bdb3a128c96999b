"""Which figures a set of cells gives, drawn into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.aggregate.cells import EVALUATIONS, REPORTS, Cell, by_task, path_of
from stages.aggregate.figures import (
    save_accuracies,
    save_classes,
    save_curriculum,
    save_similarity,
    save_training,
)
from stages.aggregate.names import PURER, data_name, method_name, row_name, row_order
from stages.aggregate.results import Result
from stages.common.files import load_json, written_whole
from stages.interface.errors import BadInput


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
        title = f"{task[0].upper()}, {data_name(found[0].datasets, task[2])}"
        rows = [r for r in results if (r.scenario, r.dataset, r.n_way) == task]
        path = folder / f"accuracy-{name}.png"
        labelled = [(row_name(r.method, r.adaptation), r) for r in rows]
        save_accuracies(path, labelled, title)
        caption = f"{title}: every row with its 95 % interval; diamonds: published."
        pictures.append(Picture("Accuracies", caption, path))
        pictures += _curves(folder, name, title, found)
        pictures += _details(folder, title, found)
    return pictures


def keep_pictures(cells: Sequence[Cell]) -> None:
    """Copy PURER's synthetic images from models/ to beside the cells, where git keeps them.

    Only of the very run that a cell tells of: models/ may hold another budget or seed by now.
    """
    for cell in cells:
        evaluation = EVALUATIONS / cell.key
        source, provenance = evaluation / "synthetic.png", evaluation / "provenance.json"
        if cell.method != PURER[0] or not (source.is_file() and provenance.is_file()):
            continue
        own = cell.provenance[-1].model_dump(exclude={"stage"}, exclude_unset=True)
        if own.items() <= load_json(provenance).items():
            target = path_of(cell.key, cell.budget, cell.seed).parent / "pictures"
            with written_whole(target / f"{cell.key}.png") as temporary:
                shutil.copy(source, temporary)


def pictures_made_elsewhere(budget: str) -> list[Picture]:
    """Synthetic images (PURER, figure 5), stored beside the cells as PNG files."""
    pictures = []
    for path in sorted((REPORTS / budget).glob("seed-*/pictures/*.png")):
        if not path.read_bytes().startswith(b"\x89PNG"):
            raise BadInput(f"{path}: not a PNG file, which is all that is allowed there")
        caption = f"Synthetic images of {path.stem}, {path.parts[-3].replace('-', ' ')}."
        pictures.append(Picture("Synthetic images (figure 5)", caption, path))
    return pictures


def _curves(folder: Path, name: str, title: str, cells: Sequence[Cell]) -> Iterator[Picture]:
    both = [cell for cell in cells if cell.method in ("ei", "eci") and cell.curve]
    pairs = {cell.n_shot for cell in both if cell.method == "ei"}
    pairs &= {cell.n_shot for cell in both if cell.method == "eci"}
    if pairs:
        path = folder / f"curriculum-{name}.png"
        save_curriculum(path, [cell for cell in both if cell.n_shot in pairs], title)
        caption = (
            f"{title}: meta-test accuracy of every snapshot, without (EI) and with (ECI) the"
            " curriculum, with 95 % bands, a line a seed. Drawn after the fact; no snapshot was"
            " chosen by it."
        )
        yield Picture("The curriculum (figure 4)", caption, path)
    firsts = {cell.key: cell for cell in reversed(cells)}  # the first seed of each
    if trained := [c for c in cells if c.history.iteration and firsts[c.key] is c]:
        path = folder / f"training-{name}.png"
        save_training(path, trained, title)
        caption = (
            f"{title}: meta-training, first seed. Thin lines: accuracy on pseudo episodes (moving"
            " mean). Dots: the snapshots on meta-validation, by one step if it chooses any."
        )
        yield Picture("Meta-training", caption, path)


def _details(folder: Path, title: str, cells: Sequence[Cell]) -> Iterator[Picture]:
    """Classes and similarity, a figure a number of shots, of the cell that stands for the task."""
    for n_shot in sorted({cell.n_shot for cell in cells}):
        here = [cell for cell in cells if cell.n_shot == n_shot]
        for cell in _representative([c for c in here if c.by_class]):
            row = PURER[1] if PURER[1] in cell.by_class else next(iter(cell.by_class))
            path = folder / f"classes-{cell.key}.png"
            what = f"{title} {n_shot}-shot, {row_name(cell.method, row)}, seed {cell.seed}"
            save_classes(path, cell, row, what)
            yield Picture("Accuracy by class", f"{what}.", path, wide=False)
        for cell in _representative([c for c in here if c.similarity]):
            assert cell.similarity is not None
            path = folder / f"similarity-{cell.key}.png"
            what = f"{title} {n_shot}-shot, {method_name(cell.method)}, seed {cell.seed}"
            save_similarity(path, cell.similarity, what)
            yield Picture("Synthetic against real images", f"{what}.", path, wide=False)


def _representative(cells: Sequence[Cell]) -> list[Cell]:
    """PURER's cell of the first seed, or else the first method's, or none."""
    purer = PURER[0]
    order = sorted(cells, key=lambda c: (c.method != purer, row_order(c.method), c.seed))
    return order[:1]
