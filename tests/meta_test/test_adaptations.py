from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.common.dataset import ClassImages, Normalisation
from stages.common.episodes import Episode
from stages.common.learner import Learner, LearnerInfo, initial_theta, save_learner
from stages.common.pool import load_pool
from stages.common.seeds import generator
from stages.interface import params
from stages.meta_test import evaluate, icfil, nearest_class_mean, one_step, pool_features
from stages.meta_test.adaptations import ADAPTATIONS
from stages.meta_test.episodes import RealEpisodes, accuracies, fixed_indices
from tests.conftest import ROOT

SETTINGS = params.load(ROOT / "params.yaml").meta_test


@pytest.fixture
def data() -> ClassImages:
    """Five classes of 16x16 images told apart by colour."""
    g = torch.Generator().manual_seed(0)
    colours = [(30, 30, 30), (220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)]
    images = []
    for colour in colours:
        noise = torch.randint(-25, 26, (12, 16, 16, 3), generator=g)
        images.append((torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8))
    norm = Normalisation((0.5,) * 3, (0.25,) * 3)
    return ClassImages("tiny", list(range(5)), [str(i) for i in range(5)], images, 16, norm)


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
    one = fixed_indices(data, "test", 5, 3, 2, 3)
    again = fixed_indices(data, "test", 8, 3, 2, 3)[:5]
    other = fixed_indices(data, "val", 5, 3, 2, 3)
    assert all(torch.equal(a.support, b.support) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a.support, b.support) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="n_way = 6: only 5 classes"):
        fixed_indices(data, "test", 1, 6, 2, 3)


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
            learner, theta, _episode().support_x, labels, settings, generator(0, "noise")
        )
        losses.append(F.cross_entropy(learner.forward(theta, images).logits, labels).item())
    assert losses[1] < 0.5 * losses[0]


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
    indices = fixed_indices(data, "test", 4, 3, 3, 4)
    learner, theta = Learner("conv4", 3, 16), initial_theta("conv4", 3, 16, generator(0, "x"))
    labels = ADAPTATIONS[name].predict(
        learner, theta, RealEpisodes(data, indices, "cpu"), settings, lambda done: None
    )
    assert labels.shape == (4, 12)
    accuracy = accuracies(labels, torch.arange(3).repeat_interleave(4))
    assert accuracy.mean() > 85


def test_the_pool_side_by_side_is_concatenation(data: ClassImages, tiny_pool: Path) -> None:
    pool = load_pool(tiny_pool)
    indices = fixed_indices(data, "test", 6, 3, 2, 3)
    together, each = pool_features.predict_by_pool(
        pool, data, indices, "cosine", "cpu", lambda done: None
    )
    assert together.shape == (6, 9)
    assert len(each) == 3
    index = indices[0]
    episode = next(iter(RealEpisodes(data, [index], "cpu")))

    def features(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.normalize(t.net(x).features, dim=1) for t in pool], 1)

    expected = nearest_class_mean.nearest(
        features(episode.support_x), features(episode.query_x), 3, "cosine"
    )
    assert together[0].tolist() == expected.tolist()


def test_summary_is_the_papers_interval() -> None:
    accuracy = torch.tensor([20.0, 40.0, 60.0, 80.0], dtype=torch.float64)
    std = math.sqrt(((-30) ** 2 + (-10) ** 2 + 10**2 + 30**2) / 3)
    assert evaluate.summary(accuracy) == {
        "accuracy": 50.0,
        "ci95": round(1.96 * std / 2, 4),
        "std": round(std, 4),
        "n_episodes": 4,
    }


def test_the_snapshot_is_chosen_on_validation_and_the_earliest_of_equals(
    data: ClassImages, tmp_path: Path
) -> None:
    selection = pd.DataFrame(
        {
            "iteration": [10, 20, 30],
            "one_step": [30.0, 50.0, 50.0],
            "nearest_class_mean": [70.0, 60.0, 50.0],
        }
    )
    assert evaluate.chosen(selection, "one_step") == 1
    assert evaluate.chosen(selection, "icfil") == 1
    assert evaluate.chosen(selection, "nearest_class_mean") == 0
    table = {"one_step": torch.ones(4), "pool_features": torch.ones(4), "teacher_00": torch.ones(4)}
    metrics = evaluate.metrics(table, selection, "transductive")
    modes = {name: row["batch_norm"] for name, row in metrics.items()}
    assert modes == {"one_step": "transductive", "pool_features": "inductive"}
    assert metrics["one_step"]["snapshot"] == 20
    assert metrics["one_step"]["val_accuracy"] == 50
    assert set(metrics) == {"one_step", "pool_features"}

    snapshots = []
    for i in range(2):
        info = LearnerInfo("conv4", 3, 16, (0.5,) * 3, (0.25,) * 3, "ei", 10 * (i + 1))
        snapshots.append(tmp_path / f"{i}.safetensors")
        save_learner(snapshots[i], initial_theta("conv4", 3, 16, generator(i, "x")), info)
    indices = fixed_indices(data, "val", 3, 3, 2, 3)
    found = evaluate.select(snapshots, data, indices, SETTINGS, "cpu")
    assert found["iteration"].tolist() == [10, 20]
    judged = evaluate.judge_learner(snapshots, found, data, indices, SETTINGS, "cpu")
    # On the very episodes of the choice, the judged accuracy is the chosen snapshot's.
    for name in ("one_step", "nearest_class_mean"):
        assert judged[name].mean().item() == pytest.approx(found[name].max())
