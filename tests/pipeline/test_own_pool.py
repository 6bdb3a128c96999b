"""The README's "I have twelve checkpoints and no data", from start to end, but smaller."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from ruamel.yaml import YAML
from torchvision import models

from stages.aggregate.cells import load_cell
from stages.common.dataset import Normalisation
from stages.common.seeds import generator
from tests.conftest import ROOT

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
COLOURS = torch.tensor(
    [[200, 40, 40], [40, 190, 60], [50, 60, 200], [210, 200, 40], [190, 50, 190], [40, 190, 190]]
)
N_TEACHERS, SIZE = 3, 32


def images_of(classes: list[int], n: int, stream: torch.Generator) -> torch.Tensor:
    """uint8 (len(classes) * n, s, s, 3): noise about a colour, grouped by class."""
    colour = COLOURS[classes].repeat_interleave(n, 0)[:, None, None, :].float()
    noise = 40 * torch.randn(len(colour), SIZE, SIZE, 3, generator=stream)
    return (colour + noise).clamp(0, 255).to(torch.uint8)


def checkpoint(path: Path, classes: list[int]) -> None:
    """A ResNet-18 of torchvision, trained on its own classes; its state dict and class names."""
    torch.manual_seed(classes[0])
    net, stream = models.resnet18(num_classes=len(classes)).train(), generator(0, *classes)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    labels = torch.arange(len(classes)).repeat_interleave(8)
    for _ in range(30):
        optimizer.zero_grad()
        x = IMAGENET.apply(images_of(classes, 8, stream))
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    torch.save(net.state_dict(), path)
    path.with_suffix(".txt").write_text("".join(f"colour {c}\n" for c in classes))


def purer(folder: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    result = subprocess.run(
        [sys.executable, "-c", "from stages.cli import app; app()", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small params.yaml, and a pool imported from checkpoints."""
    folder = tmp_path_factory.mktemp("own")
    yaml = YAML()
    document = yaml.load(ROOT / "params.yaml")
    document["device"] = "cpu"
    document["meta_train"]["distillation"].update(batch_size=32, n_components=16)
    document["meta_test"].update(n_episodes=20, curve_episodes=5)
    document["pseudo"].update(images_per_class=22, inversion_steps=8)
    budget = document["budgets"]["quick"]
    budget["distillation"].update(
        n_iterations=120,
        procedural_images=120,
        inverted_images=40,
        inversion_steps=40,
        n_snapshots=2,
    )
    budget["meta_train"].update(n_iterations=2, curriculum_start=1, n_snapshots=1)
    budget["meta_test"].update(n_val_episodes=10)
    yaml.dump(document, folder / "params.yaml")
    for i in range(N_TEACHERS):
        path = folder / f"{i}.pt"
        checkpoint(path, [2 * i, 2 * i + 1])
        options = ("--architecture", "torchvision/resnet18", "--classes", path.with_suffix(".txt"))
        more = ("--image-size", SIZE, "--normalisation", "imagenet")
        purer(folder, "pool", "import", "models/own", path, *options, *more)
    purer(folder, "pseudo", "--pool", "models/own", "--out", "data/none.safetensors")
    return folder


def meta_train(folder: Path, method: str) -> Path:
    task = ("--scenario", "sh", "--n-way", 5, "--n-shot", 5, "--budget", "quick")
    out = folder / "models" / "learners" / method
    purer(folder, "meta_train", "--pool", "models/own", *task, "--method", method, "--out", out)
    return out


def meta_test(folder: Path, method: str, learner: Path | None) -> Path:
    key = f"sh-none-5way-5shot-{method}"
    metrics = folder / "reports" / "quick" / "seed-0" / f"{key}.json"
    given = ("--learner", learner) if learner else ()
    given += ("--data", "data/none.safetensors")
    task = ("--n-way", 5, "--n-shot", 5, "--budget", "quick", "--metrics", metrics)
    out = ("--out", folder / "models" / "evaluations" / key)
    purer(folder, "meta_test", key, "--pool", "models/own", *given, *task, *out)
    return metrics


def test_from_checkpoints_to_predictions(project: Path) -> None:
    assert "3 teachers, 6 classes" in purer(project, "pool", "show", "models/own")
    checked = purer(project, "pool", "check", "models/own")
    assert checked.count(": fine") == N_TEACHERS
    learner = meta_train(project, "distill")
    metrics = meta_test(project, "distill", learner)
    cell = load_cell(metrics)
    assert cell.datasets == ["none"]
    assert cell.data_used.startswith("none, but a hand-made image prior")
    assert set(cell.rows) == {"one_step", "icfil", "nearest_class_mean", "linear_probe"}
    assert "inductive" in cell.rows["nearest_class_mean"].protocol

    given = ["--out", "learner.safetensors", "--cell", metrics]
    if all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):  # the extra purer[onnx]
        given += ["--onnx", "learner.onnx"]
    said = purer(project, "export", learner, *given)
    assert (project / "learner.onnx").exists() == ("--onnx" in given)
    assert f"after {cell.rows['nearest_class_mean'].snapshot} iterations" in said
    stream = generator(0, "unseen")
    for name, classes in (("support", [0, 3]), ("new", [0, 3])):
        pixels = images_of(classes, 5, stream)
        for i, image in enumerate(pixels):
            kind = f"colour-{classes[i // 5]}"
            place = project / name / (kind if name == "support" else "")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).resize((50, 40)).save(place / f"{kind}-{i}.png")
    out = project / "predictions.csv"
    given = ("--learner", "learner.safetensors", "--predict", "new", "--out", out)
    purer(project, "adapt", "support", *given)
    table = pd.read_csv(out)
    right = table["image"].str.rsplit("-", n=1).str[0] == table["predicted"]
    assert right.mean() == 1.0
    assert np.allclose(table[["colour-0", "colour-3"]].sum(axis=1), 1)
    place = ("--learner", "learner.safetensors", "--out", "features.parquet")
    purer(project, "embed", "new", *place)
    features = pd.read_parquet(project / "features.parquet").set_index("image")
    assert list(features.index) == list(table["image"])
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("method", ["ei", "eci"])
def test_episode_inversion_takes_the_same_pool(project: Path, method: str) -> None:
    learner = meta_train(project, method)
    cell = load_cell(meta_test(project, method, learner))
    assert (cell.datasets, cell.similarity) == (["none"], None)
    assert {"one_step", "icfil"} <= set(cell.rows)


def test_the_pool_itself_is_judged_on_pseudo_episodes(project: Path) -> None:
    cell = load_cell(meta_test(project, "pool", None))
    assert "pool_features" in cell.rows
