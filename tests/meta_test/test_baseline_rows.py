"""The rows of a cell that need no method: tuned steps, probes, the pool itself; and their file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.aggregate.cells import load_cell
from stages.common.architectures import build
from stages.common.dataset import ClassImages, View
from stages.common.episodes import EpisodeIndex
from stages.common.files import load_table, save_json, save_table, save_tensors
from stages.common.learner import Learner, adapt, initial_theta, save_learner
from stages.common.pool import Teacher, TeacherInfo
from stages.common.seeds import generator
from stages.data_based.command import DATA_USED
from stages.interface import params
from stages.interface.errors import BadInput
from stages.interface.provenance import IMAGE_PRIOR, NO_DATA, origin, save_provenance
from stages.meta_test import evaluate, linear_probe, pool_features
from stages.meta_test.cell import runs_before, save_cell, save_episodes
from stages.meta_test.episodes import RealEpisodes, Task, class_accuracy, fixed_tasks, right
from stages.meta_test.evaluate import Row, Tasks
from stages.meta_test.one_step import outputs
from stages.meta_test.params import POOL_ROWS, MetaTest
from stages.meta_test.similarity import check_pool_of, similarity
from stages.meta_test.tuned_steps import candidates, choose
from tests.conftest import HALF, ROOT, learner_info, random_state, teacher_info
from tests.meta_test.conftest import noisy_images

GIVEN = params.load(ROOT / "params.yaml").meta_test
SETTINGS = GIVEN.model_copy(update={"pool": GIVEN.pool.model_copy(update={"precision": "float32"})})


def _exact(n_images: int) -> MetaTest:
    return SETTINGS.model_copy(update={"similarity_images": n_images})


OTHER = {"mean": (0.1, 0.6, 0.5), "std": (0.5, 0.1, 0.4)}


@pytest.fixture
def tasks(pair: list[ClassImages]) -> list[Task]:
    return fixed_tasks(pair, "test", 6, 3, 2, 4)


def _teacher(info: TeacherInfo) -> Teacher:
    net = build(info.architecture, info.n_outputs, info.image_size)
    net.load_state_dict(random_state(info))
    return Teacher(info, net.eval().requires_grad_(False))


# --- tuned steps --------------------------------------------------------------------------------


def test_candidates_are_spaced_in_the_logarithm_and_doubled() -> None:
    def found(**changes: object) -> tuple[list[float], list[int]]:
        return candidates(SETTINGS.tuned_steps.model_copy(update=changes))

    assert found(lr_low=0.01, lr_high=0.1, n_lrs=3, max_steps=16) == (
        [0.01, 0.0316, 0.1],
        [1, 2, 4, 8, 16],
    )
    assert found(lr_low=0.001, lr_high=1.0, n_lrs=4, max_steps=13) == (
        [0.001, 0.01, 0.1, 1.0],
        [1, 2, 4, 8],
    )
    assert found(lr_low=0.02, n_lrs=1, max_steps=1) == ([0.02], [1])


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
@pytest.mark.parametrize("seed", range(3))
def test_the_tuned_pair_is_that_of_a_loop_over_all(
    seed: int, batch_norm: str, pair: list[ClassImages], tasks: list[Task]
) -> None:
    own = SETTINGS.tuned_steps.model_copy(
        update={"max_steps": 4, "lr_low": 0.003, "lr_high": 0.3, "n_lrs": 3}
    )
    learner = Learner("conv4", 3, 16)
    theta = initial_theta("conv4", 3, 16, generator(seed, "theta"))
    episodes = RealEpisodes(pair, tasks, View(16, HALF), "cpu")
    best, table = (0.0, 0, 0.0), []
    for steps in (1, 2, 4):
        for lr in (0.003, 0.03, 0.3):
            hits = 0
            for episode in episodes:
                x, y = episode.support_x, episode.support_y
                _, query = outputs(
                    learner, adapt(learner, theta, x, y, lr, steps), episode, batch_norm
                )
                hits += int((query.logits.argmax(1) == episode.query_y).sum())
            table.append(hits)
            if hits > best[0]:
                best = (hits, steps, lr)
    assert len(set(table)) > 2
    done: list[int] = []
    found = choose(learner, theta, episodes, own, batch_norm, done.append)
    assert (found.inner_steps, found.inner_lr) == best[1:]
    assert done == [1, 2, 3, 4, 5, 6]


def test_of_equal_pairs_the_fewest_steps_are_chosen(
    pair: list[ClassImages], tasks: list[Task]
) -> None:
    """Zero weights everywhere: no step changes a prediction."""
    theta = {n: p * 0 for n, p in initial_theta("conv4", 3, 16, generator(0, "x")).items()}
    episodes = RealEpisodes(pair, tasks, View(16, HALF), "cpu")
    learner = Learner("conv4", 3, 16)
    found = choose(learner, theta, episodes, SETTINGS.tuned_steps, "inductive", lambda done: None)
    assert (found.inner_steps, found.inner_lr) == (1, SETTINGS.tuned_steps.lr_low)


# --- linear probe -------------------------------------------------------------------------------


def test_probes_in_chunks_equal_probes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    g = generator(0, "features")
    support, query = torch.randn(5, 6, 8, generator=g), torch.randn(5, 12, 8, generator=g)
    labels = torch.arange(3).repeat_interleave(2)
    alone = [
        linear_probe.probe(s[None], labels, q[None], SETTINGS.linear_probe)[0]
        for s, q in zip(support, query, strict=True)
    ]
    monkeypatch.setattr(linear_probe, "CHUNK", 2)
    together = linear_probe.probe(support, labels, query, SETTINGS.linear_probe)
    assert together.tolist() == torch.stack(alone).tolist()
    assert len({tuple(row) for row in together.tolist()}) == 5
    # Lengths of features do not matter.
    scaled = 100 * torch.rand(5, 6, 1, generator=g) * support
    assert torch.equal(linear_probe.probe(scaled, labels, query, SETTINGS.linear_probe), together)


# --- the pool's own rows ------------------------------------------------------------------------


def _seen(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features and log-probabilities of uint8 images, resized as pixels."""
    info = teacher.info
    pixels = images.permute(0, 3, 1, 2) / 255
    if info.image_size != 16:
        side = (info.image_size, info.image_size)
        pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (info.mean, info.std))
    out = teacher.net((pixels - mean) / std)
    return out.features / out.features.norm(dim=1, keepdim=True), out.logits.log_softmax(1)


