"""The command of the meta_train stage: pool -> snapshots of the learner. It never sees data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages.interface import params
from stages.interface.errors import BadInput, check_name, refuses_bad_input
from stages.meta_train.methods import METHODS, Setting

if TYPE_CHECKING:
    from torch import Tensor

    from stages.common.loop import Run
    from stages.common.pool import Teacher

PARAMS = (
    "seed",
    "device",
    "n_query",
    "learner",
    "scenarios.{scenario}",
    "meta_train.{family}",
    "meta_train.{method}",
    "budgets.{budget}.{length}",
)

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def meta_train(
    pool: Annotated[Path, typer.Option(help="The pool folder to learn from.")],
    scenario: Annotated[str, typer.Option(help="A key of `scenarios` in params.yaml.")],
    n_way: Annotated[int, typer.Option(min=2, help="Classes of an episode.")],
    n_shot: Annotated[int, typer.Option(min=1, help="Support images per class.")],
    method: Annotated[str, typer.Option(help="How to meta-train: " + ", ".join(METHODS) + ".")],
    budget: Annotated[str, typer.Option(help="A key of `budgets` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    start: Annotated[
        Path | None,
        typer.Option(help="A learner's folder, for a method that starts from another's learner."),
    ] = None,
) -> None:
    """Meta-train a learner on a pool of classifiers, without any of their data."""
    check_name("method", method, METHODS)
    row = METHODS[method]
    if row.continues and start is None:
        raise BadInput(f"method = {method!r}: needs --start, a learner of {row.continues}")
    cell = {"scenario": scenario, "family": row.family, "method": method, "budget": budget}
    cell["length"] = row.length
    given = params.read(PARAMS, **cell)

    from stages.common.files import load_json
    from stages.common.learner import learner_view, snapshots
    from stages.common.pool import MANIFEST, load_pool
    from stages.common.training import train_and_save
    from stages.interface.device import prepared
    from stages.interface.provenance import provenance_of
    from stages.meta_train.remarks import remarks_on
    from stages.meta_train.starts import taught_by

    device = prepared(given["device"])
    continued = load_json(provenance_of(start)) if row.continues and start else None
    teachers = load_pool(pool, device)
    own = given["meta_train.{method}"]
    taught = taught_by(teachers, getattr(own, "n_teachers", "all"))
    length = given["budgets.{budget}.{length}"]
    remarks = remarks_on(taught, own, length)
    for remark in remarks:
        typer.echo(remark)
    setting = Setting(
        architecture=given["learner"].architecture,
        view=learner_view([teacher.info for teacher in teachers], given["learner"].image_size),
        scenario=given["scenarios.{scenario}"],
        budget=length,
        n_way=n_way,
        n_shot=n_shot,
        n_query=given["n_query"],
        seed=given["seed"],
        device=device,
        start=start if row.continues else None,
    )
    n_iterations = length.n_iterations if row.trains else 0
    minutes = train_and_save(
        "meta_train",
        method,
        lambda kept: row.start(
            taught, given["meta_train.{family}"], own, replace(setting, kept=kept)
        ),
        out,
        inputs=[given, n_shot],
        files=[
            pool / MANIFEST,
            *(pool / teacher.info.file for teacher in teachers),
            *(snapshots(start) if start and row.continues else ()),
        ],
        view=setting.view,
        n_way=n_way,
        n_iterations=n_iterations,
        n_snapshots=length.n_snapshots,
        seed=given["seed"],
        device=device,
        data_used=row.data_used(own),
        params=params.by_key(given, **cell),
        class_names=tuple(teacher.info.class_names for teacher in taught),
        remarks=remarks,
        continued=continued,
        also=lambda folder, run: _save_synthetic(folder, run, taught),
    )
    typer.echo(f"{out}: {n_iterations} iterations of {method} in {minutes:.1f} minutes")


def _save_synthetic(folder: Path, run: Run, teachers: Sequence[Teacher]) -> None:
    """synthetic.safetensors and synthetic.png, of methods that have synthetic images."""
    from stages.common.files import save_tensors
    from stages.meta_train.picture import save_picture

    synthetic = run.synthetic()
    if not synthetic:
        return
    tensors: dict[str, Tensor] = {}
    for i, (images, labels) in enumerate(synthetic):
        tensors |= {f"teacher-{i:02d}.images": images, f"teacher-{i:02d}.labels": labels}
    infos = {"teachers": [asdict(teacher.info) for teacher in teachers]}
    save_tensors(folder / "synthetic.safetensors", tensors, infos)
    save_picture(folder / "synthetic.png", synthetic, teachers)
