"""The first stage of the pipeline: refuse a wrong selection before anything runs.

Every other stage comes after it, since split depends on its output; the output never changes, so
a changed parameter reruns the check and only what reads that parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from ruamel.yaml import YAML

from stages.common.files import written_whole
from stages.interface import params
from stages.interface.errors import BadInput, refuses_bad_input
from stages.interface.params import Params

# Sections of the grid whose keys are cells.
CELLS = ("cells", "pool_cells")
GRID = Path(__file__).parent / "grid.yaml"

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def check(
    out: Annotated[Path, typer.Option(help="The file to write, always the same.")] = Path(
        "reports/params.checked"
    ),
) -> None:
    """Check all of params.yaml and that the selected cell exists."""
    given = params.load()
    check_cell(given)
    if given.device.startswith("cuda"):
        from stages.interface.device import resolve

        resolve(given.device)
    with written_whole(out) as temporary:
        temporary.write_text("params.yaml passed `python -m stages.check`\n")
    typer.echo(f"params.yaml selects {cell_key(given)} at budget {given.budget}")


def cell_key(given: Params) -> str:
    """The selected cell's key in grid.yaml."""
    return f"{given.scenario}-{given.dataset}-{given.n_way}way-{given.n_shot}shot-{given.method}"


def check_cell(given: Params) -> None:
    """Raise BadInput if the selected cell is not in the grid, or its data sets are too small."""
    grid = YAML(typ="safe").load(GRID)
    cells: dict[str, dict[str, object]] = {}
    for section in CELLS:
        cells |= grid[section]
    if cell_key(given) not in cells:
        raise BadInput(
            f"params.yaml: {cell_key(given)} is not a cell of {GRID.parent.name}/{GRID.name};"
            f" {_others(list(cells), given)}; another cell is a line there"
        )
    if given.dataset == params.NO_DATASET:
        check_own_pool(given)
    params.check_dataset(given, str(cells[cell_key(given)]["second"]))


def check_own_pool(given: Params) -> None:
    """Raise BadInput unless own_pool is a pool with classes enough for an episode."""
    from stages.common.pool import load_manifest
    from stages.pseudo.classes import check_lends

    try:
        infos = load_manifest(Path(given.own_pool))
        check_lends(infos, given.pseudo.classes_per_teacher, given.n_way)
    except BadInput as error:
        raise BadInput(
            f"params.yaml: own_pool = {given.own_pool!r}: {error};"
            " `purer pool import` makes a pool of your checkpoints"
        ) from None


def _others(cells: list[str], given: Params) -> str:
    """What the grid has of the selected scenario and data set, or of the scenario."""
    alike = [key for key in cells if key.startswith(f"{given.scenario}-{given.dataset}-")]
    parts = [key.split("-") for key in alike]
    if not parts:
        found = {key.split("-")[1] for key in cells if key.startswith(f"{given.scenario}-")}
        return f"data sets of scenario {given.scenario} there: {', '.join(sorted(found))}"
    columns = (("n_way", 2, "way"), ("n_shot", 3, "shot"), ("method", 4, ""))
    return "; ".join(
        f"{name} there: {', '.join(dict.fromkeys(p[i].removesuffix(unit) for p in parts))}"
        for name, i, unit in columns
    )


if __name__ == "__main__":
    app(prog_name="python -m stages.check")