def _by_nearest_mean(vectors: Callable[[Tensor], Tensor], task: Task, data: ClassImages) -> Tensor:
    """Labels (n_way * n_query,) by the cosine to class means of unit vectors."""
    index, means, queries = task.episode, [], []
    for c, support, query in zip(index.classes.tolist(), index.support, index.query, strict=True):
        means.append(F.normalize(vectors(data.images[c][support]), dim=1).mean(0))
        queries += list(F.normalize(vectors(data.images[c][query]), dim=1))
    cosines = [[F.cosine_similarity(q, m, dim=0) for m in means] for q in queries]
    return torch.tensor(cosines).argmax(1)


def _read(pool: list[Teacher], images: Tensor) -> Tensor:
    """What the pool reads in images together with their mirror images."""
    both = [[_seen(teacher, x) for x in (images, images.flip(2))] for teacher in pool]
    features = torch.cat([a[0] + b[0] for a, b in both], 1)
    words = [a[1] + b[1] for a, b in both]
    ratios = torch.cat([w - w.mean(1, keepdim=True) for w in words], 1)
    return torch.cat([F.normalize(features, dim=1), F.normalize(ratios, dim=1)], 1)


@pytest.fixture(params=["equal", "sizes", "architectures"])
def pool(request: pytest.FixtureRequest) -> list[Teacher]:
    changes = {
        "equal": [{}, {}],
        "sizes": [{"image_size": 32, **OTHER}, {"image_size": 16}],
        "architectures": [{"architecture": "resnet10"}, {"image_size": 48}],
    }[request.param]
    return [_teacher(teacher_info(i, **change)) for i, change in enumerate(changes)]


