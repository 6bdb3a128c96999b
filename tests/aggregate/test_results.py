from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages.aggregate.cells import Cell, load_cell
from stages.aggregate.figures import save_accuracies
from stages.aggregate.layouts import PAPER, cells_of
from stages.aggregate.names import STATED
from stages.aggregate.results import (
    PUBLISHED,
    Result,
    frame,
    interval,
    paired_difference,
    published,
    results,
    row_label,
)
from stages.interface.errors import BadInput
from stages.interface.provenance import flat
from tests.aggregate.fakes import fake_cell, row_of, write_cell
from tests.conftest import ROOT

ECI, EI = "ss-cifar_fs-5way-1shot-eci", "ss-cifar_fs-5way-1shot-ei"


def cell_with(root: Path, key: str, seed: int, correct: list[int], row: str = "icfil") -> Cell:
    rows = {row: row_of(np.array(correct), 5, "as invented")}
    return load_cell(write_cell(root, key, seed, rows=rows, n_episodes=len(correct)))


def by_row(found: list[Result]) -> dict[tuple[str, str], Result]:
    return {(result.method, result.adaptation): result for result in found}


def test_paired_difference_by_hand() -> None:
    ours, reference = np.array([10.0, 20.0, 60.0]), np.array([8.0, 19.0, 57.0])
    assert paired_difference({0: ours}, {0: reference}) == (2.0, 1.96 * 1.0 / math.sqrt(3))
    # two seeds in common: differences 2, 1, 3 and 4, 3, 5, on average 3, 2, 4
    two = {0: ours, 1: ours + 2, 2: ours + 100}
    assert paired_difference(two, {0: reference, 1: reference}) == (3.0, 1.96 / math.sqrt(3))
    assert paired_difference({0: ours}, {1: reference}) is None
    assert interval(np.array([5.0])) == 0


def test_seeds_are_averaged_by_episode_and_their_spread_is_kept(tmp_path: Path) -> None:
    # percent of 75: 40, 60 / 44, 64 / 48, 56: seeds' means 50, 54, 52; episodes' means 44, 60
    cells = [
        cell_with(tmp_path, ECI, seed, correct)
        for seed, correct in enumerate(([30, 45], [33, 48], [36, 42]))
    ]
    (result,) = results(cells)
    assert result.accuracy == pytest.approx(52)
    assert result.ci95 == pytest.approx(1.96 * math.sqrt(128) / math.sqrt(2))
    assert result.seed_std == pytest.approx(2.0)
    assert (result.n_seeds, result.seed) == (3, "0 / 1 / 2")
    assert result.minutes == pytest.approx(18.7)


def test_every_row_is_compared_with_purer_and_the_paper(tmp_path: Path) -> None:
    purer = cell_with(tmp_path, ECI, 0, [30, 45, 45])
    ei = cell_with(tmp_path, EI, 0, [33, 45, 48])
    alone = cell_with(tmp_path, EI.replace("1shot", "5shot"), 0, [33, 45, 48])
    found = results([ei, purer, alone])
    assert [(r.n_shot, r.method) for r in found] == [(1, "ei"), (5, "ei"), (1, "eci")]
    rows = by_row([r for r in found if r.n_shot == 1])
    assert rows["ei", "icfil"].difference == pytest.approx(8 / 3)  # of 4, 0 and 4
    assert rows["ei", "icfil"].difference_ci95 == pytest.approx(1.96 * math.sqrt(16 / 3 / 3))
    assert rows["eci", "icfil"].difference == 0
    assert (rows["eci", "icfil"].published, rows["eci", "icfil"].published_ci95) == (38.66, 0.78)
    assert rows["ei", "icfil"].published is None
    assert found[1].difference is None  # no PURER at 5 shots


def test_the_long_table_has_its_columns_even_if_empty(tmp_path: Path) -> None:
    empty, full = frame([]), frame(results([cell_with(tmp_path, EI, 0, [30, 45])]))
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert len(full) == 1
    assert math.isnan(full["difference"][0])
    assert full["hardware"][0] == "AMD EPYC, 2 cores"


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"n_query": 20}, "n_query = 20, but 15"), ({"n_episodes": 2}, "n_episodes = 2, but 40")],
)
def test_other_episodes_in_one_task_are_refused(
    tmp_path: Path, changes: dict[str, int], what: str
) -> None:
    first = load_cell(write_cell(tmp_path, ECI))
    with pytest.raises(BadInput, match=rf"1shot-ei \(seed 0\): {what} in .*1shot-eci"):
        results([first, first.model_copy(update={"key": EI, "method": "ei", **changes})])
    results([first, load_cell(write_cell(tmp_path, EI.replace("1shot", "5shot")))])


