"""The first stage of the pipeline: refuse a wrong selection before anything runs."""

from __future__ import annotations

from pathlib import Path

import typer
from ruamel.yaml import YAML

from stages.interface import params
from stages.interface.errors import BadInput, refuses_bad_input
from stages.interface.params import Params
from stages.split.catalogue import CATALOGUE

GRID = Path(__file__).parent / "grid.yaml"

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def check() -> None:
    """Check all of params.yaml and that the selected cell can exist."""
    given = params.load()
    check_selection(given)
    typer.echo(f"params.yaml selects {cell_key(given)} at budget {given.budget}")


def cell_key(given: Params) -> str:
    """The selected cell's key in grid.yaml."""
    return f"{given.scenario}-{given.dataset}-{given.n_way}way-{given.n_shot}shot-{given.method}"


def check_selection(given: Params) -> None:
    """Raise BadInput, with key, value and what is allowed, if the selection cannot be run."""
    spec = CATALOGUE[given.dataset]
    smallest = min(len(names) for names in spec.splits().values())
    if given.n_way > smallest:
        raise BadInput(
            f"params.yaml: n_way = {given.n_way}: {given.dataset} has only {smallest} classes in"
            f" its smallest split; allowed: 2 to {smallest}"
        )
    n_images = spec.images_per_class
    if n_images is None:
        n_images = params.lookup(given, f"datasets.{given.dataset}").images_per_class
    if given.n_shot + given.n_query > n_images:
        raise BadInput(
            f"params.yaml: n_shot = {given.n_shot}: with n_query = {given.n_query} an episode"
            f" needs {given.n_shot + given.n_query} images of a class, {given.dataset} has"
            f" {n_images}; allowed: n_shot + n_query up to {n_images}"
        )
    for name, budget in given.budgets.items():
        length = budget.meta_train
        if length.curriculum_start > length.n_iterations:
            raise BadInput(
                f"params.yaml: budgets.{name}.meta_train.curriculum_start ="
                f" {length.curriculum_start}: allowed: up to n_iterations = {length.n_iterations}"
            )
    cells = YAML(typ="safe").load(GRID)["cells"]
    if cell_key(given) not in cells:
        raise BadInput(
            f"params.yaml: {cell_key(given)} is not a cell of {GRID.parent.name}/{GRID.name};"
            f" its n_way: {_values(cells, given, 'n_way')}; n_shot:"
            f" {_values(cells, given, 'n_shot')}; another cell is a line there"
        )


def _values(cells: dict[str, dict[str, object]], given: Params, name: str) -> str:
    """The grid's values of one part of the key, for this data set."""
    values = {str(cell[name]) for cell in cells.values() if cell["dataset"] == given.dataset}
    return ", ".join(sorted(values, key=int))


if __name__ == "__main__":
    app(prog_name="python -m stages.check")
