"""Bringing one's own pool: import, show, check."""

from __future__ import annotations

import pickle
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from typer.testing import CliRunner, Result

from stages.aggregate.cells import Run
from stages.cli import app
from stages.common.architectures import batch_moments, bn_layers, build, channels_last
from stages.common.files import load_json
from stages.common.natural_inversion import _start, invert
from stages.common.networks import Foreign, build_network, head
from stages.common.params import InversionWeights
from stages.common.pool import (
    Teacher,
    TeacherInfo,
    load_manifest,
    load_pool,
    save_manifest,
    save_teacher,
)
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.errors import BadInput
from stages.interface.params import load
from stages.pool import checking
from stages.pool.checking import NORMALISATIONS, answers, check_pool
from stages.pool.command import _classes
from stages.pool.importing import add_teacher
from stages.pool.state_dicts import named_as_in, read_state
from tests.conftest import ROOT, random_state, teacher_info

HERE = "tests.pool.test_own_pools"


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools may name the networks of this file."""
    monkeypatch.setenv("PURER_TRUST", f"another, {HERE}")


class Small(nn.Module):
    """A network of nobody's: no BatchNorm."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def purer(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def trained(
    net: nn.Module,
    normalisation: str = "imagenet",
    look: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
) -> nn.Module:
    """`net` with BatchNorm statistics of procedural images, or of such that `look` otherwise."""
    for _, layer in bn_layers(net.train()):
        layer.momentum = 0.5  # twenty batches are enough to forget the start
    images = look(procedural_images(128, 32, generator(0, "seen")))
    with torch.no_grad():
        for _ in range(20):
            net(NORMALISATIONS[normalisation].apply(images).contiguous())
    return net.eval()


def trained_resnet() -> nn.Module:
    torch.manual_seed(0)
    return trained(models.resnet18(num_classes=3))


IMPORT = ("--classes", "a,b,c", "--image-size", 32, "--normalisation", "imagenet")


# --- networks from elsewhere ------------------------------------------------------------------


def test_a_network_from_elsewhere_says_what_its_batch_norms_see() -> None:
    net = build_network("torchvision/resnet18", 5, 32).eval()
    assert isinstance(net, Foreign)
    x = torch.randn(4, 3, 32, 32, generator=generator(0, "x"))
    seen: dict[str, torch.Tensor] = {}
    for name, layer in bn_layers(net):
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0])
        )
    output = net(x)
    assert torch.equal(output.logits, net.net(x))
    assert torch.equal(output.logits, net.net.fc(output.features))
    assert len(output.bn_inputs) == len(bn_layers(net)) == 20
    for (name, _), caught in zip(bn_layers(net), output.bn_inputs, strict=True):
        assert torch.equal(caught, seen[name])


def test_the_head_is_the_layer_with_the_outputs_not_the_last_one() -> None:
    net = Small()
    net.attention = nn.Linear(6, 6)  # made after the head, used or not
    assert head(net, 3) is net.head
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.Linear(4, 8))
    assert head(net, 3) is net[1]
    with pytest.raises(BadInput, match="no known head"):
        head(nn.Sequential(nn.ReLU()), 3)


@pytest.mark.parametrize(
    "name", ["vit_b_16", "convnext_tiny", "densenet121", "googlenet", "squeezenet1_1"]
)
def test_classifiers_of_torchvision_are_read(name: str) -> None:
    size = 224 if name == "vit_b_16" else 64
    net = build_network(f"torchvision/{name}", 7, size).eval()
    with torch.inference_mode():
        output = net(torch.zeros(1, 3, size, size))
    assert output.logits.shape == (1, 7)
    assert output.features.dim() == 2
    assert output.features.shape[1] < 3000
    assert bool(output.bn_inputs) == (name in ("densenet121", "googlenet"))


