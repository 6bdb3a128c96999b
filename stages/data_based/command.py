"""The command of the data_based stage: *real* meta-training images -> snapshots of a learner.

The one kind of meta-training that sees data: MAML-dagger, the paper's control, and the ceilings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.data_based.params import DATA_BASED
from stages.interface import params
from stages.interface.errors import BadInput, check_name, refuses_bad_input

PARAMS = (
    "seed",
    "device",
    "n_query",
    "learner",
    "data_based.{method}",
    "data_based.compile",
    "budgets.{budget}.data_based",
)

# What a method saw, by its images_per_class.
DATA_USED = {
    "dynamic": "real meta-training images (as many as the synthetic ones)",
    "all": "all real meta-training images",
}

app = typer.Typer(add_completion=False)


@app.command()
@refuses_bad_input
def data_based(
    data: Annotated[Path, typer.Option(help="Canonical data set; its meta-train classes.")],
    n_way: Annotated[int, typer.Option(min=2, help="Classes of an episode.")],
    n_shot: Annotated[int, typer.Option(min=1, help="Support images per class.")],
    method: Annotated[str, typer.Option(help="What to meta-train: " + ", ".join(DATA_BASED) + ".")],
    budget: Annotated[str, typer.Option(help="A key of `budgets` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
) -> None:
    """Meta-train on real images: a control and the ceilings of data-free meta-learning."""
    check_name("method", method, DATA_BASED)
    given = params.read(PARAMS, method=method, budget=budget)

    from stages.common.dataset import View, load_split
    from stages.common.learner import sized
    from stages.common.training import train_and_save
    from stages.data_based.real import RealRun, subset
    from stages.interface.device import prepared

    device = prepared(given["device"])
    split = load_split(data, "train")
    own, length = given["data_based.{method}"], given["budgets.{budget}.data_based"]
    n_images = n_shot + given["n_query"]
    if n_way > len(split.images):
        raise BadInput(f"n_way = {n_way}: {data} has {len(split.images)} meta-train classes")
    if n_images > min(len(images) for images in split.images):
        raise BadInput(
            f"n_shot + n_query = {n_images}: a meta-train class of {data} has only"
            f" {min(len(images) for images in split.images)} images"
        )
    images = split.images
    if own.images_per_class == "dynamic":
        images = subset(images, n_images, given["seed"])
    view = sized(View(split.image_size, split.normalisation), given["learner"].image_size)
    minutes = train_and_save(
        "data_based",
        method,
        lambda kept: RealRun(
            images,
            view,
            given["learner"].architecture,
            own,
            compile_wish=given["data_based.compile"],
            n_iterations=length.n_iterations,
            n_way=n_way,
            n_shot=n_shot,
            n_query=given["n_query"],
            seed=given["seed"],
            device=device,
        ),
        out,
        inputs=[given, n_shot],
        files=[data],
        view=view,
        n_way=n_way,
        n_iterations=length.n_iterations,
        n_snapshots=length.n_snapshots,
        seed=given["seed"],
        device=device,
        data_used=DATA_USED[own.images_per_class],
        params=params.by_key(given, method=method, budget=budget),
    )
    typer.echo(f"{out}: {length.n_iterations} iterations of {method} in {minutes:.1f} minutes")
