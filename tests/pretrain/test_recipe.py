"""A teacher's training against METHODS 1.5, and which classes it sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from stages.common.architectures import build
from stages.common.dataset import ClassImages, Normalisation
from stages.common.pool import load_pool
from stages.common.seeds import generator
from stages.interface import params
from stages.pretrain import teacher as teacher_module
from stages.pretrain.command import app
from stages.pretrain.params import PretrainBudget
from stages.pretrain.pool import Lesson, train_pool
from tests.conftest import ROOT, nine_classes

SETTINGS = params.load(ROOT / "params.yaml").pretrain
# Where a patched epoch takes no step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def _tagged() -> ClassImages:
    """Image j of class i is full of 100 i + j."""
    tags = torch.arange(10).byte().view(10, 1, 1, 1).expand(10, 16, 16, 3)
    norm = Normalisation((0.5,) * 3, (0.25,) * 3)
    return ClassImages("tiny", [0, 1], ["a", "b"], [tags, tags + 100], 16, norm)


def test_teachers_learn_meta_train_classes(tmp_path: Path, at_project: Callable[..., None]) -> None:
    at_project({"budgets.quick.pretrain.epochs": 1})
    nine_classes(tmp_path / "d.safetensors")
    task = "--data d.safetensors --scenario ss --n-way 2 --budget quick --out pool"
    result = CliRunner().invoke(app, task.split())
    assert result.exit_code == 0, result.output
    taught = {name for teacher in load_pool(tmp_path / "pool") for name in teacher.info.class_names}
    assert taught == {"c0", "c1", "c2"}


def test_each_teacher_starts_from_a_draw_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[bytes, int]] = []

    def noted(net: Any, *given: Any) -> float:
        begun.append((net.convs[0].weight.detach().numpy().tobytes(), given[-1].initial_seed()))
        return 0.0

    monkeypatch.setattr(teacher_module, "_train_epoch", noted)
    length = PretrainBudget(epochs=1, resnet_epochs=1, batch_size=8)
    lessons = [Lesson("conv4", _tagged(), [0, 1])] * 2
    train_pool(tmp_path, lessons, SETTINGS, length, 2, 0, "cpu")
    (one, a), (other, b) = begun
    assert one != other
    assert a != b


@pytest.mark.parametrize("name", ["conv4", "resnet10"])
def test_a_teacher_is_trained_by_the_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimizer, rate by epoch, a drawn split of a class, the best epoch on what was held out."""
    seen: list[tuple[dict[str, Any], str, Tensor]] = []
    held: list[Tensor] = []
    judged = iter([30.0, 50.0, 50.0, 40.0, 10.0, 20.0])

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, *rest: Any) -> float:
        seen.append(({**optimizer.param_groups[0]}, type(optimizer).__name__, x))
        return 0.0

    def judge(net: nn.Module, x: Tensor, y: Tensor) -> float:
        held.append(x)
        return next(judged)

    monkeypatch.setattr(teacher_module, "_train_epoch", train)
    monkeypatch.setattr(teacher_module, "evaluate", judge)
    epochs = {"resnet_epochs" if name == "resnet10" else "epochs": 6}
    length = PretrainBudget(epochs=3, resnet_epochs=3, batch_size=8).model_copy(update=epochs)
    lesson = Lesson(name, _tagged(), [0, 1])
    (info,) = train_pool(tmp_path, [lesson], SETTINGS, length, 2, 0, "cpu")
    own = getattr(SETTINGS.optimizers, name)
    assert [kind for _, kind, _ in seen] == [{"adam": "Adam", "sgd": "SGD"}[own.name]] * 6
    group = seen[0][0]
    assert group["weight_decay"] == own.weight_decay
    assert group.get("momentum", 0.0) == own.momentum
    rates = [group["lr"] / own.lr for group, *_ in seen]
    assert rates == pytest.approx([1, 1, 1, 0.2, 0.04, 0.008])
    assert (info.epoch, info.val_accuracy) == (2, 50.0)
    assert [len(x) for *_, x in seen] == [16] * 6
    assert [len(x) for x in held] == [4] * 6
    parts = torch.cat([seen[0][2], held[0]])
    tags = _tagged().normalisation.invert(parts)[:, 0, 0, 0].tolist()
    assert sorted(tags) == [*range(10), *range(100, 110)]
    assert sorted(tags[-4:]) != [8, 9, 108, 109]  # not the last by content


def test_a_teachers_gradient_is_clipped() -> None:
    net = build("conv4", 2, 16, generator=generator(0, "net"))
    before, stream = copy.deepcopy(net.state_dict()), generator(0, "b")
    small = SETTINGS.model_copy(update={"max_grad_norm": 1e-3, "precision": "float32"})
    x, y = torch.randn(8, 3, 16, 16, generator=stream), torch.arange(8) % 2
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    teacher_module._train_epoch(net, optimizer, x, y, small, 8, stream)
    moved = torch.cat([(p - before[n]).flatten() for n, p in net.named_parameters()]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=0.01)