def test_classifiers_of_timm_are_read_where_it_is_installed() -> None:
    pytest.importorskip("timm", reason="the extra purer[timm] is optional")
    net = build_network("timm/convnext_atto", 7, 64).eval()
    with torch.inference_mode():
        output = net(torch.zeros(1, 3, 64, 64))
    assert (output.logits.shape, output.bn_inputs) == ((1, 7), [])
    with pytest.raises(BadInput, match=r"did you mean .convnext_atto"):
        build_network("timm/convnext_atoo", 7, 64)
    with pytest.raises(BadInput, match="checkpoint_path"):
        build_network("timm/convnext_atto", 7, 64, {"checkpoint_path": "code.pth"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"architecture = 'resnet81': allowed: conv4, .*did you mean .*\"resnet18\""),
        ("resnet50", r'\(did you mean "torchvision/resnet50"\?\)'),
        ("vgg61", r'did you mean .*"torchvision/vgg16"'),
        ("torchvision/resnet19", r"no such classifier \(did you mean \"resnet18\"\?\)"),
        ("torchvision/", "allowed: conv4"),
        ("elsewhere/net", "allowed: conv4"),
        ("python/no_such_module:Net", "No module named"),
        ("python/tests.pool.test_own_pools:Smal", "has no 'Smal'"),
        ("python/tests.pool.test_own_pools:tree", "missing 1 required"),
        ("python/tests.pool.test_own_pools:Small", "has 3 outputs, the manifest says 5"),
        ("python/tests.pool.test_own_pools:trained_resnet", "has 3 outputs, the manifest says 5"),
        ("python/builtins:dict", "gave a dict, allowed: an nn.Module"),
    ],
)
def test_a_name_that_does_not_exist_is_refused(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build_network(name, 5, 32)


# --- import -----------------------------------------------------------------------------------


def test_arguments_that_a_maker_refuses_are_one_message(tmp_path: Path) -> None:
    where, (mean, std) = "torchvision/vit_b_16", ([0.5] * 3, [0.5] * 3)
    given = (["a", "b", "c"], 33, mean, std)
    with pytest.raises(BadInput, match=r"no torchvision/vit_b_16 .* arguments .*33"):
        add_teacher(tmp_path, nn.Module(), where, *given, arguments={"image_size": 33})


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_a_state_dict_becomes_a_teacher(ending: str, tmp_path: Path) -> None:
    net, file = trained_resnet(), tmp_path / f"net.{ending}"
    state = net.state_dict()
    if ending == "safetensors":
        save_file(state, file)
    else:
        wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
        torch.save(wrapped, file)
    pool = tmp_path / "pool"
    where = ("--architecture", "torchvision/resnet18")
    result = purer("pool", "import", pool, file, *where, *IMPORT)
    assert result.exit_code == 0, result.output
    save_file(state | {"fc.bias": state["fc.bias"] + 1}, tmp_path / "other.safetensors")
    result = purer("pool", "import", pool, tmp_path / "other.safetensors", *where, *IMPORT)
    assert result.exit_code == 0, result.output
    first, second = load_pool(pool)
    x = torch.randn(2, 3, 32, 32, generator=generator(0, "x"))
    assert torch.equal(first.net(x).logits, net(x))
    assert (first.info.class_ids, second.info.class_ids) == ((0, 1, 2), (3, 4, 5))
    assert first.info.mean == (0.485, 0.456, 0.406)
    checked = purer("pool", "check", pool).output.replace("\n", " ")
    assert "3 classes are another teacher's as well (a, b, c)" in checked
    shown = purer("pool", "show", pool)
    assert "2 teachers, 3 classes" in shown.output
    assert "torchvision" in shown.output


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_what_comes_before_all_names_does_not_matter(prefix: str) -> None:
    net = build("conv4", 3, 32)
    state = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    found = named_as_in(net, state, "conv4", "net.pt")
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())


def test_what_lies_beside_a_prefix_is_left_out() -> None:
    net = build("conv4", 3, 32)
    own = {f"net.module.{name}": tensor for name, tensor in net.state_dict().items()}
    beside = {"loss.weight": torch.ones(3), "n_averaged": torch.ones(())}
    found = named_as_in(net, own | beside, "conv4", "x.pt")
    assert found.keys() == net.state_dict().keys()
    with pytest.raises(BadInput, match="its tensors are called net"):
        named_as_in(net, own | {f"twin.{n}": t for n, t in own.items()}, "conv4", "x.pt")


def test_the_checkpoint_of_a_training_is_read(tmp_path: Path) -> None:
    net, path = build("conv4", 3, 32), tmp_path / "training.pt"
    optimizer = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    training = {
        "args": Namespace(lr=0.1, layers=[1, 2]),
        "best": np.float64(71.2),
        "epoch": np.int64(3),
        "optimizer": optimizer.state_dict(),
        "random": {"cpu": torch.get_rng_state()},
        "scores": {"epoch-3.pt": torch.tensor(71.2)},
    }
    torch.save(training | {"weights": net.state_dict()}, path)
    assert_equal(read_state(path), net.state_dict())
    other = build("conv4", 3, 32).state_dict()
    torch.save(training | {"model": net.state_dict(), "ema": {"model": other}}, path)
    assert_equal(read_state(path, "ema.model"), other)
    with pytest.raises(BadInput, match=r"key = 'em': allowed: model, ema.model"):
        read_state(path, "em")
    torch.save(other, tmp_path / "alone.pt")
    with pytest.raises(BadInput, match=r"key = 'none': .* has no keys with a state dict"):
        read_state(tmp_path / "alone.pt", "none")
    given = ("pool", "import", tmp_path / "pool", path, "--architecture", "conv4", *IMPORT)
    assert purer(*given, "--key", "model").exit_code == 0
    assert_equal(load_pool(tmp_path / "pool")[0].net.state_dict(), net.state_dict())


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_prefix_of_the_networks_own_stays() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert named_as_in(net, net.state_dict(), "x", "x").keys() == net.state_dict().keys()
    parallel = nn.DataParallel(net).state_dict()
    assert named_as_in(net, parallel, "x", "x").keys() == net.state_dict().keys()


