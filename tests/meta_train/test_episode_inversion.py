from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.common import compiling
from stages.common.episodes import Episode
from stages.common.learner import Learner, Theta
from stages.common.meta_learners import Outer, outer_loss
from stages.common.params import Scenario
from stages.common.pool import Teacher, load_pool, save_manifest, save_teacher
from stages.common.seeds import generator
from stages.interface import params
from stages.interface.errors import BadInput
from stages.meta_train.episode_inversion import EpisodeInversionRun
from stages.meta_train.methods import Setting
from stages.meta_train.params import Curriculum, MetaTrainBudget, NoCurriculum
from stages.meta_train.starts import average
from stages.meta_train.synthetic import DynamicDataset
from tests.conftest import ROOT, random_state, teacher_info

SETTINGS = params.load(ROOT / "params.yaml").meta_train
SAME = Scenario(architectures="conv4", start="average", teachers_per_step="all")


def setting(pool: list[Teacher], scenario: Scenario = SAME, **changes: object) -> Setting:
    shape = {"n_way": 3, "n_shot": 2, "n_query": 2, "seed": 1, "device": "cpu"}
    length = MetaTrainBudget(n_iterations=20, curriculum_start=0, n_snapshots=2)
    given = {"view": pool[0].info.view, "scenario": scenario, "budget": length, **shape}
    return Setting(architecture="conv4", **{**given, **changes})


def make_run(
    pool: list[Teacher],
    weight: float = 10.0,
    curriculum_start: int = 0,
    scenario: Scenario = SAME,
    **changes: object,
) -> EpisodeInversionRun:
    settings = SETTINGS.episode_inversion.model_copy(update={"compile": "never", **changes})
    section = Curriculum if weight else NoCurriculum
    length = MetaTrainBudget(n_iterations=20, curriculum_start=curriculum_start, n_snapshots=2)
    return EpisodeInversionRun(
        pool,
        settings,
        section(curriculum_weight=weight, meta_learner="maml", n_teachers="all"),
        setting(pool, scenario, budget=length),
    )


@pytest.fixture
def pool(tiny_pool: Path) -> list[Teacher]:
    return load_pool(tiny_pool)