def test_cells_whose_episodes_are_known_to_differ_are_refused(tmp_path: Path) -> None:
    """Of equal number and size, but other ones: no difference of the two is paired."""

    def cell(key: str, fingerprint: str | None) -> Cell:
        return load_cell(write_cell(tmp_path, key, fingerprint=fingerprint))

    before = cell("ss-cifar_fs-5way-1shot-anil", None)  # a cell from before they were kept
    results([before, cell(ECI, "aa"), cell(EI, "aa")])
    results([before, cell(ECI, "aa"), cell(EI.replace("1shot", "5shot"), "bb")])
    with pytest.raises(BadInput, match=r"1shot-ei \(seed 0\): fingerprint = bb, but aa in .*-eci"):
        results([before, cell(ECI, "aa"), cell(EI, "bb")])


def changed_in(root: Path, key: str, seed: int = 0, **stages: dict[str, object]) -> Cell:
    """A cell whose stages noted parameters other than the committed ones."""
    runs = [
        {**run, "changed_params": stages.get(run["stage"], {})}
        for run in fake_cell(key)["provenance"]
    ]
    return load_cell(write_cell(root, key, seed, provenance=runs))


LAMBDA = {"meta_train.eci.curriculum_weight": 2.0}


def test_a_changed_parameter_is_named_where_its_stage_read_it(tmp_path: Path) -> None:
    assert changed_in(tmp_path, ECI).changed == {}
    assert changed_in(tmp_path, ECI, meta_train=LAMBDA).changed == LAMBDA
    # noted by the pool's run, which does not read it; the learner came later, without it
    assert changed_in(tmp_path, ECI, pretrain=LAMBDA, meta_test=LAMBDA).changed == {}
    assert changed_in(tmp_path, EI, meta_train=LAMBDA).changed == {}
    many = {
        "n_query": 5,
        "meta_test.icfil.head_lr": 0.1,
        "datasets.cifar_fs.images_per_class": 20,
        "datasets.glyphs.images_per_class": 20,
        "budgets.quick.meta_test.n_val_episodes": 3,
        "budgets.paper.meta_test.n_val_episodes": 3,
        "pretrain.pool_size": 6,
        "meta_train.episode_inversion.compile": "never",
    }
    (result,) = [
        r for r in results([changed_in(tmp_path, ECI, meta_test=many)]) if r.adaptation == "icfil"
    ]
    assert result.changed == (
        "budgets.quick.meta_test.n_val_episodes = 3, datasets.cifar_fs.images_per_class = 20,"
        " meta_test.icfil.head_lr = 0.1, n_query = 5"
    )


def test_a_parameter_of_another_family_is_not_what_a_method_read(tmp_path: Path) -> None:
    """ECI reads nothing of distillation; ECI that starts from a distilled network does."""
    distilled = {"meta_train.distill.readout": "features", "meta_train.distillation.lr": 0.1}
    pseudo = {"pseudo.images_per_class": 25}
    before = {"meta_test.pseudo.images_per_class": 25}  # its place in older files
    plain = changed_in(tmp_path, ECI, meta_train=distilled, meta_test=pseudo | before)
    assert plain.changed == {}
    started = changed_in(tmp_path, f"{ECI}_distilled", meta_train=LAMBDA | distilled)
    assert started.changed == distilled
    without = changed_in(tmp_path, "ss-none-5way-1shot-eci", meta_test=pseudo)
    assert without.changed == pseudo


def test_a_label_says_what_was_changed_and_at_which_shots(tmp_path: Path) -> None:
    keys = (ECI, ECI.replace("1shot", "5shot"))
    plain, other = (results([changed_in(tmp_path, key)])[0] for key in keys)
    here, there = (results([changed_in(tmp_path, key, meta_train=LAMBDA)])[0] for key in keys)
    what = "meta_train.eci.curriculum_weight = 2.0"
    assert row_label("ECI", "eci", [plain, other]) == "ECI"
    assert row_label("ECI", "eci", [here, there]) == f"ECI (changed: {what})"
    assert row_label("ECI", "eci", [plain, there]) == f"ECI (changed at 5-shot: {what})"


def test_what_one_seed_had_changed_is_named_with_it(tmp_path: Path) -> None:
    first, second = changed_in(tmp_path, ECI), changed_in(tmp_path, ECI, 1, meta_train=LAMBDA)
    what = "meta_train.eci.curriculum_weight = 2.0"
    assert {result.changed for result in results([first, second])} == {f"{what} (seed 1)"}
    both = [changed_in(tmp_path, ECI, meta_train=LAMBDA), second]
    assert {result.changed for result in results(both)} == {what}


def test_seeds_of_other_committed_parameters_are_told_apart(tmp_path: Path) -> None:
    def seed(n: int, **params: object) -> Cell:
        given = {f"meta_train.eci.{name}": value for name, value in params.items()}
        runs = [
            {**run, "params": given if run["stage"] == "meta_train" else {}}
            for run in fake_cell(ECI)["provenance"]
        ]
        return load_cell(write_cell(tmp_path, ECI, n, provenance=runs))

    same = [seed(n, curriculum_weight=10.0, n_teachers="all", compile="auto") for n in (0, 1)]
    assert {result.changed for result in results(same)} == {""}
    other = seed(2, curriculum_weight=2.0, n_teachers="all", compile="never", new=1)
    before = seed(3)  # a file from before they were kept: nothing is known
    weight = "meta_train.eci.curriculum_weight = 10.0 (seed 0, 1), 2.0 (seed 2)"
    new = "meta_train.eci.new = none (seed 0, 1), 1 (seed 2)"
    assert {row.changed for row in results([*same, other, before])} == {f"{weight}, {new}"}