def test_names_and_counters_of_old_files_are_those_of_today() -> None:
    """torchvision's own DenseNet files: norm.1 for norm1, from before BatchNorm counted."""
    net = models.densenet121(num_classes=3)
    today = net.state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor
        for name, tensor in today.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    found = named_as_in(net, old, "torchvision/densenet121", "densenet121.pth")
    assert found.keys() == today.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in today.items())


def test_names_that_are_right_are_not_taken_for_old_ones() -> None:
    layer = nn.ModuleDict({"conv": nn.Sequential(nn.Conv2d(3, 4, 1))})
    net = nn.ModuleDict({"denselayer1": layer})
    assert "denselayer1.conv.0.weight" in named_as_in(net, net.state_dict(), "x", "x")


def test_a_state_dict_of_another_network_is_refused_by_its_names() -> None:
    words = "their.pt: its tensors are called a.weight, b.weight: conv4 has "
    state = {"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}
    with pytest.raises(BadInput, match=re.escape(words)):
        named_as_in(build("conv4", 3, 32), state, "conv4", "their.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": range(3)}, "net: the name 0 is a int: allowed: text"),
        ({"dataset": None}, "net: the name None is a NoneType: allowed: text"),
        ({"std": [0.5, 0.5, float("nan")]}, "std = .*nan.*: allowed: .*positive deviations"),
        ({"arguments": {"a": float("nan")}}, "arguments = .*nan.*: allowed: what JSON can say"),
        ({"arguments": {"a": {1, 2}}}, "arguments = .*: allowed: what JSON can say"),
    ],
)
def test_what_a_manifest_cannot_say_is_refused_before_it_is_written(
    changes: dict[str, object], message: str, tiny_pool: Path
) -> None:
    """Else no later command could read the pool."""
    before, half = tree(tiny_pool), [0.5] * 3
    given = {"class_names": ["a", "b", "c"], "image_size": 32, "mean": half, "std": half} | changes
    with pytest.raises(BadInput, match=message):
        add_teacher(tiny_pool, build("conv4", 3, 32), "conv4", **given)  # type: ignore[arg-type]
    assert tree(tiny_pool) == before


def test_of_imports_at_once_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(folder: Path) -> list[TeacherInfo]:
        found = load_manifest(folder)
        time.sleep(0.2)  # so that all would read before any writes
        return found

    monkeypatch.setattr("stages.pool.importing.load_manifest", slowly)
    nets, half = [build("conv4", 2, 16) for _ in range(4)], [0.5] * 3
    for i, net in enumerate(nets):
        nn.init.constant_(net.head.bias, i)
    add_teacher(tmp_path / "pool", nets[0], "conv4", ["a", "b"], 16, half, half)

    def join(net: nn.Module) -> TeacherInfo:
        return add_teacher(tmp_path / "pool", net, "conv4", ["a", "b"], 16, half, half)

    with ThreadPoolExecutor(3) as threads:
        assert len({info.file for info in threads.map(join, nets[1:])}) == 3
    biases = [teacher.net.head.bias[0].item() for teacher in load_pool(tmp_path / "pool")]
    assert sorted(biases) == [0, 1, 2, 3]


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["cat [old]", ":dog:"]
    add_teacher(tmp_path, build("conv4", 2, 16), "conv4", names, 16, [0.5] * 3, [0.5] * 3)
    shown = purer("pool", "show", tmp_path).output
    assert "[old]" in shown
    assert ":dog:" in shown


def test_the_provenance_of_a_pool_stands_beside_it_adopted_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    add_teacher(".", build("conv4", 3, 32), "conv4", ["a", "b", "c"], 32, [0.5] * 3, [0.5] * 3)
    assert purer("pool", "adopt", ".", "--out", tmp_path / "adopted").exit_code == 0
    for name in ("mine", "adopted"):
        run = Run.model_validate(load_json(tmp_path / f"{name}.provenance.json"))
        assert run.stage == "own_pool"
        assert load_json(tmp_path / f"{name}.provenance.json")["source"] == "."
    assert [p.name for p in sorted((tmp_path / "adopted").iterdir())] == [
        "manifest.json",
        "teacher-00.safetensors",
    ]


def test_heads_that_only_training_uses_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = models.googlenet(num_classes=3, init_weights=False)  # as a checkpoint has it
    where, (mean, std) = "torchvision/googlenet", ([0.5] * 3, [0.5] * 3)
    add_teacher(tmp_path / "pool", net, where, ["a", "b", "c"], 64, mean, std)
    (teacher,) = load_pool(tmp_path / "pool")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(teacher.net(x).logits, net.eval()(x))


