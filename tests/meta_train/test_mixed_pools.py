"""Pools whose teachers see images of different sizes and normalisations (scenario MH)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.common.dataset import View
from stages.common.learner import learner_view
from stages.common.params import Scenario
from stages.common.pool import Teacher, load_pool, save_manifest, save_teacher
from stages.common.seeds import generator
from stages.interface import params
from stages.interface.errors import BadInput
from stages.meta_train.episode_inversion import EpisodeInversionRun
from stages.meta_train.methods import METHODS, Setting
from stages.meta_train.params import MetaTrainBudget, NoCurriculum
from stages.meta_train.starts import average, taught_by
from stages.meta_train.synthetic import DynamicDataset
from tests.conftest import ROOT, random_state, teacher_info

SETTINGS = params.load(ROOT / "params.yaml").meta_train
LARGE = {"image_size": 32, "mean": (0.1, 0.6, 0.5), "std": (0.5, 0.1, 0.4)}


@pytest.fixture
def pool(tmp_path: Path) -> list[Teacher]:
    """Two Conv4 teachers on 16x16 images, between them one on 32x32; three classes each."""
    infos = [teacher_info(0), teacher_info(1, **LARGE), teacher_info(2)]
    for info in infos:
        save_teacher(tmp_path / info.file, info, random_state(info))
    save_manifest(tmp_path, infos)
    return load_pool(tmp_path)


def _view(pool: list[Teacher], image_size: str = "smallest") -> View:
    return learner_view([teacher.info for teacher in pool], image_size)


def _setting(pool: list[Teacher], start: str = "random", seed: int = 1) -> Setting:
    return Setting(
        architecture="conv4",
        view=_view(pool),
        scenario=Scenario(architectures="conv4", start=start, teachers_per_step=1),
        budget=MetaTrainBudget(n_iterations=20, curriculum_start=0, n_snapshots=1),
        n_way=3,
        n_shot=1,
        n_query=2,
        seed=seed,
        device="cpu",
    )


def _run(pool: list[Teacher], start: str = "random", seed: int = 1) -> EpisodeInversionRun:
    own = NoCurriculum(curriculum_weight=0.0, meta_learner="protonet", n_teachers="all")
    changes = {"compile": "never", "episodes_per_step": 1}
    shared = SETTINGS.episode_inversion.model_copy(update=changes)
    return EpisodeInversionRun(pool, shared, own, _setting(pool, start, seed))


@pytest.mark.parametrize("image_size", ["smallest", "largest"])
def test_episodes_are_shown_at_the_learners_view(
    double: None, pool: list[Teacher], image_size: str
) -> None:
    """All nine classes at once; every image is full of one pixel value, known by its place."""
    view = _view(pool, image_size)
    dataset = DynamicDataset(pool, 3, 20, view, generator(0, "images"), "cpu")
    assert [x.shape[-1] for x in dataset.images] == [16, 32, 16]
    with torch.no_grad():
        for i, (teacher, images) in enumerate(zip(pool, dataset.images, strict=True)):
            norm = teacher.info.normalisation
            mean, std = torch.tensor(norm.mean), torch.tensor(norm.std)
            pixels = (9 * i + torch.arange(9.0)) / 27
            images.copy_(((pixels[:, None] - mean) / std)[..., None, None].expand_as(images))
    episode = dataset.episode(9, 1, 2, generator(0, "episode"), detach=False)
    x = torch.cat([episode.support_x, episode.query_x])
    size = {"smallest": 16, "largest": 32}[image_size]
    assert x.shape == (27, 3, size, size)
    mean, std = torch.tensor(view.normalisation.mean), torch.tensor(view.normalisation.std)
    shown = x * std[:, None, None] + mean[:, None, None]  # what the learner takes for pixels
    shown = 27 * shown.flatten(1)
    assert torch.allclose(shown, shown[:, :1].expand_as(shown), atol=1e-5)
    assert shown[:, 0].round().sort().values.tolist() == list(range(27))
    labels = torch.cat([episode.support_y, episode.query_y])
    for label in range(9):  # images 3 c, 3 c + 1, 3 c + 2 are of class c
        assert len({int(v + 0.5) // 3 for v in shown[labels == label, 0].tolist()}) == 1


def test_gradients_reach_images_of_every_size(double: None, pool: list[Teacher]) -> None:
    """d(sum of the episode) / d(image): each of 16 x 16 places is an average of its pixels."""
    dataset = DynamicDataset(pool, 3, 20, _view(pool), generator(0, "images"), "cpu")
    episode = dataset.episode(9, 1, 2, generator(0, "episode"), detach=False)
    (episode.support_x.sum() + episode.query_x.sum()).backward()
    own = torch.tensor(pool[0].info.std)
    for teacher, images in zip(pool, dataset.images, strict=True):
        expected = 16 * 16 * torch.tensor(teacher.info.std) / own
        assert images.grad is not None
        assert torch.allclose(images.grad.sum((2, 3)), expected.expand(9, 3))
        assert images.grad.min() > 0
    without = dataset.episode(9, 1, 2, generator(0, "episode"), detach=True)
    assert torch.equal(without.support_x, episode.support_x)
    assert not without.support_x.requires_grad


def _images(run: EpisodeInversionRun) -> list[Tensor]:
    return [images.clone() for images, _ in run.synthetic()]


def _changed_by(run: EpisodeInversionRun, t: int) -> list[int]:
    before = _images(run)
    run.step(t)
    pairs = enumerate(zip(before, _images(run), strict=True))
    return [i for i, (a, b) in pairs if not torch.equal(a, b)]


def test_an_iteration_inverts_only_the_teacher_it_draws(pool: list[Teacher]) -> None:
    run = _run(pool)
    changed = [_changed_by(run, t) for t in range(12)]
    assert all(len(teachers) == 1 for teachers in changed)
    assert {i for (i,) in changed} == {0, 1, 2}
    # Iteration t draws the same whatever was before it, another seed draws others.
    assert [_changed_by(_run(pool), t) for t in (11, 4, 7)] == [changed[t] for t in (11, 4, 7)]
    other = _run(pool, seed=2)
    assert [_changed_by(other, t) for t in range(12)] != changed


def test_a_mixed_run_goes_on_exactly(pool: list[Teacher]) -> None:
    """At the pause some images have never been stepped: they have no moments."""
    whole, first, second = (_run(pool) for _ in range(3))
    records = [whole.step(t) for t in range(6)]
    first.step(0)
    assert sum(name.endswith(".step") and "images" in name for name in first.state()) == 1
    second.load_state({name: t.clone() for name, t in first.state().items()})
    assert [second.step(t) for t in range(1, 6)] == records[1:]
    assert all(torch.equal(second.state()[name], t) for name, t in whole.state().items())


def test_a_part_of_the_pool_is_its_first_teachers(pool: list[Teacher]) -> None:
    assert taught_by(pool, 2) == pool[:2]
    assert taught_by(pool, "all") == pool
    with pytest.raises(BadInput, match="n_teachers = 4: the pool has 3; allowed: up to that"):
        taught_by(pool, 4)


def test_parameters_of_different_teachers_are_not_mixed(pool: list[Teacher]) -> None:
    message = r"mixes .* teacher-01\S* is a conv4 with 3 outputs for 32 pixels .* 3 for 16;"
    with pytest.raises(BadInput, match=f"average {message}"):
        average(pool, _setting(pool))
    with pytest.raises(BadInput, match=f"average {message}"):
        _run(pool, start="average")
    for name in (name for name, method in METHODS.items() if method.mixes):
        with pytest.raises(BadInput, match=f"{name} {message}"):
            METHODS[name].start(pool, None, SETTINGS.dro, _setting(pool))
        for changes in ({"architecture": "conv4_64"}, {"n_way": 4}):
            with pytest.raises(BadInput, match=rf"{name} mixes .* teacher-00"):
                METHODS[name].start(
                    pool[::2], None, SETTINGS.dro, replace(_setting(pool), **changes)
                )
    other = replace(_setting(pool), architecture="conv4_64")
    with pytest.raises(BadInput, match=r"teacher-00.* and the learner a conv4_64"):
        average(pool[::2], other)
    assert average(pool[::2], _setting(pool)).keys() == _run(pool).snapshot().keys()