def test_the_pools_rows_equal_loops(
    pool: list[Teacher],
    pair: list[ClassImages],
    tasks: list[Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_features, "BATCH", 3)
    monkeypatch.setattr("stages.meta_test.episodes.CHUNK", 4)
    done: list[int] = []
    found = dict(pool_features.predict_by_pool(pool, pair, tasks, SETTINGS, "cpu", done.append))
    assert done == [1, 2]
    all_features = lambda x: torch.cat([_seen(t, x)[0] for t in pool], 1)  # noqa: E731
    all_words = lambda x: torch.cat([_seen(t, x)[1] for t in pool], 1)  # noqa: E731
    for e, task in enumerate(tasks):
        data = pair[task.data]
        for t, teacher in enumerate(pool):
            own = _by_nearest_mean(lambda x, t=teacher: _seen(t, x)[0], task, data)
            assert found["single_teacher"][t, e].tolist() == own.tolist()
        together = _by_nearest_mean(all_features, task, data)
        assert found["pool_features"][e].tolist() == together.tolist()
        words = _by_nearest_mean(all_words, task, data)
        assert found["pool_log_probabilities"][e].tolist() == words.tolist()
        read = _by_nearest_mean(lambda x: _read(pool, x), task, data)
        assert found["pool_readout"][e].tolist() == read.tolist()

        classes, labels = task.episode.classes.tolist(), torch.arange(3).repeat_interleave(2)
        views = [lambda x, t=t: _seen(t, x)[0] for t in pool]
        rows = [*found["single_teacher_probe"][:, e], found["pool_probe"][e]]
        for vectors, row in zip([*views, all_features], rows, strict=True):
            s, q = (
                torch.cat([vectors(data.images[c][i]) for c, i in zip(classes, part, strict=True)])
                for part in (task.episode.support, task.episode.query)
            )
            probed = linear_probe.probe(s[None], labels, q[None], SETTINGS.linear_probe)
            assert row.tolist() == probed[0].tolist()
    rows = [found["single_teacher"][0], *(found[name] for name in found if "pool" in name)]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 5  # the rows do differ


def test_judging_a_pool_averages_single_teachers(
    pair: list[ClassImages], tasks: list[Task]
) -> None:
    pool = [_teacher(teacher_info(i)) for i in range(3)]
    rows = evaluate.judge_pool(pool, Tasks(pair, tasks), SETTINGS, "cpu")
    assert list(rows) == list(POOL_ROWS)
    alone = [evaluate.judge_pool([t], Tasks(pair, tasks), SETTINGS, "cpu") for t in pool]
    for name in ("single_teacher", "single_teacher_probe"):
        mean = sum(one[name].summary()["accuracy"] for one in alone) / 3
        assert rows[name].summary()["accuracy"] == pytest.approx(mean, abs=1e-3)
    for one in alone:  # of one teacher, the pool is that teacher
        assert torch.equal(one["single_teacher"].share, one["pool_features"].share)


def test_side_by_side_is_per_image() -> None:
    a = [[torch.tensor([[1.0], [2.0]])], [torch.tensor([[3.0]])]]
    b = [[torch.tensor([[10.0, 11.0], [20.0, 21.0]])], [torch.tensor([[30.0, 31.0]])]]
    (first,), (second,) = pool_features.side_by_side([a, b])
    assert first.tolist() == [[1, 10, 11], [2, 20, 21]]
    assert second.tolist() == [[3, 30, 31]]


# --- tasks and accuracies -----------------------------------------------------------------------


def _same(a: Task, b: Task) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.episode, b.episode, strict=True))