def test_arguments_of_the_maker_are_json(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = models.vit_b_16(num_classes=3, image_size=32)
    torch.save(net.state_dict(), tmp_path / "vit.pt")
    given = (tmp_path / "pool", tmp_path / "vit.pt", "--architecture", "torchvision/vit_b_16")
    result = purer("pool", "import", *given, *IMPORT, "--arguments", '{"image_size": 32}')
    assert result.exit_code == 0, result.output
    (teacher,) = load_pool(tmp_path / "pool")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(teacher.net(x).logits, net.eval()(x))


def test_classes_may_be_many_names_or_a_file(tmp_path: Path) -> None:
    long = ",".join(f"class {i}" for i in range(200))  # longer than a file's name may be
    assert len(_classes(long)) == 200
    for text in ("a\r\n b \r\n", "\ufeffa\nb", "a\nb\n\n \n"):
        (tmp_path / "names.txt").write_bytes(text.encode())
        assert _classes(str(tmp_path / "names.txt")) == ["a", "b"]
    (tmp_path / "lr=1,wd=2").write_text("c\nd, e")
    assert _classes(str(tmp_path / "lr=1,wd=2")) == ["c", "d, e"]
    assert _classes("a, b,") == ["a", "b"]


def test_an_empty_name_is_refused_since_those_after_it_would_shift(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n\nc\n")
    with pytest.raises(BadInput, match=r"names.txt: line 3 is empty"):
        _classes(str(names))
    with pytest.raises(BadInput, match="'a,,c': name 2 is empty"):
        _classes("a,,c")
    names.write_bytes("Käse\nb".encode("latin-1"))
    with pytest.raises(BadInput, match=r"names.txt: not UTF-8 text"):
        _classes(str(names))


def test_a_network_joins_a_pool_once(tmp_path: Path) -> None:
    """So that a loop of imports that stopped halfway may be repeated."""
    save_file(trained_resnet().state_dict(), tmp_path / "0.safetensors")
    given = (
        tmp_path / "pool",
        tmp_path / "0.safetensors",
        "--architecture",
        "torchvision/resnet18",
    )
    assert purer("pool", "import", *given, *IMPORT).exit_code == 0
    before = tree(tmp_path / "pool")
    again = purer("pool", "import", *given, *IMPORT)
    assert (again.exit_code, tree(tmp_path / "pool")) == (2, before)
    assert "the same network is there already" in again.output
    other = purer("pool", "import", *given, *IMPORT, "--dataset", "another")
    assert other.exit_code == 0, other.output


class Forgetful(nn.Module):
    """Of its two BatchNorm layers the first keeps no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, track_running_stats=False)
        self.conv = nn.Conv2d(3, 5, 3)
        self.second = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.conv(self.first(x))).relu().mean((2, 3)))


@pytest.mark.usefixtures("trusted")
def test_a_layer_without_statistics_is_left_out_of_the_inversion(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = trained(Forgetful())
    n = NORMALISATIONS["imagenet"]
    given = (f"python/{HERE}:Forgetful", ["a", "b", "c"], 32, n.mean, n.std)
    add_teacher(tmp_path / "pool", net, *given)
    (teacher,) = load_pool(tmp_path / "pool")
    x = torch.randn(8, 3, 32, 32, generator=generator(0, "x"))
    (seen,) = teacher.net(x).bn_inputs
    assert torch.equal(seen, net.conv(net.first(x)))
    weights = InversionWeights(bn_statistics=1.0, tv=0.0, l2=0.0)
    ((state, loss),) = teacher_losses([teacher], weights, "float32", lambda n: lambda f: f)
    mean, var = seen.mean((0, 2, 3)), seen.var((0, 2, 3), correction=0)
    layer = net.second
    expected = (mean - layer.running_mean).norm() + (var - layer.running_var).norm()
    found = loss(state, x, torch.zeros(8, dtype=torch.long)).bn_statistics
    assert torch.allclose(found, expected, rtol=1e-4)


class Odd(nn.Module):
    """Networks that do not do what a classifier does."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> object:
        if self.what == "raises":
            raise KeyError("cls")
        if self.what == "tuple":
            return (self.head(self.norm(x).mean((2, 3))),)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raises", "does not take images of 32 x 32 pixels: 'cls'"),
        ("tuple", "gives a tuple: allowed: one tensor of outputs"),
        ("unused", "a BatchNorm2d layer takes no part in its forward pass"),
    ],
)
def test_a_network_that_is_no_classifier_is_refused(
    what: str, message: str, tmp_path: Path
) -> None:
    net, where = Odd(what), "python/tests.pool.test_own_pools:Odd"
    given = (["a", "b", "c"], 32, [0.5] * 3, [0.5] * 3)
    with pytest.raises(BadInput, match=re.escape(message)):
        add_teacher(tmp_path / "pool", net, where, *given, arguments={"what": what})
    assert not (tmp_path / "pool").exists()


class Viewing(nn.Module):
    """As many a network: it flattens by `view`, which features laid out channels-last refuse."""

    def __init__(self, stride: int = 2, ends: str = "logits") -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, stride, padding=1), nn.BatchNorm2d(6)
        self.head, self.ends = nn.Linear(6 * 16, 3), ends

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.norm(self.conv(x)).relu(), 4)
        x = self.head(x.view(x.size(0), -1))
        return x.softmax(1) if self.ends == "probabilities" else x