def test_the_dynamic_dataset_has_every_class_of_every_teacher(pool: list[Teacher]) -> None:
    dataset = DynamicDataset(pool, 4, 20, pool[0].info.view, generator(0, "test"), "cpu")
    assert [tuple(x.shape) for x in dataset.images] == [(12, 3, 16, 16)] * 2 + [(8, 3, 16, 16)]
    assert dataset.labels[2].tolist() == [0] * 4 + [1] * 4
    noise = torch.cat([x.flatten() for x in dataset.images])
    assert abs(noise.mean().item()) < 0.05
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_of_many_classes_a_draw_takes_part(pool: list[Teacher]) -> None:
    """Not the first ones; and their images are made for these classes."""
    names = tuple(f"class{i}" for i in range(1000))
    many = replace(pool[0].info, class_names=names, class_ids=tuple(range(1000)), n_outputs=1000)
    teachers = [Teacher(many, pool[0].net), pool[1]]
    dataset = DynamicDataset(teachers, 4, 5, pool[0].info.view, generator(0, "test"), "cpu")
    assert [len(images) for images in dataset.images] == [20, 12]
    drawn = dataset.labels[0].view(5, 4)
    assert (drawn == drawn[:, :1]).all()
    assert len(set(drawn[:, 0].tolist())) == 5
    assert drawn.max() > 100
    assert dataset.labels[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    whole = dataset.episode(8, 2, 2, generator(0, "e"), detach=True)
    assert len(whole.support_x) == 16


def test_more_classes_than_the_teachers_know_are_refused(pool: list[Teacher]) -> None:
    own = NoCurriculum(curriculum_weight=0, meta_learner="maml", n_teachers="all")
    message = "n_way = 9: the 3 teachers to learn from know only 8 classes"
    with pytest.raises(BadInput, match=message):
        EpisodeInversionRun(pool, SETTINGS.episode_inversion, own, setting(pool, n_way=9))


def test_episodes_mix_teachers_and_use_all_images_of_a_class(pool: list[Teacher]) -> None:
    dataset = DynamicDataset(pool, 4, 20, pool[0].info.view, generator(0, "test"), "cpu")
    with torch.no_grad():  # every image is full of teacher * 100 + label * 10 + position
        for i, (images, labels) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            positions = torch.arange(len(images)) % 4
            images.copy_((100 * i + 10 * labels + positions).view(-1, 1, 1, 1).expand_as(images))
    teachers = set()
    for seed in range(10):
        episode = dataset.episode(3, 2, 2, generator(seed, "e"), detach=True)
        for label in range(3):
            support = episode.support_x[episode.support_y == label][:, 0, 0, 0]
            query = episode.query_x[episode.query_y == label][:, 0, 0, 0]
            values = torch.cat([support, query])
            assert sorted((values % 10).tolist()) == [0, 1, 2, 3]
            assert len({v // 10 for v in values.tolist()}) == 1
            teachers.add(values[0].item() // 100)
    assert teachers == {0, 1, 2}


def _reference_inversion_gradient(run: EpisodeInversionRun, pool: list[Teacher]) -> list[Tensor]:
    """Explicit transcription of METHODS 1.1 for the images and rolls of iteration 0."""
    settings = SETTINGS.episode_inversion
    rolls = torch.randint(-2, 3, (len(pool), 2), generator=generator(1, "meta_train", "roll", 0))
    gradients = []
    for teacher, images, labels, roll in zip(
        pool, run.dataset.images, run.dataset.labels, rolls.tolist(), strict=True
    ):
        x = images.detach().clone().requires_grad_()
        rolled = torch.roll(x, (roll[0], roll[1]), (2, 3))
        out = teacher.net(rolled)
        norms = teacher.net.norms
        feature = sum(
            (z.mean((0, 2, 3)) - n.running_mean).norm()
            + (z.var((0, 2, 3), correction=0) - n.running_var).norm()
            for z, n in zip(out.bn_inputs, norms, strict=True)
        )
        tv = (
            (rolled[..., 1:] - rolled[..., :-1]).norm()
            + (rolled[..., 1:, :] - rolled[..., :-1, :]).norm()
            + (rolled[..., 1:, 1:] - rolled[..., :-1, :-1]).norm()
            + (rolled[..., :-1, 1:] - rolled[..., 1:, :-1]).norm()
        )
        w = settings.weights
        loss = F.cross_entropy(out.logits, labels) + w.bn_statistics * feature
        loss = loss + w.tv * tv + w.l2 * rolled.norm()
        gradients.append(torch.autograd.grad(loss, x)[0])
    return gradients


def _adam_first_step(p: Tensor, g: Tensor, lr: float) -> Tensor:
    return p - lr * g / (g.abs() + 1e-8)


def _reference_outer(theta: dict[str, Tensor], run: EpisodeInversionRun, episode) -> Tensor:
    """L_outer by torch.autograd with create_graph, not torch.func."""
    net = Learner("conv4", 3, 16)
    loss = F.cross_entropy(net.forward(theta, episode.support_x).logits, episode.support_y)
    gradient = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    lr = SETTINGS.episode_inversion.inner_lr
    adapted = {n: p - lr * g for (n, p), g in zip(theta.items(), gradient, strict=True)}
    return F.cross_entropy(net.forward(adapted, episode.query_x).logits, episode.query_y)


def test_one_ei_step_equals_a_transcription(double: None, pool: list[Teacher]) -> None:
    for teacher in pool:
        teacher.net.double()
    run = make_run(pool, weight=0)
    images = [x.detach().clone() for x in run.dataset.images]
    theta = {n: p.detach().clone().requires_grad_() for n, p in run.outer.theta.items()}
    gradients = _reference_inversion_gradient(run, pool)
    record = run.step(0)
    for before, gradient, after in zip(images, gradients, run.dataset.images, strict=True):
        expected = _adam_first_step(before, gradient, 0.25)
        clear = gradient.abs() > 1e-9  # where rounding cannot flip Adam's sign
        assert torch.allclose(expected[clear], after[clear], atol=1e-6)
        assert clear.float().mean() > 0.9
    losses = [
        _reference_outer(
            theta,
            run,
            run.dataset.episode(3, 2, 2, generator(1, "meta_train", "episode", 0, i), detach=True),
        )
        for i in range(4)
    ]
    assert record["outer_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-9)
    outer = torch.autograd.grad(torch.stack(losses).sum(), list(theta.values()))
    for (name, before), gradient in zip(theta.items(), outer, strict=True):
        clear = gradient.abs() > 1e-7
        expected = _adam_first_step(before, gradient, 0.001)
        assert torch.allclose(expected[clear], run.outer.theta[name][clear], atol=1e-9), name


@pytest.mark.parametrize("per_step", ["all", 1])
def test_the_adversarial_step_subtracts_lambda_times_the_outer_gradient(
    double: None, pool: list[Teacher], per_step: str | int
) -> None:
    """From the inversion's gradient, which no image that it moves is without (eq. 6)."""
    for teacher in pool:
        teacher.net.double()
    run = make_run(
        pool, weight=10, scenario=SAME.model_copy(update={"teachers_per_step": per_step})
    )
    run.feedback = True
    plain = _reference_inversion_gradient(run, pool)
    theta = {n: p.detach().clone().requires_grad_() for n, p in run.outer.theta.items()}
    stream = generator(1, "meta_train", "adversarial episode", 0)
    episode = run.dataset.episode(3, 2, 2, stream, detach=False)
    loss = _reference_outer(theta, run, episode)
    outer = torch.autograd.grad(loss, run.dataset.images, allow_unused=True)
    drawn = {i for i, _ in run._drawn_teachers(0, set())}
    challenged = {i for i, gradient in enumerate(outer) if gradient is not None}
    assert (challenged <= drawn) == (per_step == "all")
    record = run._update_images(0)
    assert record["adversarial_loss"] == pytest.approx(loss.item(), rel=1e-9)
    for i, (image, a, b) in enumerate(zip(run.dataset.images, plain, outer, strict=True)):
        if i in drawn | challenged:
            expected = a - 10 * (torch.zeros_like(a) if b is None else b)
            assert torch.allclose(image.grad, expected, rtol=1e-6, atol=1e-9)
        else:
            assert image.grad is None


def test_without_curriculum_weight_feedback_never_comes(pool: list[Teacher]) -> None:
    run = make_run(pool, weight=0)
    assert [run.step(t)["feedback"] for t in range(12)] == [0.0] * 12
    run = make_run(pool, weight=10, patience=1)
    assert sum(run.step(t)["feedback"] for t in range(12)) > 0


def test_ei_and_eci_are_equal_until_the_curriculum_starts(pool: list[Teacher]) -> None:
    ei, eci = (
        make_run(pool, weight=0, patience=1),
        make_run(pool, weight=10, curriculum_start=3, patience=1),
    )
    same = [ei.step(t) == eci.step(t) for t in range(12)]
    assert all(same[:4])
    assert not all(same)


def test_state_and_load_state_are_everything(pool: list[Teacher]) -> None:
    whole = make_run(pool, patience=1)
    records = [whole.step(t) for t in range(8)]
    first = make_run(pool, patience=1)
    for t in range(5):
        first.step(t)
    second = make_run(pool, patience=1)
    second.load_state({name: t.clone() for name, t in first.state().items()})
    assert [second.step(t) for t in range(5, 8)] == records[5:]
    for a, b in zip(whole.state().items(), second.state().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1]), a[0]


def test_the_average_is_the_mean_head_included(pool: list[Teacher], tmp_path: Path) -> None:
    theta = average(pool, setting(pool))
    for name, p in theta.items():
        mean = torch.stack([dict(t.net.named_parameters())[name] for t in pool]).mean(0)
        assert torch.equal(p, mean)
    with pytest.raises(BadInput, match=r"teacher-00.* is a conv4 with 3 outputs .* conv4 with 4"):
        average(pool, setting(pool, n_way=4))
    info = teacher_info(0, architecture="resnet10")
    save_teacher(tmp_path / "mixed" / info.file, info, random_state(info))
    save_manifest(tmp_path / "mixed", [info])
    mixed = load_pool(tmp_path / "mixed")
    with pytest.raises(BadInput, match="allowed where architectures differ"):
        make_run(mixed)


def test_a_pool_of_several_architectures_is_inverted(tmp_path: Path) -> None:
    """SH's natural place: one loss per architecture, one learner."""
    infos = [teacher_info(0), teacher_info(1, architecture="resnet10")]
    for info in infos:
        save_teacher(tmp_path / info.file, info, random_state(info))
    save_manifest(tmp_path, infos)
    mixed = Scenario(architectures="conv4+resnet10", start="random", teachers_per_step="all")
    run = make_run(load_pool(tmp_path), weight=0, scenario=mixed)
    first = run.step(0)
    for t in range(1, 15):
        last = run.step(t)
    assert last["inversion_total"] < first["inversion_total"]


def test_compiled_outer_loss_equals_eager(double: None, pool: list[Teacher]) -> None:
    """Both uses: gradients for theta (outer step) and for the images (adversarial step)."""
    for teacher in pool:
        teacher.net.double()
    found = []
    for wish in ("never", "always"):
        run = make_run(pool, compile=wish)
        episode = run.dataset.episode(3, 2, 2, generator(0, "e"), detach=False)
        inputs = [*run.outer.theta.values(), *run.dataset.images]
        outer = run.outer.loss(run.outer.theta, episode)
        gradients = torch.autograd.grad(outer.loss, inputs, allow_unused=True)
        found.append((outer.loss.item(), gradients))
    (loss, gradients), (compiled_loss, compiled) = found
    assert compiled_loss == pytest.approx(loss, rel=1e-12)
    assert sum(g is not None for g in gradients) > len(run.outer.theta)
    for a, b in zip(gradients, compiled, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-8, atol=1e-11)


def test_compilation_falls_back_where_it_cannot_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def function(x: int) -> int:
        return x

    assert compiling.compiler("never", 10**6, "cpu")(function) is function
    assert compiling.compiler("auto", 10, "cpu")(function) is function

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    assert compiling.compiler("auto", 10**6, "cpu")(function) is function
    assert "going on without it" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        compiling.compiler("always", 1, "cpu")


def test_every_iteration_has_its_own_episodes_and_rolls(
    pool: list[Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(pool)
    rolls = [run._drawn_teachers(t, set()) for t in range(3)]
    assert rolls[0] != rolls[1] != rolls[2]
    seeds, plain = [], run.dataset.episode

    def episode(*shape: Any, detach: bool) -> Episode:
        seeds.append(shape[3].initial_seed())
        return plain(*shape, detach=detach)

    monkeypatch.setattr(run.dataset, "episode", episode)
    run.feedback = True
    for t in range(3):
        run._update_learner(t)
        run._add_adversarial_gradient(t)
    assert len(set(seeds)) == 3 * 5


def test_episodes_have_the_shape_that_was_asked_for(pool: list[Teacher]) -> None:
    own = SETTINGS.episode_inversion
    run = EpisodeInversionRun(pool, own, SETTINGS.ei, setting(pool, n_shot=1, n_query=3))
    shapes = []

    def loss(theta: Theta, episode: Episode) -> Outer:
        shapes.append((len(episode.support_x), len(episode.query_x)))
        return Outer(theta["head.bias"].sum(), torch.tensor(0.5))

    run.outer.loss = loss
    run._update_learner(0)
    assert shapes == [(3, 9)] * own.episodes_per_step


def test_the_switch_sees_accuracies_and_each_feedback_is_for_one_step(
    pool: list[Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(pool, patience=2, curriculum_start=3)
    accuracies = iter([0.9, 0.9, 0.9, 0.5, 0.4, 0.4, 0.6, 0.6, 0.6, 0.7])

    def update(t: int) -> dict[str, float]:
        return {"outer_loss": 1.0 + t, "outer_accuracy": next(accuracies)}

    monkeypatch.setattr(run, "_update_learner", update)
    assert [t for t in range(10) if run.step(t)["feedback"]] == [6, 9]


@pytest.mark.parametrize("name", ["anil", "protonet"])
def test_a_run_trains_its_own_meta_learner(name: str, pool: list[Teacher]) -> None:
    shared = {"compile": "never", "inner_lr": 0.5}
    settings = SETTINGS.episode_inversion.model_copy(update=shared)
    own = SETTINGS.ei.model_copy(update={"meta_learner": name})
    run = EpisodeInversionRun(pool, settings, own, setting(pool))
    theta, episode = run.outer.theta, run.dataset.episode(3, 2, 2, generator(0, "e"), detach=True)
    expected = outer_loss(name, Learner("conv4", 3, 16), theta, episode, 0.5, 1).loss
    assert torch.equal(run.outer.loss(theta, episode).loss, expected)
