from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from stages.check import app, cell_key, check_cell, check_own_pool
from stages.common.pool import load_manifest, save_manifest
from stages.interface import params
from stages.interface.errors import BadInput
from stages.interface.provenance import flat
from tests.conftest import ROOT


@pytest.fixture
def edited(tmp_path: Path):
    """params.yaml with one dotted key changed (None: removed)."""

    def edit(key: str, value: object) -> Path:
        yaml = YAML()
        document = yaml.load(ROOT / "params.yaml")
        *parents, last = key.split(".")
        section = document
        for part in parents:
            section = section[part]
        if value is None:
            del section[last]
        else:
            section[last] = value
        path = tmp_path / "params.yaml"
        yaml.dump(document, path)
        return path

    return edit


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scenario", "sx", r"scenario = 'sx': allowed: ss, sh, mh"),
        ("dataset", "cifar", r'dataset = \'cifar\': allowed: glyphs.* \(did you mean "cifar_fs"'),
        ("n_way", 0, r"n_way = 0: input should be greater than or equal to 2"),
        ("n_way", "five", r"n_way = 'five': input should be a valid integer"),
        ("n_shot", 5.0, r"n_shot = 5.0: input should be a valid integer"),
        ("n_shot", True, r"n_shot = True: input should be a valid integer"),
        ("meta_train.episode_inversion.outer_lr", True, r"outer_lr = True: input should be a"),
        ("meta_train.ei.curriculum_weight", 10.0, r"ei.curriculum_weight = 10.0: input should be"),
        ("scenarios.ss.architectures", "resnet18", r"start = 'average': the learner is a conv4, "),
        ("scenarios.ss.architectures", "conv4+conv5", r"no architecture 'conv5'; allowed: conv4"),
        ("scenarios.sh.teachers_per_step", 0, r"scenarios.sh.teachers_per_step = 0: input should"),
        ("learner.image_size", 8, r"learner.image_size = 8: allowed: smallest, largest"),
        ("meta_train.eci_pool2.n_teachers", 0, r"eci_pool2.n_teachers = 0: input should be"),
        ("meta_train.protonet.meta_learner", "reptile", r"meta_learner = 'reptile': allowed: maml"),
        ("meta_train.dro.support_fraction", 1, r"support_fraction = 1: input should be less than"),
        (
            "adaptation",
            "tuned_steps",
            r"method eci has no such row; allowed: auto, one_step, icfil",
        ),
        ("pretrain.train_fraction", 0.001, r"train_fraction = 0.001: of 60 images"),
        ("budgets.quick.pretrain.batch_size", 1, r"batch_size = 1: input should be greater than"),
        ("n_way", 21, r"n_way = 21: glyphs has only 16 classes .* allowed: 2 to 16"),
        ("n_shot", 0, r"n_shot = 0: input should be greater than 0"),
        ("n_shot", 46, r"n_shot = 46, n_query = 15: .* needs 61 images .* glyphs has 60"),
        ("meta_train.distill_procedural.procedural", False, r"inversion = none: allowed: one of"),
        ("method", "purer", r"method = 'purer': allowed: random, average"),
        ("adaptation", "ICFIL", r"adaptation = \'ICFIL\': allowed: auto, one_step.*"),
        ("budget", "papr", r'budget = \'papr\': allowed: quick.* \(did you mean "paper"'),
        ("seed", -1, r"seed = -1: input should be greater than or equal to 0"),
        ("device", "gpu", r"device = 'gpu': .*auto\|cpu\|cuda"),
        ("own_pool", "", r"own_pool = '': string should have at least 1 character"),
        ("metod", "ei", r'metod: unknown key \(did you mean "method"\?\); allowed here: scenario'),
        ("meta_train.eci.lambda", 1, r"meta_train.eci.lambda: unknown key.*curriculum_weight"),
        ("budgets.quick.pretrain.epoch", 1, r"budgets.quick.pretrain.epoch: unknown key .*epochs"),
        ("budgets.quick.pretrain.epochs", 0, r"budgets.quick.pretrain.epochs = 0: input"),
        (
            "budgets.quick.meta_train.curriculum_start",
            201,
            r"curriculum_start = 201: allowed: up to",
        ),
        ("pretrain.pool_size", 0, r"pretrain.pool_size = 0"),
        (
            "pretrain.optimizers.conv4.name",
            "lion",
            r"conv4.name = 'lion': allowed: adam",
        ),
        (
            "meta_train.episode_inversion.inner_lr",
            0,
            r"inner_lr = 0: input should be greater than 0",
        ),
        ("meta_test.batch_norm", "both", r"meta_test.batch_norm = 'both': allowed: transductive"),
        ("meta_test.icfil", None, r"meta_test.icfil: missing"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(edited, key, value, message) -> None:
    with pytest.raises(BadInput, match=message):
        params.load(edited(key, value))


def test_several_wrong_values_come_in_one_message(edited) -> None:
    path = edited("n_way", 1)
    path.write_text(path.read_text().replace("scenario: ss", "scenario: x"))
    with pytest.raises(BadInput) as error:
        params.load(path)
    assert len(str(error.value).splitlines()) == 2


def test_scientific_notation_is_a_number(edited) -> None:
    path = edited("seed", 0)
    path.write_text(path.read_text().replace("outer_lr: 0.001", "outer_lr: 1e-3"))
    assert params.load(path).meta_train.episode_inversion.outer_lr == 1e-3


def test_files_that_are_no_parameters(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run from the project's root"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(BadInput, match="not valid YAML"):
        params.load(tmp_path / "params.yaml")


def test_only_declared_keys_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = params.read(("seed", "budgets.{budget}.pretrain"), budget="paper")
    assert list(given) == ["seed", "budgets.{budget}.pretrain"]
    assert given["budgets.{budget}.pretrain"].epochs == 60
    with pytest.raises(BadInput, match=r"budgets.papr: no 'papr'; allowed: quick"):
        params.read(("budgets.{budget}",), budget="papr")


@pytest.mark.parametrize("method", ["real_protonet", "random", "distill", "pool"])
def test_a_learner_unlike_the_teachers_needs_no_other_start_where_none_is_theirs(
    edited, method: str
) -> None:
    path = edited("learner.architecture", "conv4_64")
    with pytest.raises(BadInput, match="start = 'average': the learner is a conv4_64"):
        params.load(path)
    path.write_text(path.read_text().replace("method: eci ", f"method: {method} ", 1))
    assert params.load(path).method == method


def test_a_learner_unlike_the_one_it_starts_from_is_refused(edited) -> None:
    path = edited("learner.architecture", "conv4_64")
    path.write_text(path.read_text().replace("method: eci ", "method: eci_distilled ", 1))
    message = "learner.architecture = 'conv4_64': method eci_distilled starts .* allowed: conv4"
    with pytest.raises(BadInput, match=message):
        params.load(path)


def test_a_date_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 2024-99-99\n")
    with pytest.raises(BadInput, match="is not valid YAML: month must be in"):
        params.load(path)


def test_a_selection_outside_the_grid_is_refused(edited) -> None:
    given = params.load(edited("n_way", 7))
    assert cell_key(given) == "ss-glyphs-7way-5shot-eci"
    with pytest.raises(BadInput, match=r"not a cell of stages/grid.yaml; n_way there: 5, 10; n_sh"):
        check_cell(given)
    check_cell(params.load(ROOT / "params.yaml"))


@pytest.mark.parametrize("method", ["average", "ota", "dro"])
@pytest.mark.parametrize("scenario", ["sh", "mh"])
def test_mixing_parameters_of_different_architectures_is_refused(edited, method, scenario) -> None:
    path = edited("method", method)
    path.write_text(path.read_text().replace("scenario: ss", f"scenario: {scenario}"))
    with pytest.raises(
        BadInput, match=rf"method = '{method}' mixes .* scenario {scenario} .*conv4"
    ):
        params.load(path)


def test_an_architecture_that_cannot_be_aligned_is_refused_first(edited) -> None:
    """Not after a pool of ResNets has been trained."""
    path = edited("method", "ota")
    resnets = path.read_text().replace("architecture: conv4 ", "architecture: resnet10 ")
    path.write_text(resnets.replace("architectures: conv4 ", "architectures: resnet10 ", 1))
    with pytest.raises(
        BadInput, match=r"'ota' cannot mix .* a resnet10 .*allowed: conv4, conv4_64"
    ):
        params.load(path)
    path.write_text(path.read_text().replace("method: ota", "method: average"))
    params.load(path)


@pytest.mark.parametrize(
    ("method", "pool_size", "fewest"),
    [("eci_pool6", 3, 6), ("eci_pool6", 5, 6), ("eci_pool2", 1, 2), ("dro", 1, 2)],
)
def test_a_pool_too_small_for_the_method_is_refused(edited, method, pool_size, fewest) -> None:
    path = edited("method", method)
    params.load(path)  # pool_size: auto

    def of(size: int) -> Path:
        sized = path.with_name("sized.yaml")
        sized.write_text(path.read_text().replace("pool_size: auto", f"pool_size: {size}"))
        return sized

    with pytest.raises(
        BadInput, match=rf"pool_size = {pool_size}: method {method} needs {fewest} teachers; allow"
    ):
        params.load(of(pool_size))
    assert params.load(of(fewest)).pretrain.pool_size == fewest


def test_a_pool_of_all_classes_may_be_too_small_too(edited) -> None:
    path = edited("meta_train.eci.n_teachers", 20)
    words = r"pool_size = auto \(13\): method eci needs 20 teachers; allowed: from 20"
    with pytest.raises(BadInput, match=words):
        params.load(path)
    path.write_text(path.read_text().replace("pool_size: auto", "pool_size: 20"))
    assert params.load(path).pretrain.pool_size == 20


@pytest.mark.parametrize("method", ["eci", "average", "distill"])
def test_what_is_mixed_sees_images_of_one_size(edited, method) -> None:
    path = edited("learner.image_size", 48)
    path.write_text(path.read_text().replace("method: eci ", f"method: {method} ", 1))
    if method == "distill":  # mixes nothing
        assert params.load(path).learner.image_size == 48
        return
    words = "for images of 32 pixels, not of learner.image_size = 48"
    with pytest.raises(BadInput, match=words):
        params.load(path)
    path.write_text(path.read_text().replace("image_size: 48", "image_size: 32", 1))
    assert params.load(path).method == method


def test_a_pool_of_one_is_enough_for_others(edited) -> None:
    for method in ("eci", "average", "pool", "real_maml"):
        path = edited("method", method)
        path.write_text(path.read_text().replace("pool_size: auto", "pool_size: 1"))
        assert params.load(path).pretrain.pool_size == 1


def test_pseudo_episodes_must_have_images_enough(edited) -> None:
    path = edited("dataset", "none")
    assert params.load(path).dataset == "none"
    path.write_text(path.read_text().replace("n_query: 15 ", "n_query: 26 "))
    with pytest.raises(BadInput, match=r"n_shot = 5, n_query = 26: .*images_per_class = 30"):
        params.load(path)


def test_both_data_sets_of_a_pair_must_be_large_enough(edited) -> None:
    path = edited("datasets.textures.images_per_class", 19)
    path.write_text(path.read_text().replace("scenario: ss", "scenario: mh"))
    with pytest.raises(BadInput, match=r"n_shot = 5, n_query = 15: .* textures has 19"):
        check_cell(params.load(path))
    path = edited("dataset", "textures")
    path.write_text(path.read_text().replace("scenario: ss", "scenario: mh"))
    with pytest.raises(BadInput, match="data sets of scenario mh there: cifar_fs, glyphs"):
        check_cell(params.load(path))


def test_a_device_that_is_not_there_is_refused_first(
    edited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited("device", "cuda:99")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app)
    assert result.exit_code == 2
    assert "device = 'cuda:99': this machine has" in result.output
    assert not (tmp_path / "reports").exists()


def test_an_own_pool_of_too_few_classes_is_refused_first(edited, tiny_pool: Path) -> None:
    """Before hours of training, after which there would be no episodes to judge by."""
    given = params.load(edited("own_pool", str(tiny_pool)))
    check_own_pool(given)
    save_manifest(tiny_pool, load_manifest(tiny_pool)[:1])
    words = r"own_pool = .*: n_way = 5: the pool lends only 3 classes .*: up to 3; `purer"
    with pytest.raises(BadInput, match=words):
        check_own_pool(given)


def test_every_value_of_params_yaml_is_commented() -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\s*\w+: +[^#\s]", line)]
    assert len(values) > 50
    assert [line for line in values if "#" not in line] == []


LEFT_OUT = {
    "procedural": {"inversion": "none", "metric": False},
    "inverted": {"procedural": False},
    "noise": {"inversion": "noise"},
    "no_prior": {"procedural": False, "inversion": "noise"},
    "no_outputs": {"weights.kl": 0.0, "weights.ratios": 0.0},
    "no_features": {"weights.features": 0.0, "readout": "features+log_ratios"},
    "no_labels": {"weights.labels": 0.0, "metric": False},
    "no_metric": {"metric": False},
}


def test_every_part_of_distill_is_without_what_its_name_says_and_with_all_else() -> None:
    sections = params.load(ROOT / "params.yaml").meta_train.model_dump()
    whole = flat(sections["distill"])
    parts = {name: flat(s) for name, s in sections.items() if name.startswith("distill_")}
    del parts["distill_64"]
    assert {name: dict(part.items() - whole.items()) for name, part in parts.items()} == {
        f"distill_{name}": change for name, change in LEFT_OUT.items()
    }
