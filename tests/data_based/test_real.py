from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor
from typer.testing import CliRunner

from stages.common.dataset import Normalisation, View, load_split
from stages.common.episodes import Episode
from stages.common.files import load_json, load_table
from stages.common.learner import Learner, Theta, load_learner
from stages.common.meta_learners import Outer, outer_loss
from stages.common.seeds import generator
from stages.data_based.command import app
from stages.data_based.params import DATA_BASED
from stages.data_based.real import RealRun, subset
from stages.interface import params
from tests.conftest import ROOT, save_classes

SECTIONS = params.load(ROOT / "params.yaml").data_based
VIEW = View(16, Normalisation((0.5,) * 3, (0.25,) * 3))


def _tagged(n_classes: int = 4, n_images: int = 10) -> list[Tensor]:
    """Image j of class i is full of 20 i + j."""
    values = [20 * i + torch.arange(n_images) for i in range(n_classes)]
    return [v.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 16, 16, 3) for v in values]


def _tags(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def _run(images: list[Tensor], meta_learner: str = "maml", seed: int = 1) -> RealRun:
    changes = {"meta_learner": meta_learner, "episodes_per_step": 2}
    return RealRun(
        images,
        VIEW,
        "conv4",
        SECTIONS.real_maml.model_copy(update=changes),
        compile_wish="never",
        n_iterations=5,
        n_way=3,
        n_shot=2,
        n_query=3,
        seed=seed,
        device="cpu",
    )


def test_a_subset_is_some_images_of_every_class() -> None:
    images = _tagged()
    few = [_tags(x) for x in subset(images, 5, seed=0)]
    for i, tags in enumerate(few):
        assert len(set(tags)) == len(tags) == 5
        assert all(tag // 20 == i for tag in tags)
    assert few == [_tags(x) for x in subset(images, 5, seed=0)]
    assert few != [_tags(x) for x in subset(images, 5, seed=1)]


def test_episodes_are_disjoint_and_of_the_given_images_alone() -> None:
    images = subset(_tagged(), 5, seed=0)
    allowed = {tag for x in images for tag in _tags(x)}
    run = _run(images)
    episodes: list[Episode] = []

    def loss(theta: Theta, episode: Episode) -> Outer:
        episodes.append(episode)
        return Outer(theta["head.bias"].sum(), torch.tensor(0.5))

    run.outer.loss = loss
    for t in range(10):
        run.step(t)
    assert len(episodes) == 20
    seen, classes = set(), set()
    for episode in episodes:
        support = _tags(VIEW.normalisation.invert(episode.support_x))
        query = _tags(VIEW.normalisation.invert(episode.query_x))
        assert len({*support, *query}) == len(support) + len(query) == 15
        assert allowed.issuperset(support + query)
        for label in range(3):
            own = support[2 * label : 2 * label + 2] + query[3 * label : 3 * label + 3]
            assert len({tag // 20 for tag in own}) == 1
        seen.add(tuple(support))
        classes |= {tag // 20 for tag in support}
    assert len(seen) == 20
    assert classes == {0, 1, 2, 3}


@pytest.mark.parametrize("meta_learner", ["maml", "protonet"])
def test_a_resumed_run_equals_an_uninterrupted_one(meta_learner: str) -> None:
    g = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (6, 16, 16, 3), generator=g).to(torch.uint8) for _ in range(4)]
    whole, first, second = (_run(images, meta_learner) for _ in range(3))
    records = [whole.step(t) for t in range(5)]
    for t in range(3):
        first.step(t)
    second.load_state({name: t.clone() for name, t in first.state().items()})
    assert [second.step(t) for t in range(3, 5)] == records[3:]
    found = second.state()
    assert found.keys() == whole.state().keys()
    assert all(torch.equal(found[name], t) for name, t in whole.state().items())


@pytest.fixture
def project(tmp_path: Path, at_project: Callable[..., None]) -> Path:
    """A folder with tiny budgets and a tiny data set: 4 meta-train classes of 8 images."""
    length = {"n_iterations": 3, "n_snapshots": 2}
    at_project({"n_query": 3, "budgets.quick.data_based": length})
    names = [f"class{i}" for i in range(6)]
    splits = {"train": names[:4], "val": names[4:5], "test": names[5:]}
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 8, 16, 16, 3), generator=g).to(torch.uint8)
    save_classes(tmp_path / "tiny.safetensors", "tiny", splits, images.unbind())
    return tmp_path


def _command(method: str, n_way: int = 3, n_shot: int = 2) -> tuple[int, str]:
    options = {
        "data": "tiny.safetensors",
        "n-way": n_way,
        "n-shot": n_shot,
        "method": method,
        "budget": "quick",
        "out": "learner",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.output


@pytest.mark.parametrize("method", DATA_BASED)
def test_the_command_meta_trains_on_the_images_it_should(method: str, project: Path) -> None:
    code, said = _command(method)
    assert code == 0, said
    assert "3 iterations" in said
    folder = project / "learner"
    assert sorted(path.name for path in folder.iterdir()) == ["history.parquet", "snapshots"]
    paths = sorted((folder / "snapshots").iterdir())
    assert [path.stem for path in paths] == ["iteration-000002", "iteration-000003"]
    history = load_table(folder / "history.parquet")
    assert history["iteration"].tolist() == [1, 2, 3]
    assert load_json(project / "learner.provenance.json")["stage"] == "data_based"

    section = getattr(SECTIONS, method)
    _, theta, info = load_learner(paths[-1])
    assert (info.meta_learner, info.method) == (section.meta_learner, method)
    assert (info.iteration, info.n_way, info.view) == (3, 3, VIEW)
    images = load_split(project / "tiny.safetensors", "train").images
    if method == "maml_dagger":
        images = subset(images, 2 + 3, seed=0)
    shape = {"n_iterations": 3, "n_way": 3, "n_shot": 2, "n_query": 3, "seed": 0, "device": "cpu"}
    expected = RealRun(images, VIEW, "conv4", section, compile_wish="never", **shape)
    records = [expected.step(t) for t in range(3)]
    assert history["outer_loss"].tolist() == [record["outer_loss"] for record in records]
    assert all(torch.equal(theta[name], p) for name, p in expected.snapshot().items())


def test_the_control_sees_images_as_the_learner_does(project: Path) -> None:
    path = project / "params.yaml"
    yaml = YAML()
    document = yaml.load(path)
    document["learner"]["image_size"], document["method"] = 20, "maml_dagger"
    yaml.dump(document, path)
    code, said = _command("maml_dagger")
    assert code == 0, said
    (*_, last) = sorted((project / "learner/snapshots").iterdir())
    assert load_learner(last)[2].view == View(20, VIEW.normalisation)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"n_way": 5}, "n_way = 5: tiny.safetensors has 4 meta-train classes"),
        ({"n_shot": 6}, "n_shot + n_query = 9: a meta-train class of tiny.safetensors has only 8"),
        ({"method": "real_mamal"}, 'did you mean "real_maml"?'),
    ],
)
def test_the_impossible_is_refused_and_leaves_nothing(
    wish: dict[str, object], message: str, project: Path
) -> None:
    before = sorted(project.rglob("*"))
    code, said = _command(**{"method": "real_maml", **wish})  # type: ignore[arg-type]
    assert code == 2
    assert message in said
    assert sorted(project.rglob("*")) == before


