from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.architectures import Output
from stages.common.dataset import IMAGENET, ClassImages, Normalisation
from stages.common.episodes import Episode
from stages.common.learner import Learner, Theta, initial_theta, save_learner
from stages.common.seeds import generator
from stages.interface import params
from stages.meta_test import evaluate, icfil, nearest_class_mean, one_step
from stages.meta_test.adaptations import ADAPTATIONS, Model
from stages.meta_test.episodes import RealEpisodes, fixed_tasks, right
from stages.meta_test.params import SUITS
from tests.conftest import ROOT, learner_info

SETTINGS = params.load(ROOT / "params.yaml").meta_test
BYTES = Normalisation((0.0,) * 3, (1 / 255,) * 3)


def _episode(dtype: torch.dtype = torch.float32) -> Episode:
    g = generator(0, "episode")
    labels = torch.arange(3)
    return Episode(
        torch.randn(6, 3, 16, 16, generator=g, dtype=dtype),
        labels.repeat_interleave(2),
        torch.randn(9, 3, 16, 16, generator=g, dtype=dtype),
        labels.repeat_interleave(3),
    )


def test_episodes_are_the_same_for_every_caller_and_differ_by_split(data: ClassImages) -> None:
    one = [task.episode.support for task in fixed_tasks([data], "test", 5, 3, 2, 3)]
    again = [task.episode.support for task in fixed_tasks([data], "test", 8, 3, 2, 3)[:5]]
    other = [task.episode.support for task in fixed_tasks([data], "val", 5, 3, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="n_way = 6: only 5 classes"):
        fixed_tasks([data], "test", 1, 6, 2, 3)


def test_nearest_class_mean_by_hand() -> None:
    support = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 9.0]])
    query = torch.tensor([[5.0, 1.0], [0.1, 0.2], [2.0, 4.5], [-1.0, 0.1]])
    # cosine: by angle; euclidean: means (2, 0) and (0, 5)
    assert nearest_class_mean.nearest(support, query, 2, "cosine").tolist() == [0, 1, 1, 1]
    assert nearest_class_mean.nearest(support, query, 2, "euclidean").tolist() == [0, 0, 1, 0]
    batch = nearest_class_mean.nearest(support[None], query[None], 2, "cosine")
    assert batch.tolist() == [[0, 1, 1, 1]]


def test_contrastive_loss_equals_loops(double: None) -> None:
    g = generator(0, "contrastive")
    anchors, others = torch.randn(4, 5, generator=g), torch.randn(6, 5, generator=g)
    anchor_y, others_y = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    losses = []
    for a, ya in zip(anchors, anchor_y, strict=True):
        share = [math.exp(F.cosine_similarity(a, b, dim=0).item() / 0.1) for b in others]
        positives = [s for s, yb in zip(share, others_y, strict=True) if yb == ya]
        losses.append(-sum(math.log(s / sum(share)) for s in positives) / len(positives))
    found = icfil.contrastive_loss(anchors, anchor_y, others, others_y, 0.1)
    assert found.item() == pytest.approx(sum(losses) / len(losses))


def test_calibration_is_one_step_of_torchs_adam(double: None) -> None:
    episode = _episode(torch.float64)
    learner = Learner("conv4", 3, 16)
    theta = {n: p.double() for n, p in initial_theta("conv4", 3, 16, generator(0, "x")).items()}
    pseudo_x = torch.randn(6, 3, 16, 16)
    pseudo_y = torch.arange(3).repeat_interleave(2)
    found = icfil.calibrate(
        learner, theta, episode.support_x, episode.support_y, pseudo_x, pseudo_y, SETTINGS.icfil
    )
    expected = {n: p.clone().requires_grad_() for n, p in theta.items()}
    optimizer = torch.optim.Adam(list(expected.values()), SETTINGS.icfil.calibration_lr)
    icfil.contrastive_loss(
        learner.forward(expected, episode.support_x).features,
        episode.support_y,
        learner.forward(expected, pseudo_x).features,
        pseudo_y,
        SETTINGS.icfil.temperature,
    ).backward()
    optimizer.step()
    for name, p in expected.items():
        assert torch.allclose(found[name], p, atol=1e-9), name
    assert torch.equal(found["head.weight"], theta["head.weight"])  # the backbone only


