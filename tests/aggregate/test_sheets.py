from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages.aggregate.cells import Cell, load_cell
from stages.aggregate.layouts import OURS, PAPER, Layout, cells_of, every_row, selected
from stages.aggregate.markdown import markdown
from stages.aggregate.report import report
from stages.aggregate.results import results
from stages.aggregate.sheets import Sheet, fill, iterations_text
from tests.aggregate.fakes import N_EPISODES, write_cell


def filled(layout: Layout, cells: list[Cell]) -> Sheet:
    return fill(layout, results(cells), cells)


def load(root: Path, *keys: str, seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    return [load_cell(write_cell(root, key, seed)) for key in keys for seed in seeds]


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_layouts_name_their_cells() -> None:
    assert list(PAPER) == [f"table_{i}" for i in range(1, 9)]
    assert cells_of(PAPER["table_3"]) == {
        f"mh-cifar_fs-5way-{shot}shot-{method}"
        for shot in (1, 5)
        for method in ("random", "eci", "pool")
    }
    assert cells_of(PAPER["table_8"]) == {
        f"ss-cifar_fs-5way-{shot}shot-{method}"
        for shot in (1, 5)
        for method in ("eci", "eci_pool2", "eci_pool6", "pool")
    }
    assert len(cells_of(PAPER["table_1"])) == 24
    assert not any(
        f"{scenario}-" in key and key.endswith(("average", "ota", "dro"))
        for layout in PAPER.values()
        for key in cells_of(layout)
        for scenario in ("sh", "mh")
    )


def test_a_table_has_ours_the_papers_and_the_difference(tmp_path: Path) -> None:
    cells = load(tmp_path, *sorted(cells_of(PAPER["table_6"])))
    text = markdown(filled(PAPER["table_6"], cells))
    (line,) = lines_of(text, "| CIFAR-FS, 5-way | **PURER (ECI + ICFIL)**")
    assert "| 38.66 ± 0.78 | reference |" in line
    assert "| 51.95 ± 0.79 | reference |" in line
    (maml,) = lines_of(text, "| CIFAR-FS, 10-way | MAML† (data-based)")
    assert "| 19.05 ± 0.38 | −" in maml
    (ceiling,) = lines_of(text, "| CIFAR-FS, 5-way | Prototypical network on all images (data")
    assert "| – | −" in ceiling
    assert "not run" not in text
    assert f"over {N_EPISODES} fixed meta-test episodes" in text
    assert "Budget quick: 10 outer iterations (the paper: 60,000)" in text
    assert "- 1 step, lr 0.01, transductive: MAML† (data-based); MAML on all images" in text
    assert "- none: PURER (ECI + ICFIL)" in text
    assert "pretrain 4.2 min, meta_train 12.0 min, meta_test 2.5 min (commit abc1234567" in text
    assert all(f"`{cell.command}`" in text for cell in cells)


def test_what_was_not_run_says_so_and_is_never_the_papers(tmp_path: Path) -> None:
    sheet = filled(PAPER["table_1"], load(tmp_path, "ss-cifar_fs-5way-1shot-eci"))
    by_label = {(line.heading, line.label): line.entries for line in sheet.lines}
    once, never = by_label["CIFAR-FS, 5-way", "PURER (ECI + ICFIL)"]
    assert once.ours.startswith("4")
    assert (never.ours, never.published, never.difference) == ("not run", "51.95 ± 0.79", "–")
    others = [e for place, line in by_label.items() if "PURER" not in place[1] for e in line]
    assert {entry.ours for entry in others} == {"not run"}
    nothing = filled(PAPER["table_3"], [])
    assert {e.ours for line in nothing.lines for e in line.entries} == {"not run"}
    assert "No cell of this table has been run." in markdown(nothing)
    elsewhere = filled(PAPER["table_3"], load(tmp_path, "ss-cifar_fs-5way-1shot-eci"))
    assert "No cell of this table has been run at budget quick." in markdown(elsewhere)


def test_seeds_show_their_spread(tmp_path: Path) -> None:
    key = "ss-cifar_fs-5way-1shot-eci"
    cells = load(tmp_path, key, seeds=(0, 1, 2))
    text = markdown(filled(PAPER["table_7"], cells))
    (result,) = [r for r in results(cells) if r.adaptation == "icfil"]
    wanted = f"{result.accuracy:.2f} ± {result.ci95:.2f} (3 seeds: ± {result.seed_std:.2f})"
    assert wanted in text
    assert len(lines_of(text, f"- `{key}`, seed")) == 3


def test_a_difference_of_fewer_seeds_than_the_row_says_of_which(tmp_path: Path) -> None:
    cells = load(tmp_path, "ss-cifar_fs-5way-1shot-random", seeds=(0, 1, 2))
    cells += load(tmp_path, "ss-cifar_fs-5way-1shot-eci", seeds=(0, 2))
    text = markdown(filled(PAPER["table_1"], cells))
    (ours,) = [r for r in results(cells) if (r.method, r.adaptation) == ("random", "one_step")]
    assert ours.difference_seed == "0 / 2"
    assert f"{ours.difference_ci95:.2f} (seed 0 / 2) |" in text
    cells = load(tmp_path / "b", "ss-cifar_fs-5way-1shot-random", "ss-cifar_fs-5way-1shot-eci")
    assert "(seed" not in markdown(filled(PAPER["table_1"], cells))


def test_a_row_run_with_other_parameters_says_so(tmp_path: Path) -> None:
    cells = load(tmp_path, "ss-cifar_fs-5way-1shot-eci", "ss-cifar_fs-5way-1shot-random")
    run = (
        cells[0]
        .provenance[1]
        .model_copy(update={"changed_params": {"meta_train.eci.curriculum_weight": 2}})
    )
    cells[0] = cells[0].model_copy(update={"provenance": [run]})
    changed = "(changed: meta_train.eci.curriculum_weight = 2)"
    for layout in (PAPER["table_1"], selected(cells[:1]), *every_row(cells)):
        text = markdown(filled(layout, cells))
        assert f"(PURER) {changed}" in text or f"**PURER (ECI + ICFIL) {changed}**" in text
    assert "| Random |" in markdown(filled(PAPER["table_1"], cells))


def test_remarks_on_a_run_are_below_its_tables(tmp_path: Path) -> None:
    cells = load(tmp_path, "ss-cifar_fs-5way-5shot-eci")
    assert "Remarks" not in markdown(filled(PAPER["table_1"], cells))
    runs = cells[0].provenance
    plain = runs[-1].model_copy(update={"remarks": ["no BatchNorm: teacher-03"]})
    cells[0] = cells[0].model_copy(update={"provenance": [*runs[:-1], plain]})
    text = markdown(filled(PAPER["table_1"], cells))
    assert "Remarks:" in text
    assert "ECI, SS, CIFAR-FS, 5-way: no BatchNorm: teacher-03" in text


def test_parameters_of_which_rows_differ_are_below_the_table(tmp_path: Path) -> None:
    """Whatever was committed when: 'minus PURER' compares rows of one task."""

    def cell(key: str, decay: float, **more: float) -> Cell:
        (plain,) = load(tmp_path, key)
        params = {"pretrain.lr_decay": decay, **more}
        runs = [r.model_copy(update={"params": params}) for r in plain.provenance]
        return plain.model_copy(update={"provenance": runs})

    purer = cell("ss-cifar_fs-5way-5shot-eci", 0.2)
    random = cell("ss-cifar_fs-5way-5shot-random", 0.2)
    assert "not the same" not in markdown(filled(PAPER["table_1"], [purer, random]))
    (before,) = load(tmp_path, "ss-cifar_fs-5way-1shot-eci")  # nothing is known of it
    random = cell("ss-cifar_fs-5way-5shot-random", 0.5)
    text = markdown(filled(PAPER["table_1"], [purer, random, before]))
    assert "Parameters that are not the same in all rows:" in text
    assert "pretrain.lr_decay = 0.2: ECI\n" in text
    assert "pretrain.lr_decay = 0.5: Random\n" in text
    younger = cell("ss-cifar_fs-5way-5shot-average", 0.2, **{"pretrain.new": 3})
    text = markdown(filled(PAPER["table_1"], [purer, younger, before]))
    assert "pretrain.new = none: ECI\n" in text
    assert "pretrain.new = 3: Average\n" in text
    second = random.model_copy(update={"seed": 1})
    second = second.model_copy(update={"provenance": purer.provenance})
    text = markdown(filled(PAPER["table_1"], [purer, random, second]))
    assert "pretrain.lr_decay = 0.2: ECI; Random of seed 1\n" in text
    assert "pretrain.lr_decay = 0.5: Random of seed 0\n" in text
    other = cell("ss-mini_imagenet-5way-5shot-random", 0.5)  # is compared with no CIFAR-FS row
    assert "not the same" not in markdown(filled(PAPER["table_1"], [purer, other]))


def test_far_from_the_paper_is_listed(tmp_path: Path) -> None:
    cells = load(tmp_path, "ss-cifar_fs-5way-5shot-eci", "ss-cifar_fs-5way-1shot-random")
    sheet = filled(PAPER["table_1"], cells)
    (far,) = [note for note in sheet.notes if note.text.startswith("More than two")]
    (purer,) = [item for item in far.items if item.startswith("PURER")]
    assert purer.startswith("PURER (ECI + ICFIL), CIFAR-FS, 5-way, 5-shot: −")
    (own,) = [r for r in sheet.results if (r.method, r.adaptation) == ("eci", "icfil")]
    for ci95, is_far in ((0.45, True), (0.55, False)):  # one point from the published 51.95 ± 0.79
        result = replace(own, accuracy=52.95, ci95=ci95)
        notes = fill(PAPER["table_1"], [result], cells).notes
        assert any(note.text.startswith("More than two") for note in notes) == is_far


def test_every_row_has_what_the_papers_leave_out(tmp_path: Path) -> None:
    cells = load(
        tmp_path,
        "ss-glyphs-5way-1shot-pool",
        "ss-glyphs-5way-1shot-novel",
        "mh-cifar_fs-5way-5shot-eci",
    )
    glyphs, mixed = every_row(cells)
    assert glyphs.name == "every_row-ss-glyphs-5way"
    labels = [line.label for line in filled(glyphs, cells).lines]
    assert labels[:2] == [
        "Pool: one teacher (mean over them), nearest class mean",
        "Pool: all teachers' features, nearest class mean",
    ]
    assert "novel + linear probe" in labels  # a method that no table knows
    assert labels.index("ANIL on EI's episodes + one step") < labels.index("novel + one step")
    assert labels[-1] == "Prototypical network + nearest class mean (data-based)"
    assert "ss-glyphs-5way-5shot-dro" in cells_of(glyphs)
    assert not any(key.endswith(("dro", "anil", "protonet")) for key in cells_of(mixed))
    assert filled(mixed, cells).headings == ["CIFAR-FS and MiniImageNet, 5-way"]
    text = markdown(filled(glyphs, cells))
    (line,) = lines_of(text, "| glyphs, 5-way | OTA")
    assert line.count("not run") == 2
    (line,) = lines_of(text, "| glyphs, 5-way | novel + one step")
    assert line.endswith(" – | – | – | – | – |")  # nobody can make its other number of shots


def test_a_task_outside_the_grid_promises_nothing(tmp_path: Path) -> None:
    cells = load(tmp_path, "ss-glyphs-7way-2shot-eci")
    (layout,) = every_row(cells)
    assert layout.shots == (2,)
    assert cells_of(layout) == {"ss-glyphs-7way-2shot-eci"}
    assert "not run" not in markdown(filled(layout, cells))


@pytest.mark.parametrize(
    "layout", [*PAPER.values(), *OURS.values()], ids=lambda layout: layout.name
)
def test_headings_tell_blocks_apart(layout: Layout) -> None:
    headings = [layout.heading(block) for block in layout.blocks]
    assert len(set(headings)) == len(headings)


def test_a_heading_names_the_scenario_where_several_stand_together(tmp_path: Path) -> None:
    sheet = filled(OURS["distillation_elsewhere"], load(tmp_path, "sh-cifar_fs-5way-1shot-pool"))
    assert sheet.headings == [
        "SH, CIFAR-FS, 5-way",
        "MH, CIFAR-FS and MiniImageNet, 5-way",
        "SS, MiniImageNet, 5-way",
        "SS, CIFAR-FS, 10-way",
    ]
    assert sheet.lines[0].label == "The pool itself: features"  # of any number of networks


def test_without_data_only_what_the_grid_can_make_is_expected(tmp_path: Path) -> None:
    (layout,) = every_row(load(tmp_path, "ss-none-5way-5shot-ei"))
    methods = {key.rsplit("-", 1)[1] for key in cells_of(layout)}
    assert methods == {"pool", "ei", "eci", "distill"}


def test_what_is_judged_on_pseudo_episodes_says_so(tmp_path: Path) -> None:
    for dataset, said, unsaid in (
        ("none", "fixed pseudo episodes", "meta-"),
        ("glyphs", "Snapshots were chosen on meta-validation", "pseudo episodes"),
    ):
        cells = load(tmp_path, f"ss-{dataset}-5way-5shot-ei")
        (layout,) = every_row(cells)
        first = filled(layout, cells).notes[0].text
        assert said in first
        assert unsaid not in first
        assert ("inverted from procedural images" in first) == (dataset == "none")


def test_the_report_says_what_chose_the_snapshots(tmp_path: Path) -> None:
    real, pseudo = load(tmp_path, "ss-glyphs-5way-5shot-ei", "ss-none-5way-5shot-ei")
    pages = [report([], [], [], cells) for cells in ([real], [pseudo], [real, pseudo])]
    chosen = [
        ("Snapshots are chosen on the meta-val" in p, "pseudo episodes: fresh" in p) for p in pages
    ]
    assert chosen == [(True, False), (False, True), (True, True)]


def test_a_caption_tells_steps_of_distillation_from_outer_iterations(tmp_path: Path) -> None:
    cells = load(tmp_path, "ss-glyphs-5way-1shot-eci", "ss-glyphs-5way-1shot-distill")
    steps = cells[1].model_copy(update={"selection": [{"iteration": 2500}]})
    assert iterations_text([cells[0]]) == "10 outer iterations (the paper: 60,000)"
    assert iterations_text([steps]) == "distilled networks 2,500 steps"
    assert iterations_text([cells[0], steps]) == (
        "10 outer iterations (the paper: 60,000), distilled networks 2,500 steps"
    )


def test_a_cell_without_the_row_says_not_evaluated(tmp_path: Path) -> None:
    cells = load(tmp_path, "ss-cifar_fs-5way-1shot-eci")
    rows = {"one_step": cells[0].rows["one_step"]}
    cells = [cells[0].model_copy(update={"rows": rows})]
    lines = filled(PAPER["table_7"], cells).lines
    assert [line.entries[0].ours for line in lines] == ["not evaluated", *["not run"] * 3]


def test_a_long_table_names_kinds_of_rows_in_its_notes(tmp_path: Path) -> None:
    methods = ("pool", "random", "average", "ei", "eci", "real_maml")
    cells = load(tmp_path, *(f"ss-cifar_fs-5way-1shot-{name}" for name in methods))
    (layout,) = every_row(cells)
    notes = {note.text: note.items for note in filled(layout, cells).notes}
    assert "none: Pool; Random; Average; EI; ECI" in notes["Data that training used:"]
    protocol = notes["Protocol (inner steps, learning rate, BatchNorm):"]
    assert "1 step, lr 0.01, transductive: one step" in protocol


def test_a_row_of_several_values_says_where_it_has_which(tmp_path: Path) -> None:
    cells = load(tmp_path, *(f"ss-cifar_fs-5way-{n}shot-random" for n in (1, 5)))
    other = cells[1].rows["one_step"].model_copy(update={"protocol": "2 steps"})
    cells[1] = cells[1].model_copy(update={"rows": {**cells[1].rows, "one_step": other}})
    (layout,) = every_row(cells)
    items = filled(layout, cells).notes[1].items
    assert "1 step, lr 0.01, transductive: Random + one step (CIFAR-FS, 5-way, 1-shot)" in items
    assert "2 steps: Random + one step (CIFAR-FS, 5-way, 5-shot)" in items
    # labels of the paper's tables do not spell what a kind is called, so rows are named
    (note,) = [n for n in filled(PAPER["table_1"], cells).notes if n.text.startswith("Protocol")]
    assert note.items[1] == "2 steps: Random (CIFAR-FS, 5-way, 5-shot)"