@pytest.mark.usefixtures("trusted")
def test_a_network_that_flattens_by_view_is_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, n = trained(Viewing()), NORMALISATIONS["imagenet"]
    add_teacher(tmp_path, net, f"python/{HERE}:Viewing", ["a", "b", "c"], 32, n.mean, n.std)
    ((_, found, _),) = check_pool(tmp_path)
    assert not found
    (teacher,) = load_pool(tmp_path)
    x = channels_last(torch.randn(4, 3, 32, 32, generator=generator(0, "x")))
    assert torch.equal(teacher.net(x).logits, net(x.contiguous()))
    weights = InversionWeights(bn_statistics=1.0, tv=0.0, l2=0.0)
    ((state, loss),) = teacher_losses([teacher], weights, "float32", lambda n: lambda f: f)
    loss(state, x.requires_grad_(), torch.tensor([0, 1, 2, 0])).total.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    layouts = build_network("torchvision/resnet18", 3, 32), teacher.net
    assert [foreign.channels_last for foreign in layouts] == [True, False]


def test_a_network_that_fails_hides_no_other(
    tiny_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers_but_the_first(teacher: Teacher, *rest: Any) -> Any:
        if teacher.info.file == "teacher-00.safetensors":
            raise RuntimeError("edited since it was imported")
        return answers(teacher, *rest)

    monkeypatch.setattr(checking, "answers", answers_but_the_first)
    found = [checked.findings for checked in check_pool(tiny_pool)]
    assert len(found) == 3
    message = "it cannot see an image: edited since it was imported"
    assert [message in lines for lines in found] == [True, False, False]


class Tied(Viewing):
    """One BatchNorm twice; features of the first pass that is no training are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.kept = self.norm, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None and not self.training:
            self.kept = 1 + self.conv.weight.mean()
        return super().forward(x) * (1 if self.training else self.kept)


@pytest.mark.usefixtures("trusted")
def test_trying_a_network_leaves_nothing_in_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = trained(Tied())
    net.kept = None
    given = (f"python/{HERE}:Tied", ["a", "b", "c"], 32, [0.5] * 3, [0.5] * 3)
    foreign = build_network(given[0], 3, 32)
    assert (foreign.channels_last, foreign.net.kept) == (False, None)
    add_teacher(tmp_path, net.state_dict(), *given)
    ((_, found, _),) = check_pool(tmp_path)
    assert not [line for line in found if "fit" not in line]


@pytest.mark.usefixtures("trusted")
def test_a_network_is_compared_with_what_is_made_again(tmp_path: Path) -> None:
    net = Viewing(stride=1)
    given = (f"python/{HERE}:Viewing", ["a", "b", "c"], 32, [0.5] * 3, [0.5] * 3)
    with pytest.raises(BadInput, match="the same parameters but answers otherwise"):
        add_teacher(tmp_path / "pool", net, *given)
    assert not (tmp_path / "pool").exists()
    net.conv.eval()
    add_teacher(tmp_path / "pool", net, *given, arguments={"stride": 1})
    assert (net.training, net.conv.training) == (True, False)  # as it was


@pytest.mark.usefixtures("trusted")
def test_probabilities_are_no_logits(tmp_path: Path) -> None:
    net, where = Viewing(ends="probabilities"), f"python/{HERE}:Viewing"
    given = (["a", "b", "c"], 32, [0.5] * 3, [0.5] * 3)
    with pytest.raises(BadInput, match="net: gives probabilities: allowed: logits"):
        add_teacher(tmp_path / "pool", net, where, *given, arguments={"ends": "probabilities"})
    add_teacher(tmp_path / "pool", net.state_dict(), where, *given)
    (info,) = load_manifest(tmp_path / "pool")
    info = replace(info, arguments={"ends": "probabilities"})
    save_teacher(tmp_path / "pool" / info.file, info, net.state_dict())
    save_manifest(tmp_path / "pool", [info])
    ((_, found, _),) = check_pool(tmp_path / "pool")
    assert "gives probabilities: allowed: logits, what comes before a softmax" in found


class Bytes(Viewing):
    """Takes pixels of 0 to 255 for those that its parent takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = NORMALISATIONS["bytes"]
        return super().forward(raw.convert(x, NORMALISATIONS["imagenet"]).contiguous())


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("start", ["procedural", "noise"])
def test_images_are_inverted_alike_whatever_the_scale_of_pixels(start: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = trained(Viewing()).state_dict()
    for name, normalisation in (("Viewing", "imagenet"), ("Bytes", "bytes")):
        n, classes = NORMALISATIONS[normalisation], [f"{name}-{c}" for c in "abc"]
        add_teacher(tmp_path, state, f"python/{HERE}:{name}", classes, 32, n.mean, n.std)
    pool = load_pool(tmp_path)
    params = load(ROOT / "params.yaml").meta_train.distillation.inversion
    params = params.model_copy(update={"precision": "float32"})
    losses = teacher_losses(pool, params.weights, "float32", lambda n: lambda f: f)
    made = [
        invert(
            *(teacher.info, state, loss, torch.arange(6) % 3, start, params, 8),
            *(generator(0, "inversion"), "cpu"),
        ).images.float()
        for teacher, (state, loss) in zip(pool, losses, strict=True)
    ]
    begun = pool[1].info.inverted_as.invert(
        _start(6, pool[1].info, start, generator(0, "inversion"))
    )
    assert (made[1] - begun.float()).abs().mean() > 8  # of 255
    assert (made[0] - made[1]).abs().mean() < 0.5


@pytest.mark.usefixtures("trusted")
def test_any_module_joins_in_five_lines(tmp_path: Path) -> None:
    net = Small(width=4)
    where = "python/tests.pool.test_own_pools:Small"
    classes = ["cat", "dog", "cow"]
    add_teacher(
        tmp_path / "pool", net, where, classes, 32, [0.5] * 3, [0.5] * 3, arguments={"width": 4}
    )
    (teacher,) = load_pool(tmp_path / "pool")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher.net(x).logits, net(x))
    assert teacher.net(x).features.shape == (2, 4)
    assert teacher.net(x).bn_inputs == []
    row = load_json(tmp_path / "pool" / "manifest.json")["teachers"][0]
    assert (row["architecture"], row["arguments"]) == (where, {"width": 4})


SPY = """
from pathlib import Path
from torch import nn
(Path(__file__).parent / "ran").touch()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x.mean((2, 3)))
"""


def test_the_code_of_a_pool_runs_only_if_its_module_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever brings the module says so by adding a teacher; whoever reads a pool, by name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spy_net.py").write_text(SPY)
    weights, pool = tmp_path / "net.safetensors", tmp_path / "pool"
    save_file(nn.Linear(3, 3).state_dict(prefix="head."), weights)
    given = (pool, weights, "--architecture", "python/spy_net:Net", *IMPORT)
    assert purer("pool", "import", *given).exit_code == 0
    (tmp_path / "ran").unlink()
    del sys.modules["spy_net"]

    for trusted in (None, "spy", "spy_net.other,other", ""):
        if trusted is not None:
            monkeypatch.setenv("PURER_TRUST", trusted)
        with pytest.raises(BadInput, match=r"PURER_TRUST=.*spy_net"):
            load_pool(pool)
        for command in ("check", "adopt"):
            out = ("--out", tmp_path / "adopted") if command == "adopt" else ()
            result = purer("pool", command, pool, *out)
            assert (result.exit_code, "PURER_TRUST=" in result.output) == (2, True)
        assert "spy_net" not in sys.modules
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "adopted").exists()
    assert purer("pool", "show", pool).exit_code == 0  # which reads names only

    monkeypatch.setenv("PURER_TRUST", "other,spy_net")
    assert len(load_pool(pool)) == 1
    assert (tmp_path / "ran").exists()


