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
    with written_whole(out) as temporary:
        temporary.write_text("params.yaml passed `python -m stages.check`\n")
    typer.echo(f"params.yaml selects {cell_key(given)} at budget {given.budget}")


def cell_key(given: Params) -> str:
    """The selected cell's key in grid.yaml."""
    return f"{given.scenario}-{given.dataset}-{given.n_way}way-{given.n_shot}shot-{given.method}"


def check_cell(given: Params) -> None:
    """Raise BadInput if the selected cell is not in the grid."""
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