def test_as_many_ways_and_images_as_there_are_is_allowed(project: Path) -> None:
    code, said = _command("maml_dagger", n_way=4, n_shot=5)
    assert code == 0, said
    assert (project / "learner").is_dir()


def test_a_run_has_its_outer_rate_and_its_seeds_start() -> None:
    run, other = _run(_tagged()), _run(_tagged(), seed=2)
    assert run.outer.optimizer.param_groups[0]["lr"] == SECTIONS.real_maml.outer_lr
    assert SECTIONS.real_maml.outer_lr != SECTIONS.real_maml.inner_lr
    a, b = run.snapshot(), other.snapshot()
    assert not torch.equal(a["convs.0.weight"], b["convs.0.weight"])


@pytest.mark.parametrize("name", ["anil", "protonet"])
def test_a_run_trains_its_own_meta_learner(name: str) -> None:
    run, g = _run(_tagged(), name), generator(0, "episode")
    theta, labels = run.outer.theta, torch.arange(3)
    support, query = (torch.randn(3 * n, 3, 16, 16, generator=g) for n in (2, 3))
    episode = Episode(support, labels.repeat_interleave(2), query, labels.repeat_interleave(3))
    rate, steps = SECTIONS.real_maml.inner_lr, SECTIONS.real_maml.inner_steps
    expected = outer_loss(name, Learner("conv4", 3, 16), theta, episode, rate, steps).loss
    assert torch.equal(run.outer.loss(theta, episode).loss, expected)