def test_what_was_committed_after_one_seed_is_said_of_all(tmp_path: Path) -> None:
    """README's loop commits params.yaml after each seed: only the first differs from its commit."""
    weight = {"meta_train.eci.curriculum_weight": 2.0}
    cells = []
    for seed in (0, 1, 2):
        runs = fake_cell(ECI)["provenance"]
        runs[1] |= {"params": weight, "changed_params": weight if seed == 0 else {}}
        cells.append(load_cell(write_cell(tmp_path, ECI, seed, provenance=runs)))
    what = "meta_train.eci.curriculum_weight = 2.0"
    assert {result.changed for result in results(cells)} == {what}


def test_what_was_committed_after_the_other_number_of_shots_is_said_of_both(tmp_path: Path) -> None:
    """The same value: else the label would say that one of them was as committed before."""
    weight = {"meta_train.eci.curriculum_weight": 2.0}
    cells = []
    for key, changed, params in (
        (ECI, {"meta_train.eci.curriculum_weight": 2}, weight),  # as somebody wrote it
        (ECI.replace("1shot", "5shot"), {}, weight),
        (ECI.replace("1shot", "10shot"), {}, {"meta_train.eci.curriculum_weight": 10.0}),
    ):
        runs = fake_cell(key)["provenance"]
        runs[1] |= {"params": params, "changed_params": changed}
        cells.append(load_cell(write_cell(tmp_path, key, provenance=runs)))
    found = {result.n_shot: result.changed for result in results(cells)}
    what = "meta_train.eci.curriculum_weight = 2.0"
    assert found == {1: what, 5: what, 10: ""}


def test_what_a_name_states_is_so_or_the_row_says_what_is(tmp_path: Path) -> None:
    """Table 7 calls a row λ = 10, whatever somebody has committed."""
    params = {"meta_train.eci.curriculum_weight": 2.0}
    pools = {"pretrain.pool_size": 4}
    runs = fake_cell(ECI)["provenance"]
    runs[0]["params"], runs[1]["params"] = pools, params
    cell = load_cell(write_cell(tmp_path, ECI, provenance=runs))
    what = "meta_train.eci.curriculum_weight = 2.0, pretrain.pool_size = 4"
    assert {result.changed for result in results([cell])} == {what}


def test_what_names_state_is_what_params_yaml_says() -> None:
    committed = flat(YAML(typ="safe").load(ROOT / "params.yaml"))
    assert {key: committed[key] for key in STATED} == STATED


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_figure_has_room_for_a_label_of_any_length(tmp_path: Path) -> None:
    """Matplotlib warns where a label leaves no room for bars."""
    (row, *_) = results([changed_in(tmp_path, ECI)])
    for name, label in (("short", "ECI"), ("long", "ECI (changed: " + "n_query = 5, " * 40)):
        save_accuracies(tmp_path / f"{name}.png", [(label, row)], "SS")
    short, long = (_size(tmp_path / f"{name}.png") for name in ("short", "long"))
    assert long[0] == short[0]
    assert long[1] > short[1]


def _size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_published_values_are_whole_and_unique() -> None:
    entries = YAML(typ="safe").load(PUBLISHED)
    keys = [
        tuple(v for k, v in entry.items() if k not in ("accuracy", "ci95", "table"))
        for entry in entries
    ]
    assert len(set(keys)) == len(keys) == 70
    assert {entry["table"] for entry in entries} == set(range(1, 9))
    assert all(10 < entry["accuracy"] < 60 and 0.1 < entry["ci95"] < 1 for entry in entries)
    # every number of the paper has its place in a table of ours, and
    shown = {
        (block.key(shot, line.method), line.adaptation)
        for layout in PAPER.values()
        for block in layout.blocks
        for line in block.lines
        for shot in layout.shots
    }
    named = {f"{s}-{d}-{w}way-{k}shot-{m}": a for s, d, w, k, m, a in keys}
    assert named.keys() <= set().union(*map(cells_of, PAPER.values()))
    # what the tables show beyond it are our columns of table 4, the ceilings of table 6, and what
    # its numbers mean
    extra = {row for row in shown if published(*row) is None}
    assert {(key.rsplit("-", 1)[1], row) for key, row in extra} == {
        ("ei", "one_step"),
        ("ei", "icfil"),
        ("eci", "one_step"),
        ("real_maml", "one_step"),
        ("real_protonet", "nearest_class_mean"),
        ("random", "tuned_steps"),
        ("pool", "pool_features"),
    }
    assert len(shown) - len(extra) == 70
