"""The form of a distilled learner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stages.common.distilled import Distilled, DistilledForm, ReadoutMetric, log_ratios
from stages.common.episodes import Episode
from stages.common.learner import Learner, LearnerInfo, adapt, load_learner, save_learner
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_test import one_step
from stages.meta_test.nearest_class_mean import nearest
from stages.meta_test.params import OneStep
from tests.conftest import learner_info

FORM = DistilledForm(
    heads=(3, 2),
    n_components=5,
    readout=("features", "projection", "log_ratios"),
    mirror=True,
    n_directions=2,
)


def network(form: DistilledForm = FORM) -> Distilled:
    torch.manual_seed(0)
    net = Distilled("conv4", form, n_way=4, image_size=16).train()
    net(torch.randn(64, 3, 16, 16))  # statistics of some batch
    if form.n_directions:
        for name in ReadoutMetric._fields:
            net.get_buffer(name).normal_(std=0.2)
    return net.eval()


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=generator(0, "images"))


def episode(n_shot: int) -> Episode:
    y = torch.arange(4)
    x = images(4 * (n_shot + 3))
    shots = y.repeat_interleave(n_shot)
    return Episode(x[: 4 * n_shot], shots, x[4 * n_shot :], y.repeat_interleave(3))


def test_features_are_blocks_of_unit_length_side_by_side() -> None:
    features = network(replace(FORM, n_directions=0))(images(6)).features
    assert features.shape == (6, 32 + 5 + 5)
    for block in features.split([32, 5, 5], 1):
        assert torch.allclose(block.norm(dim=1), torch.ones(6))


def test_the_metric_weighs_directions_and_keeps_the_length() -> None:
    net, x = network(), images(6)
    plain = network(replace(FORM, n_directions=0))(x).features
    identity = torch.eye(42)
    damped, amplified, common = map(net.get_buffer, ReadoutMetric._fields)
    matrix = (identity - damped @ damped.T) @ (identity + amplified @ amplified.T)
    matrix = matrix @ (identity - common @ common.T)
    features = net(x).features
    assert torch.allclose(features, 3**0.5 * F.normalize(plain @ matrix, dim=1), atol=1e-5)
    assert not torch.allclose(features, plain, atol=0.1)


def test_an_image_and_its_mirror_image_are_one() -> None:
    net, x = network(), images(6)
    assert torch.allclose(net(x).features, net(x.flip(3)).features, atol=1e-6)
    plain = network(replace(FORM, mirror=False))
    assert not torch.allclose(plain(x).features, plain(x.flip(3)).features, atol=1e-3)


def test_log_ratios_are_of_each_teacher_alone() -> None:
    logits = images(6).flatten(1)[:, :5]
    found = log_ratios(logits, (3, 2))
    for own, part in ((logits[:, :3], found[:, :3]), (logits[:, 3:], found[:, 3:])):
        log_p = own.log_softmax(1)
        assert torch.allclose(part, log_p - log_p.mean(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("n_shot", [1, 3])
def test_one_step_from_a_head_of_zeros_is_a_classifier_by_class_means(n_shot: int) -> None:
    """By hand: the head's gradient at zero is -(mean of class c - mean of all) / n_way, and the
    body's is zero; so the step ranks classes by the product with their mean."""
    learner = Learner("conv4", 4, 16, distilled=FORM)
    theta = dict(network().state_dict())
    task = episode(n_shot)
    labels = one_step.predict(
        learner, theta, task, OneStep(inner_lr=0.01, inner_steps=1), "transductive"
    )
    z = learner.forward(theta, task.support_x).features
    q = learner.forward(theta, task.query_x).features
    means = z.unflatten(0, (4, n_shot)).mean(1)
    assert torch.equal(labels, (q @ means.T).argmax(1))
    if n_shot == 1:  # all support features are equally long, so cosine agrees
        assert torch.equal(labels, nearest(z, q, 4, "cosine"))


def test_the_inner_loop_leaves_the_statistics_alone() -> None:
    learner = Learner("conv4", 4, 16, distilled=FORM)
    theta = dict(network().state_dict())
    task = episode(2)
    adapted = adapt(learner, theta, task.support_x, task.support_y, 0.5, 2)
    for name, before in theta.items():
        statistic = "running" in name or "tracked" in name
        assert torch.equal(adapted[name], before) or not statistic
    assert not torch.equal(adapted["body.convs.0.weight"], theta["body.convs.0.weight"])


def test_a_query_image_is_judged_alone() -> None:
    """Inductive: what stands beside an image in the batch changes nothing."""
    learner = Learner("conv4", 4, 16, distilled=FORM)
    theta = dict(network().state_dict())
    x = images(8)
    together = learner.forward(theta, x).features
    alone = torch.cat([learner.forward(theta, one[None]).features for one in x])
    assert torch.allclose(together, alone, atol=1e-6)


def info() -> LearnerInfo:
    return learner_info(
        n_way=4,
        method="distill",
        meta_learner="distilled",
        iteration=7,
        distilled=FORM,
        class_names=(("a", "b", "c"), ("d",)),
    )


def test_a_file_brings_the_whole_network_back(tmp_path: Path) -> None:
    net, x = network(), images(6)
    save_learner(tmp_path / "learner.safetensors", net.state_dict(), info())
    learner, theta, found = load_learner(tmp_path / "learner.safetensors")
    assert found == info()
    assert torch.allclose(learner.forward(theta, x).features, net(x).features, atol=1e-6)


@pytest.mark.parametrize("distilled", ["nonsense", {"heads": [3]}, {"unknown": 1}])
def test_a_form_that_is_none_is_refused(distilled: object, tmp_path: Path) -> None:
    from dataclasses import asdict

    from stages.common.files import save_tensors

    metadata = asdict(info()) | {"distilled": distilled}
    save_tensors(tmp_path / "x.safetensors", network().state_dict(), metadata)
    with pytest.raises(BadInput, match="not a learner"):
        load_learner(tmp_path / "x.safetensors")


def test_the_body_reads_out_what_it_was_asked_for() -> None:
    only = network(replace(FORM, readout=("projection",), mirror=False, n_directions=0))
    x = images(3)
    body = only.body(x)
    expected = F.normalize(only.projection(body.features), dim=1)
    assert torch.equal(only(x).features, expected)