def test_two_data_sets_take_turns_with_their_own_first_episodes(pair: list[ClassImages]) -> None:
    tasks = fixed_tasks(pair, "test", 9, 3, 2, 4)
    assert [task.data for task in tasks] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    for which in (0, 1):
        alone = fixed_tasks([pair[which]], "test", 9, 3, 2, 4)
        own = tasks[which::2]
        assert all(_same(a, b) for a, b in zip(own, alone[: len(own)], strict=True))
    assert not any(_same(a, b) for a, b in zip(tasks[::2], tasks[1::2], strict=False))


def test_a_fingerprint_is_that_of_the_episodes(pair: list[ClassImages]) -> None:
    def of(data: list[ClassImages], *shape: int) -> str:
        return Tasks(data, fixed_tasks(data, "test", *shape)).fingerprint

    same = of(pair, 6, 3, 2, 4)
    assert same == of(pair, 6, 3, 2, 4)
    first, second = pair
    shorter = [images[:-1] for images in first.images[:1]] + first.images[1:]
    others = [
        of(pair, 5, 3, 2, 4),
        of(pair, 6, 2, 2, 4),
        of(pair, 6, 3, 1, 4),
        of(pair, 6, 3, 2, 3),
        of([first], 6, 3, 2, 4),
        of([replace(first, dataset="other"), second], 6, 3, 2, 4),
        of([replace(first, class_names=first.class_names[::-1]), second], 6, 3, 2, 4),
        of([replace(first, image_size=8), second], 6, 3, 2, 4),
        of([replace(first, images=shorter), second], 6, 3, 2, 4),
    ]
    assert len({same, *others}) == 1 + len(others)
    # the same sizes and names, but other images drawn
    moved = Tasks(pair, fixed_tasks(pair, "val", 6, 3, 2, 4))
    assert moved.fingerprint not in (same, *others)


def test_images_made_for_the_episodes_are_in_their_fingerprint() -> None:
    """Two pools of one's own may lend classes of equal names and sizes: they are not paired."""
    made = replace(noisy_images("tiny", 0), dataset="none")
    changed = [images.clone() for images in made.images]
    changed[3][2, 5, 7, 1] += 1
    tasks = fixed_tasks([made], "test", 6, 3, 2, 4)
    found = [Tasks([replace(made, images=x)], tasks).fingerprint for x in (made.images, changed)]
    assert found[0] != found[1]


def test_support_and_query_share_no_image(pair: list[ClassImages]) -> None:
    for task in fixed_tasks(pair, "val", 40, 4, 3, 5):
        index = task.episode
        assert len(set(index.classes.tolist())) == 4
        for support, query in zip(index.support.tolist(), index.query.tolist(), strict=True):
            assert sorted(support + query) == list(range(8))


def test_class_accuracy_by_hand(pair: list[ClassImages]) -> None:
    def task(data: int, *classes: int) -> Task:
        index = torch.tensor([[0, 1]] * len(classes))
        return Task(data, EpisodeIndex(torch.tensor(classes), index, index))

    tasks = [task(0, 2, 0), task(0, 0, 1), task(1, 2, 3)]
    share = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0.5], [1, 1, 0, 0.25]])
    assert class_accuracy(share, tasks, pair) == {
        "class0": 75.0,  # of 2 / 2 and 1 / 2
        "class1": 75.0,
        "class2": 50.0,
        "class8": 100.0,
        "class9": 12.5,
    }
    assert right(torch.tensor([[0, 1, 1, 0]]), tasks[:1]).tolist() == [[True, False, True, False]]


def test_the_summary_of_a_row_by_hand() -> None:
    share = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    # 50, 100, 75 %: s = sqrt((25^2 + 25^2) / 2) = 25, 1.96 * 25 / sqrt(3) = 28.2902
    expected = {"accuracy": 75.0, "ci95": 28.2902, "std": 25.0, "correct": [2, 4, 3]}
    assert Row(share, "words").summary() == {**expected, "protocol": "words"}
    chosen = Row(share, "words", snapshot=20, val_accuracy=61.23456).summary()
    assert (chosen["snapshot"], chosen["val_accuracy"]) == (20, 61.2346)
    mean = Row(torch.tensor([[1, 0.25, 0.25, 0]]), "").summary()
    assert mean == {"accuracy": 37.5, "ci95": 0.0, "std": 0.0, "correct": [1.5], "protocol": ""}