class Dangerous:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def _bad_files(folder: Path) -> dict[str, Path]:
    state = build("conv4", 3, 32).state_dict()
    torch.save(Dangerous(), folder / "code.pt")
    torch.save({"a": 1}, folder / "numbers.pt")
    torch.save({0: torch.zeros(1)}, folder / "numbered.pt")
    torch.save({"state_dict": state, "args": Dangerous()}, folder / "hidden.pt")
    torch.save({"model": state, "ema": {"model": state}}, folder / "several.pt")
    torch.save({"model": {"score": torch.zeros(())}}, folder / "none.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({}, folder / "empty.pt")
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "zero.pt").touch()
    (folder / "cut.pt").write_bytes(pickle.dumps({"a": 1})[:-3])
    (folder / "folder.pt").mkdir()
    (folder / "pickle.pt").write_bytes(pickle.dumps(Dangerous()))
    torch.save(state, folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    odd = {
        "sparse": state["head.weight"].to_sparse(),
        "meta": state["head.weight"].to("meta"),
        "quantized": torch.quantize_per_tensor(state["head.weight"], 0.1, 0, torch.qint8),
    }
    for kind, tensor in odd.items():
        torch.save(state | {"head.weight": tensor}, folder / f"{kind}.pt")
    save_file(state, folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "code.pt",
            r"holds (builtins\.)?print besides tensors, which is code; it is not run. Allowed",
        ),
        ("pickle.pt", "holds code, not tensors alone"),
        ("hidden.pt", r"holds (builtins\.)?print besides tensors"),
        ("several.pt", "several state dicts: model, ema.model; say which with --key"),
        ("none.pt", "'model' is a dict: allowed: a state dict"),
        ("text.pt", "no checkpoint"),
        ("numbers.pt", "'a' is a int"),
        ("numbered.pt", "the name 0 is a int: allowed: a state dict"),
        ("list.pt", "holds a list"),
        ("empty.pt", "holds nothing"),
        ("sparse.pt", "head.weight is a tensor of kind torch.sparse_coo: allowed: dense ones"),
        ("meta.pt", "head.weight is a tensor of kind meta: allowed: dense ones"),
        ("quantized.pt", "head.weight is a tensor of kind quantized: allowed: dense ones"),
        ("truncated.pt", "not a whole checkpoint"),
        ("truncated.safetensors", "not a whole safetensors file"),
        ("zero.pt", "zero.pt: not a whole checkpoint: "),
        ("cut.pt", "no checkpoint|not a whole checkpoint"),
        ("folder.pt", "no such file"),
        ("missing.pt", "no such file"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(
    name: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    path = _bad_files(files).get(name, files / name)
    with pytest.raises(BadInput, match=message):
        read_state(path)
    assert "code ran" not in capfd.readouterr().out
    result = purer("pool", "import", tmp_path / "pool", path, "--architecture", "conv4", *IMPORT)
    assert result.exit_code == 2
    assert len([line for line in result.output.splitlines() if line.startswith("error")]) == 1
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--classes": "a,b"}, r"head.bias has shape \(3,\), its architecture \(2,\)"),
        ({"--classes": "a,b,b"}, "the class 'b' is named twice: allowed: once"),
        ({"--classes": "a,"}, "classes a: allowed: two or more"),
        ({"--classes": "names.txt"}, "classes = 'names.txt': No such file"),
        ({"--architecture": "conv4", "--image-size": "8"}, "image_size = 8: Conv4 .* 16 or more"),
        ({"--arguments": '{"depth": 12}'}, "conv4 takes none"),
        ({"--arguments": "[1]"}, r"arguments = '\[1\]': allowed: a JSON object"),
        ({"--architecture": "conv5"}, 'did you mean "conv4"'),
        ({"--architecture": "resnet10"}, "no tensor"),
        ({"--normalisation": "imagenett"}, 'did you mean "imagenet"'),
        ({"--normalisation": "0,0,0/1,1,0"}, "positive deviations"),
        ({"--outputs": "2"}, "3 classes for 2 outputs"),
        ({"--outputs": "0"}, "3 classes for 0 outputs"),
    ],
)
def test_what_does_not_fit_leaves_the_pool_as_it_was(
    changes: dict[str, str], message: str, tiny_pool: Path, tmp_path: Path
) -> None:
    torch.save(build("conv4", 3, 32).state_dict(), tmp_path / "net.pt")
    options = {
        "--architecture": "conv4",
        "--classes": "a,b,c",
        "--image-size": "32",
        "--normalisation": "imagenet",
    } | changes
    before = tree(tiny_pool)
    given = [part for option in options.items() for part in option]
    result = purer("pool", "import", tiny_pool, tmp_path / "net.pt", *given)
    assert result.exit_code == 2
    assert re.search(message, result.output.replace("\n", " ")), result.output
    assert tree(tiny_pool) == before


def test_a_folder_of_other_things_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    net = Small()
    where = "python/tests.pool.test_own_pools:Small"
    with pytest.raises(BadInput, match="a folder with other files"):
        add_teacher(tmp_path, net, where, ["a", "b", "c"], 32, [0.5] * 3, [0.5] * 3)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_import_after_one_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".teacher-00.safetensors.123.tmp").write_text("half")
    (tmp_path / "teacher-00.safetensors").write_text("whole, but not in a manifest")
    where = "python/tests.pool.test_own_pools:Small"
    info = add_teacher(tmp_path, Small(), where, ["a", "b", "c"], 32, [0.5] * 3, [0.5] * 3)
    assert info.file == "teacher-01.safetensors"
    assert [row.file for row in load_manifest(tmp_path)] == [info.file]