def test_heads_of_all_episodes_together_equal_each_alone(double: None) -> None:
    g = generator(0, "heads")
    support, query = torch.randn(7, 6, 4, generator=g), torch.randn(7, 9, 4, generator=g)
    labels = torch.arange(3).repeat_interleave(2)
    together = icfil.head_predictions(support, labels, query, 30, 0.01)
    for i in range(7):
        head = nn.Linear(4, 3)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.Adam(head.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(head(support[i]), labels).backward()
            optimizer.step()
        assert head(query[i]).argmax(1).tolist() == together[i].tolist()


def test_pseudo_images_lower_the_inversion_loss() -> None:
    learner = Learner("conv4", 3, 16)
    theta = initial_theta("conv4", 3, 16, generator(0, "x"))
    labels = torch.arange(3).repeat_interleave(4)
    losses = []
    for steps in (1, 40):
        settings = SETTINGS.icfil.model_copy(update={"inversion_steps": steps})
        images = icfil.synthesize(
            learner, theta, _episode().support_x, labels, IMAGENET, settings, generator(0, "noise")
        )
        losses.append(F.cross_entropy(learner.forward(theta, images).logits, labels).item())
    assert losses[1] < 0.5 * losses[0]


def test_a_learner_of_bytes_is_inverted_as_the_same_learner_of_usual_pixels(double: None) -> None:
    class OfBytes(Learner):
        """Shown pixels of 0 to 255, it answers as the other does to the same pixels."""

        def forward(self, theta: Theta, x: Tensor, moments: Any = None) -> Output:
            return super().forward(theta, BYTES.convert(x, IMAGENET), moments)

    theta = {n: p.double() for n, p in initial_theta("conv4", 3, 16, generator(0, "x")).items()}
    support = _episode(torch.float64).support_x
    labels = torch.arange(3).repeat_interleave(4)
    usual = icfil.synthesize(
        Learner("conv4", 3, 16), theta, support, labels, IMAGENET, SETTINGS.icfil, generator(0, "n")
    )
    support = IMAGENET.convert(support, BYTES)
    of_bytes = icfil.synthesize(
        OfBytes("conv4", 3, 16), theta, support, labels, BYTES, SETTINGS.icfil, generator(0, "n")
    )
    assert of_bytes.std() > 20  # of 255
    assert torch.allclose(BYTES.convert(of_bytes, IMAGENET), usual, atol=1e-4)


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_inductive_predictions_do_not_depend_on_other_queries(batch_norm: str) -> None:
    learner = Learner("conv4", 3, 16)
    theta = initial_theta("conv4", 3, 16, generator(0, "x"))
    episode = _episode()
    alone = episode._replace(query_x=episode.query_x[:1])
    _, together = one_step.outputs(learner, theta, episode, batch_norm)
    _, single = one_step.outputs(learner, theta, alone, batch_norm)
    same = torch.allclose(together.logits[:1], single.logits, atol=1e-5)
    assert same == (batch_norm == "inductive")


@pytest.mark.parametrize("name", ADAPTATIONS)
@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_every_adaptation_learns_an_easy_task(
    name: str, batch_norm: str, data: ClassImages
) -> None:
    settings = SETTINGS.model_copy(
        update={
            "batch_norm": batch_norm,
            "one_step": SETTINGS.one_step.model_copy(update={"inner_lr": 0.3, "inner_steps": 5}),
        }
    )
    tasks = fixed_tasks([data], "test", 4, 3, 3, 4)
    model = _model(0)
    episodes = RealEpisodes([data], tasks, model.info.view, "cpu")
    labels = ADAPTATIONS[name].predict(model, episodes, settings, lambda done: None)
    assert labels.shape == (4, 12)
    assert right(labels, tasks).double().mean() > 0.85


def _model(seed: int, iteration: int = 0, meta_learner: str = "maml") -> Model:
    info = learner_info(meta_learner=meta_learner, iteration=iteration)
    theta = initial_theta("conv4", 3, 16, generator(seed, "x"))
    return Model(Learner("conv4", 3, 16), theta, info)


def test_every_adaptation_has_a_name_that_params_know() -> None:
    assert list(ADAPTATIONS) == list(SUITS)
    assert all(row.chosen_by in ADAPTATIONS for row in ADAPTATIONS.values())


def test_a_head_only_learner_adapts_its_head_only(data: ClassImages) -> None:
    """ANIL: features of support and query are those of the unadapted network."""
    tasks = fixed_tasks([data], "test", 3, 3, 3, 4)
    anil, maml = _model(0, meta_learner="anil"), _model(0)
    episodes = RealEpisodes([data], tasks, anil.info.view, "cpu")
    loop = SETTINGS.one_step.model_copy(update={"inner_lr": 0.3, "inner_steps": 3})
    settings = SETTINGS.model_copy(update={"one_step": loop})
    predict = ADAPTATIONS["one_step"].predict
    found = predict(anil, episodes, settings, lambda done: None)
    for episode, labels in zip(episodes, found, strict=True):
        theta = {n: p.clone().requires_grad_() for n, p in anil.theta.items()}
        for _ in range(3):
            logits = anil.learner.forward(theta, episode.support_x).logits
            heads = {n: p for n, p in theta.items() if n.startswith("head.")}
            loss = F.cross_entropy(logits, episode.support_y)
            gradient = torch.autograd.grad(loss, list(heads.values()))
            for (name, p), g in zip(heads.items(), gradient, strict=True):
                theta[name] = (p - 0.3 * g).detach().requires_grad_()
        expected = anil.learner.forward(theta, episode.query_x).logits.argmax(1)
        assert labels.tolist() == expected.tolist()
    assert not torch.equal(found, predict(maml, episodes, settings, lambda done: None))


def test_the_snapshot_is_chosen_on_validation_and_the_earliest_of_equals(
    data: ClassImages, tmp_path: Path
) -> None:
    selection = [
        {"iteration": 10, "one_step": 30.0, "nearest_class_mean": 70.0},
        {"iteration": 20, "one_step": 50.0, "nearest_class_mean": 60.0},
        {"iteration": 30, "one_step": 50.0, "nearest_class_mean": 50.0},
    ]
    assert evaluate.chosen(selection, "one_step") == 1
    assert evaluate.chosen(selection, "nearest_class_mean") == 0

    for i in range(2):
        model = _model(i, iteration=10 * (i + 1))
        save_learner(tmp_path / "snapshots" / f"iteration-{i}.safetensors", model.theta, model.info)
    models = evaluate.load_snapshots(tmp_path, "cpu")
    tasks = evaluate.Tasks([data], fixed_tasks([data], "val", 3, 3, 2, 3))
    found = evaluate.select(models, tasks, SETTINGS, "cpu")
    assert [row["iteration"] for row in found] == [10, 20]
    judged = evaluate.judge_learner(models, found, tasks, tasks, SETTINGS, "cpu")
    assert set(judged) == {"one_step", "icfil", "nearest_class_mean", "linear_probe"}
    # On the very episodes of the choice, the judged accuracy is the chosen snapshot's.
    for name in ("one_step", "nearest_class_mean"):
        best = max(row[name] for row in found)
        assert judged[name].summary()["accuracy"] == pytest.approx(best)
        assert judged[name].val_accuracy == best
    curve = evaluate.curve(models, tasks, SETTINGS, "cpu")
    assert [point["iteration"] for point in curve] == [10, 20]
    assert [point["n_episodes"] for point in curve] == [3, 3]
    assert [point["accuracy"] for point in curve] == [row["one_step"] for row in found]