def test_the_earliest_of_equal_snapshots_is_chosen() -> None:
    selection = [{"iteration": i, "one_step": a} for i, a in enumerate((40.0, 60.0, 55.0, 60.0))]
    assert evaluate.chosen(selection, "one_step") == 1


# --- similarity ---------------------------------------------------------------------------------


def _synthetic(path: Path, pool: list[Teacher], images: dict[str, Tensor], turn: int = 0) -> Path:
    """Real images as if they were synthetic ones; label j shows class j + turn."""
    tensors = {}
    for i, teacher in enumerate(pool):
        names = teacher.info.class_names
        shown = [
            teacher.info.view.of(images[names[(j + turn) % len(names)]]) for j in range(len(names))
        ]
        labels = torch.arange(len(names)).repeat_interleave(len(shown[0]))
        tensors |= {f"teacher-{i:02d}.images": torch.cat(shown), f"teacher-{i:02d}.labels": labels}
    save_tensors(path, tensors, {"teachers": [asdict(teacher.info) for teacher in pool]})
    return path


def test_real_images_are_most_similar_to_themselves(tmp_path: Path) -> None:
    """Teachers of two normalisations and two architectures, the last with two classes."""
    infos = [
        teacher_info(0),
        teacher_info(1, architecture="resnet10", **OTHER),
        teacher_info(2, n_classes=2),
    ]
    pool = [_teacher(info) for info in infos]
    data = noisy_images("tiny", 0, n_classes=9)
    images = dict(zip(data.class_names, data.images, strict=True))
    path = _synthetic(tmp_path / "synthetic.safetensors", pool, images)
    found = similarity(path, pool, [noisy_images("second", 6), data], _exact(8))
    assert (found["own"], found["nearest_is_own"]) == (1.0, 100.0)
    assert found["classes"] == [f"class{i}" for i in range(8)]
    matrix = torch.tensor(found["matrix"])
    assert matrix.diagonal().tolist() == [1.0] * 8
    others = matrix[~torch.eye(8, dtype=torch.bool)]
    assert found["other"] == pytest.approx(others.mean().item(), abs=0.006)
    assert others.max() < 1

    # Each class shown as its neighbour: the diagonal moves.
    turned = similarity(_synthetic(path, pool, images, turn=1), pool, [data], _exact(8))
    assert (turned["nearest_is_own"], turned["own"] < 0.5) == (0.0, True)
    names, by = turned["classes"], torch.tensor(turned["matrix"]).argmax(1).tolist()
    assert [names[j] for j in by] == [f"class{i}" for i in (1, 2, 0, 4, 5, 3, 7, 6)]


def test_some_images_of_a_class_are_compared_of_real_ones_a_draw(tmp_path: Path) -> None:
    pool = [_teacher(teacher_info(i)) for i in range(2)]
    data = noisy_images("tiny", 0)
    spoilt = {}
    for name, x in zip(data.class_names, data.images, strict=True):
        stream = generator(0, "meta_test", "similarity", "tiny", name)
        drawn = torch.randperm(len(x), generator=stream)[:4]
        assert sorted(drawn.tolist()) != [0, 1, 2, 3]
        spoilt[name] = torch.cat([x[drawn], 0 * x[4:]])
    path = _synthetic(tmp_path / "synthetic.safetensors", pool, spoilt)
    assert similarity(path, pool, [data], _exact(4))["own"] == 1.0
    assert similarity(path, pool, [data], _exact(8))["own"] < 1.0
    # Of fewer synthetic images than asked for, as many real ones.
    few = {name: x[:4] for name, x in spoilt.items()}
    assert similarity(_synthetic(path, pool, few), pool, [data], _exact(8))["own"] == 1.0
    # No real images of its classes, or one class, which is no one's neighbour: nothing to compare.
    assert similarity(path, pool, [noisy_images("second", 0)], _exact(4)) is None
    lone = [_teacher(teacher_info(0, n_classes=1))]
    images = {data.class_names[0]: data.images[0]}
    assert similarity(_synthetic(path, lone, images), lone, [data], _exact(4)) is None