# --- check ------------------------------------------------------------------------------------


ALIKE = {"imagenet", "cifar", "quarter"}  # so near each other that the check lets them pass


@pytest.mark.parametrize("right", NORMALISATIONS)
def test_a_right_normalisation_passes_and_a_wrong_one_is_named(right: str, tmp_path: Path) -> None:
    """All pairs of usual ones, of teachers that have seen procedural images."""
    net = trained(build("conv4", 3, 32, generator=generator(0, "conv4")), right)
    for given in NORMALISATIONS:
        folder, n = tmp_path / given, NORMALISATIONS[given]
        add_teacher(folder, net, "conv4", ["a", "b", "c"], 32, n.mean, n.std)
        ((_, found, _),) = check_pool(folder)
        if given == right or {given, right} <= ALIKE:
            assert not found, given
        else:
            (line,) = found
            assert "do not fit what its first BatchNorm layer remembers" in line
            assert f"{right!r} does" in line


@pytest.mark.parametrize("right", ["cifar", "half", "imagenet", "unit"])
@pytest.mark.parametrize(
    "look",
    [
        lambda images: 200 + images // 5,  # scans
        lambda images: 110 + images // 10,  # X-rays
        lambda images: 255 * (images > 220).byte(),  # digits
    ],
    ids=["bright", "grey", "dark"],
)
def test_a_right_normalisation_of_unusual_images_passes(
    right: str, look: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    """None fits procedural images then, so nothing can be said of any."""
    net = trained(build("conv4", 3, 32, generator=generator(0, "conv4")), right, look)
    n = NORMALISATIONS[right]
    add_teacher(tmp_path / "pool", net, "conv4", ["a", "b", "c"], 32, n.mean, n.std)
    ((_, found, _),) = check_pool(tmp_path / "pool")
    assert not found


def test_a_few_images_at_a_time_have_the_moments_of_all(tmp_path: Path) -> None:
    n = NORMALISATIONS["imagenet"]
    given = ("torchvision/resnet18", ["a", "b", "c"], 32, n.mean, n.std)
    add_teacher(tmp_path, trained_resnet(), *given)
    (teacher,) = load_pool(tmp_path)
    images, seen = procedural_images(80, 32, generator(0, "x")), []
    with torch.inference_mode():
        whole = teacher.net(teacher.info.view.of(images))
    teacher.net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    logits, moments = answers(teacher, images, n)
    assert seen == [32, 32, 16]
    assert torch.allclose(logits, whole.logits, atol=1e-4)
    ((mean, var),) = batch_moments(whole.bn_inputs[:1])
    assert torch.allclose(moments[0], mean, atol=1e-5)
    assert torch.allclose(moments[1], var, rtol=1e-3)


def test_a_dead_teacher_is_found(tmp_path: Path) -> None:
    net = trained_resnet()
    with torch.no_grad():
        net.fc.weight.zero_()
    n = NORMALISATIONS["imagenet"]
    add_teacher(tmp_path / "pool", net, "torchvision/resnet18", ["a", "b", "c"], 32, n.mean, n.std)
    result = purer("pool", "check", tmp_path / "pool")
    assert result.exit_code == 2
    assert "dead: its log-probabilities vary by" in result.output
    assert "1 teachers with findings: teacher-00.safetensors" in result.output.replace("\n", " ")


def test_a_teacher_that_is_sure_of_everything_is_not_dead(tmp_path: Path) -> None:
    """Of every procedural image it says class 0 with a probability of 1.0, and not equally much."""
    net = trained_resnet()
    with torch.no_grad():
        net.fc.bias[0] += 1000
    n = NORMALISATIONS["imagenet"]
    add_teacher(tmp_path, net, "torchvision/resnet18", ["a", "b", "c"], 32, n.mean, n.std)
    ((_, found, _),) = check_pool(tmp_path)
    assert not found


def test_numbers_that_are_none_are_found(tiny_pool: Path) -> None:
    info = teacher_info(1)
    state = random_state(info)
    state["convs.2.weight"][0, 0, 0, 0] = float("nan")
    save_teacher(tiny_pool / info.file, info, state)
    found = {info.file: lines for info, lines, _ in check_pool(tiny_pool)}
    (said,) = found["teacher-01.safetensors"]
    assert said.endswith("teacher-01.safetensors: convs.2.weight holds numbers that are not finite")
    given = ("conv4", ["a", "b", "c"], 16, [0.5] * 3, [0.5] * 3)
    with pytest.raises(BadInput, match=r"net: convs\.2\.weight holds numbers that are not finite"):
        add_teacher(tiny_pool, state, *given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "cat.safetensors"}, "allowed: teacher-*.safetensors"),
        ({"file": "teacher-x/../../teacher-00.safetensors"}, "in the pool's folder"),
        ({"std": (0.25, 0.0, 0.25)}, "std.1: Input should be greater than 0"),
        ({"mean": (0.25, float("nan"), 0.25)}, "mean.1: Input should be a finite number"),
        ({"n_outputs": 2}, "3 classes for 2 outputs"),
    ],
)
def test_what_a_hand_made_manifest_may_not_say(
    changes: dict[str, object], message: str, tiny_pool: Path, tmp_path: Path
) -> None:
    infos = load_manifest(tiny_pool)
    save_manifest(tiny_pool, [infos[0], replace(infos[1], **changes)])
    result = purer("pool", "adopt", tiny_pool, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")


def test_every_file_is_judged_though_one_is_broken(tiny_pool: Path) -> None:
    (tiny_pool / "teacher-00.safetensors").write_bytes(b"broken")
    infos = load_manifest(tiny_pool)
    save_manifest(tiny_pool, [infos[0], replace(infos[1], n_outputs=4), infos[2]])
    found = [lines for _, lines, _ in check_pool(tiny_pool)]
    assert "not a whole safetensors file" in found[0][0]
    assert "its n_outputs is 3, the manifest says 4" in found[1][0]


def test_files_that_a_pool_does_not_read_are_named(tiny_pool: Path) -> None:
    (tiny_pool / "teacher-99.safetensors").write_bytes(b"")
    result = purer("pool", "check", tiny_pool)
    assert "not in manifest.json, so never read: teacher-99.safetensors" in result.output


@pytest.mark.usefixtures("trusted")
def test_a_network_without_batch_norm_is_said_to_be_unchecked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    where = "python/tests.pool.test_own_pools:Small"
    add_teacher(tmp_path / "pool", Small(), where, ["a", "b", "c"], 32, [0.5] * 3, [0.1] * 3)
    result = purer("pool", "check", tmp_path / "pool")
    assert result.exit_code == 0, result.output
    assert "fine; no BatchNorm that remembers" in result.output
