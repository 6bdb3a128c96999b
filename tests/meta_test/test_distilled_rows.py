"""The rows of a learner that keeps its statistics: its features, once an image."""

from __future__ import annotations

import pytest
import torch

from stages.common.dataset import ClassImages, Normalisation
from stages.common.distilled import Distilled, DistilledForm
from stages.common.learner import Learner, adapt
from stages.common.seeds import generator
from stages.interface import params
from stages.meta_test.adaptations import ADAPTATIONS, Model
from stages.meta_test.episodes import fixed_tasks
from stages.meta_test.evaluate import Tasks
from stages.meta_test.linear_probe import probe
from stages.meta_test.nearest_class_mean import nearest
from tests.conftest import ROOT, learner_info

SETTINGS = params.load(ROOT / "params.yaml").meta_test
FORM = DistilledForm(heads=(3, 2), n_components=5, readout=("features", "log_ratios"), mirror=True)
N_CLASSES, N_IMAGES = 5, 8  # of each data set


@pytest.fixture
def tasks() -> Tasks:
    """Seven 3-way 2-shot episodes over two data sets of different size, as in MH."""
    stream = generator(0, "images")
    data = []
    for name, size in (("a", 16), ("b", 20)):
        shape = (N_CLASSES, N_IMAGES, size, size, 3)
        images = list(torch.randint(0, 256, shape, generator=stream).to(torch.uint8))
        names = [f"{name}{i}" for i in range(N_CLASSES)]
        norm = Normalisation((0.5,) * 3, (0.25,) * 3)
        data.append(ClassImages(name, list(range(N_CLASSES)), names, images, size, norm))
    return Tasks(data, fixed_tasks(data, "test", 7, 3, 2, 4))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    net = Distilled("conv4", FORM, n_way=3, image_size=16).train()
    net(torch.randn(64, 3, 16, 16))  # statistics of some batch
    net.head.weight.data.normal_()  # so that the loop has somewhere to start from
    theta = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    info = learner_info(method="distill", meta_learner="distilled", distilled=FORM)
    return Model(Learner("conv4", 3, 16, distilled=FORM), theta, info)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_features_taken_from_all_images_equal_those_of_each_episode(
    n_steps: int, model: Model, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.meta_test.episodes.CHUNK", 3)
    monkeypatch.setattr("stages.meta_test.episodes.BATCH", 5)
    loop = SETTINGS.one_step.model_copy(update={"inner_lr": 0.5, "inner_steps": n_steps})
    settings = SETTINGS.model_copy(update={"one_step": loop})
    episodes = tasks.seen_by(model, "cpu")
    found = {
        name: ADAPTATIONS[name].predict(model, episodes, settings, lambda done: None)
        for name in ("one_step", "nearest_class_mean", "linear_probe")
    }
    for i, task in enumerate(episodes):
        x, y = task.support_x, task.support_y
        adapted = adapt(model.learner, model.theta, x, y, 0.5, n_steps, part="head.")
        logits = model.learner.forward(adapted, task.query_x).logits
        assert found["one_step"][i].tolist() == logits.argmax(1).tolist()
        s, q = model.features(x), model.features(task.query_x)
        assert found["nearest_class_mean"][i].tolist() == nearest(s, q, 3, "cosine").tolist()
        probed = probe(s[None], y, q[None], settings.linear_probe)[0]
        assert found["linear_probe"][i].tolist() == probed.tolist()
    assert len({tuple(labels.flatten().tolist()) for labels in found.values()}) == 3


def test_every_image_is_embedded_once_for_all_adaptations(
    model: Model, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Learner.forward

    def counting(self: Learner, theta: dict[str, torch.Tensor], x: torch.Tensor, *rest: object):  # type: ignore[no-untyped-def]
        seen.append(len(x))
        return forward(self, theta, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "forward", counting)
    episodes = tasks.seen_by(model, "cpu")
    for name in ("one_step", "nearest_class_mean", "linear_probe"):
        ADAPTATIONS[name].predict(model, episodes, SETTINGS, lambda done: None)
    assert sum(seen) == 2 * N_CLASSES * N_IMAGES


def test_a_distilled_learners_first_step_is_of_its_head(model: Model, tasks: Tasks) -> None:
    """From a head of zeros the body has no gradient, so that moving the head alone is the same."""
    theta = model.theta | {
        n: torch.zeros_like(model.theta[n]) for n in ("head.weight", "head.bias")
    }
    episode = next(iter(tasks.seen_by(model, "cpu")))
    x, y = episode.support_x, episode.support_y
    whole = adapt(model.learner, theta, x, y, 0.01, 1)
    head = adapt(model.learner, theta, x, y, 0.01, 1, part="head.")
    assert all(torch.equal(whole[name], head[name]) for name in theta)
    protocol = ADAPTATIONS["one_step"].protocol(model, SETTINGS)
    assert protocol == "1 step of the head, lr 0.01, inductive"