def test_synthetic_images_of_another_pool_are_refused(tmp_path: Path) -> None:
    pool = [_teacher(teacher_info(i)) for i in range(2)]
    data = noisy_images("tiny", 0)
    images = dict(zip(data.class_names, data.images, strict=True))
    path = _synthetic(tmp_path / "synthetic.safetensors", pool, images)
    check_pool_of(path, pool)
    check_pool_of(path, [*pool, _teacher(teacher_info(2))])  # a learner of the first two
    with pytest.raises(BadInput, match=r"with 2 teachers, the pool has 1: .* of another pool"):
        check_pool_of(path, pool[:1])
    with pytest.raises(BadInput, match=r"its teacher 0 knows other classes than teacher-01"):
        check_pool_of(path, pool[::-1])


# --- snapshots and the cell's file --------------------------------------------------------------


def test_snapshots_must_be_there_and_of_one_learner(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no snapshots/iteration-\*\.safetensors: not a learner"):
        evaluate.load_snapshots(tmp_path, "cpu")
    info = learner_info()
    for own in (
        info,
        replace(info, iteration=20),
        replace(info, architecture="conv4_64", iteration=30),
    ):
        theta = initial_theta(own.architecture, 3, 16, generator(0, "theta"))
        save_learner(tmp_path / f"snapshots/iteration-{own.iteration}.safetensors", theta, own)
    with pytest.raises(BadInput) as refusal:
        evaluate.load_snapshots(tmp_path, "cpu")
    message = str(refusal.value)
    assert "\n" not in message
    assert "iteration-30.safetensors: its architecture is 'conv4_64'" in message
    assert "that of iteration-10.safetensors 'conv4'" in message
    (tmp_path / "snapshots" / "iteration-30.safetensors").unlink()
    models = evaluate.load_snapshots(tmp_path, "cpu")
    assert [model.info.iteration for model in models] == [10, 20]


@pytest.fixture
def rows(tasks: list[Task]) -> dict[str, Row]:
    share = torch.rand(6, 12, generator=generator(0, "share"))
    return {
        "one_step": Row(share > 0.4, "1 step, lr 0.01", snapshot=450, val_accuracy=55.5),
        "single_teacher": Row((share * 13).round() / 13, "no step"),  # a mean over 13 teachers
    }


def _save(
    folder: Path,
    key: str,
    rows: dict[str, Row],
    learner: Path | None,
    pool: dict[str, object] | None = None,
    changed: dict[str, object] | None = None,
) -> Path:
    """The cell's file, with what save_cell finds beside it."""
    save_provenance(folder / "pool.provenance.json", 60.0, "cpu", origin(), seed=0, **(pool or {}))
    own = {"changed_params": changed} if changed else {}
    save_provenance(folder / "evaluation" / "provenance.json", 30.0, "cpu", origin() | own)
    path = folder / "reports" / "quick" / "seed-0" / f"{key}.json"
    content = {
        "selection": [{"iteration": 450, "one_step": 55.5}] if learner else [],
        "curve": [{"iteration": 450, "accuracy": 50.0, "ci95": 1.0}] if learner else [],
        "similarity": None,
        "class_accuracy": [{"one_step": {"class0": 50.0}}],
    }
    shape = {"n_way": 3, "n_shot": 2, "n_query": 4, "seed": 0, "budget": "quick"}
    pair = [noisy_images("tiny", 0), noisy_images("second", 6)]
    save_cell(
        path,
        key,
        rows,
        Tasks(pair, fixed_tasks(pair, "test", 6, 3, 2, 4)),
        content,
        made=runs_before(folder / "pool", learner, key, seed=0, budget="quick"),
        learner=learner,
        evaluation=folder / "evaluation",
        **shape,  # type: ignore[arg-type]
    )
    return path


def test_a_saved_cell_is_what_aggregate_loads(
    tmp_path: Path, rows: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no repository: no parameter differs from its commit
    learner = tmp_path / "learner"
    save_provenance(
        tmp_path / "learner.provenance.json",
        120.0,
        "cpu",
        origin(),
        stage="meta_train",
        data_used=NO_DATA,
        start=None,
    )
    accuracy = torch.rand(450, generator=generator(0, "history")).double()
    history = {
        "iteration": range(1, 451),
        "outer_accuracy": accuracy.tolist(),
        "feedback": [float(i in (100, 300)) for i in range(1, 451)],
    }
    save_table(learner / "history.parquet", pd.DataFrame(history))
    cell = load_cell(_save(tmp_path, "mh-glyphs-3way-2shot-eci", rows, learner))
    assert (cell.scenario, cell.dataset, cell.method) == ("mh", "glyphs", "eci")
    assert (cell.n_way, cell.n_shot, cell.n_query, cell.n_episodes) == (3, 2, 4, 6)
    assert (cell.data_used, cell.datasets) == ("none", ["tiny", "second"])
    assert cell.fingerprint is not None
    assert len(cell.fingerprint) == 64
    for name, row in rows.items():
        found = cell.rows[name].model_dump(exclude_none=True)
        assert found == row.summary()
        share = 100 * row.share.double().mean(1)
        assert torch.allclose(torch.tensor(cell.percent(name)), share, atol=0.005)
    assert [run.stage for run in cell.provenance] == ["pretrain", "meta_train", "meta_test"]
    assert [run.minutes for run in cell.provenance] == [1.0, 2.0, 0.5]
    # 450 iterations in 200 parts: 50 of three, then 150 of two.
    ends = [3 * (i + 1) for i in range(50)] + [150 + 2 * (i + 1) for i in range(150)]
    assert cell.history.iteration == ends
    means = [*accuracy[:150].view(50, 3).mean(1), *accuracy[150:].view(150, 2).mean(1)]
    assert cell.history.outer_accuracy == pytest.approx([float(m) for m in means], abs=1e-4)
    assert cell.history.switches == [100, 300]
    assert cell.command == (
        "dvc exp run -S scenario=mh -S dataset=glyphs -S n_way=3 -S n_shot=2 -S method=eci"
        " -S budget=quick -S seed=0"
    )


def test_the_command_names_what_was_changed(
    tmp_path: Path, rows: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = {"pretrain.pool_size": 6, "own_pool": "my models", "x.flag": True}
    before = {"changed_params": {"meta_train.eci.curriculum_weight": 2}}  # taken back since
    path = _save(tmp_path, "ss-glyphs-3way-2shot-pool", rows, None, before, changed)
    assert load_cell(path).command.endswith(
        " -S budget=quick -S seed=0 -S 'own_pool=my models' -S pretrain.pool_size=6 -S x.flag=true"
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, r"key: seed = 0: its meta_train was run with seed = 1; allowed: 1, or"),
        (
            {"params": {"n_query": 1, "budgets.paper.meta_train.n_iterations": 9}},
            r"key: budget = 'quick': its meta_train was run with budget = 'paper'; allowed: paper",
        ),
    ],
)
@pytest.mark.parametrize("started", [True, False])
def test_a_run_of_another_seed_or_budget_is_not_filed_under_the_cells(
    other: dict[str, object], message: str, started: bool, tmp_path: Path
) -> None:
    """The names of pools and learners say neither, and `dvc repro -s` does not look at them."""
    right = {"seed": 0, "params": {"n_query": 1, "budgets.quick.meta_train.n_iterations": 3}}
    run = {"stage": "meta_train"} | right
    save_json(tmp_path / "pool.provenance.json", right)
    save_json(tmp_path / "learner.provenance.json", run)
    given = (tmp_path / "pool", tmp_path / "learner", "key", 0, "quick")
    assert [made["stage"] for made in runs_before(*given)] == ["pretrain", "meta_train"]
    wrong = run | {"start": run | other} if started else run | other
    save_json(tmp_path / "learner.provenance.json", wrong)
    with pytest.raises(BadInput, match=message):
        runs_before(*given)


def test_a_pool_of_another_seed_is_not_filed_under_the_cells(tmp_path: Path) -> None:
    save_json(tmp_path / "pool.provenance.json", {"seed": 2})
    with pytest.raises(BadInput, match="its pretrain was run with seed = 2"):
        runs_before(tmp_path / "pool", None, "key", 0, "quick")


def test_an_adopted_pool_says_so(tmp_path: Path, rows: dict[str, Row]) -> None:
    cell = load_cell(_save(tmp_path, "ss-none-3way-2shot-pool", rows, None, {"stage": "own_pool"}))
    assert [run.stage for run in cell.provenance] == ["own_pool", "meta_test"]


def test_a_pools_cell_has_no_training(tmp_path: Path, rows: dict[str, Row]) -> None:
    cell = load_cell(_save(tmp_path, "ss-mini_imagenet-3way-2shot-pool", rows, None))
    assert (cell.dataset, cell.method) == ("mini_imagenet", "pool")
    assert [run.stage for run in cell.provenance] == ["pretrain", "meta_test"]
    assert (cell.history.iteration, cell.iterations, cell.selection) == ([], 0, [])


def test_a_cell_tells_of_the_learner_that_its_own_started_from(
    tmp_path: Path, rows: dict[str, Row]
) -> None:
    first, second = tmp_path / "first.provenance.json", tmp_path / "second.provenance.json"
    begun, used = origin(), {"stage": "meta_train", "data_used": IMAGE_PRIOR}
    save_provenance(first, 60.0, "cpu", begun, start=None, **used)
    start = json.loads(first.read_text()) | {"commit": "0123456789"}
    own = {"stage": "meta_train", "data_used": NO_DATA, "start": start}
    save_provenance(second, 120.0, "cpu", origin(), **own)
    save_table(tmp_path / "second" / "history.parquet", pd.DataFrame({"iteration": [1]}))
    path = _save(tmp_path, "ss-glyphs-3way-2shot-x", rows, tmp_path / "second")
    cell = load_cell(path)
    assert [run.stage for run in cell.provenance[1:3]] == ["meta_train", "meta_train"]
    assert [run.minutes for run in cell.provenance] == [1.0, 1.0, 2.0, 0.5]
    assert cell.provenance[1].commit == "0123456789"
    assert cell.data_used == NO_DATA
    assert all("start" not in run for run in json.loads(path.read_text())["provenance"])


@pytest.mark.parametrize("used", [*DATA_USED.values(), IMAGE_PRIOR, NO_DATA])
def test_a_cell_says_which_data_its_training_saw(
    used: str, tmp_path: Path, rows: dict[str, Row]
) -> None:
    beside = tmp_path / "learner.provenance.json"
    save_provenance(beside, 1.0, "cpu", origin(), stage="meta_train", data_used=used)
    save_table(tmp_path / "learner" / "history.parquet", pd.DataFrame({"iteration": [1]}))
    cell = load_cell(_save(tmp_path, "ss-glyphs-3way-2shot-ei", rows, tmp_path / "learner"))
    assert cell.data_used == used


def test_the_episodes_table_has_a_row_an_episode(
    tmp_path: Path, rows: dict[str, Row], pair: list[ClassImages], tasks: list[Task]
) -> None:
    save_episodes(tmp_path / "episodes.parquet", rows, Tasks(pair, tasks))
    table = load_table(tmp_path / "episodes.parquet")
    assert table["dataset"].tolist() == ["tiny", "second"] * 3
    for i, task in enumerate(tasks):
        first = 6 * task.data
        expected = [f"class{first + c}" for c in task.episode.classes.tolist()]
        assert table["classes"][i] == " ".join(expected)
        assert table["one_step"][i] == pytest.approx(100 * rows["one_step"].share[i].sum() / 12)
