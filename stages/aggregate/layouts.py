"""Which rows stand in which table: the paper's tables 1 to 8, and every row that there is.

A layout is blocks of lines, a block a task as in the paper, with a group of columns a number of
shots. Tables name cells of the grid only (tests/pipeline), since others cannot be made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from stages.aggregate.cells import Cell, by_task, cell_key, in_grid
from stages.aggregate.names import (
    ADAPTATIONS,
    PURER,
    SCENARIOS,
    data_name,
    method_name,
    row_name,
    row_order,
)


@dataclass(frozen=True)
class Line:
    method: str
    adaptation: str
    label: str


@dataclass(frozen=True)
class Block:
    """The lines of one task."""

    scenario: str
    datasets: tuple[str, ...]  # the first one is the task's name
    n_way: int
    lines: tuple[Line, ...]

    @property
    def heading(self) -> str:
        return data_name(self.datasets, self.n_way)

    def key(self, n_shot: int, method: str) -> str:
        return cell_key(self.scenario, self.datasets[0], self.n_way, n_shot, method)


@dataclass(frozen=True)
class Layout:
    name: str
    title: str
    blocks: tuple[Block, ...]
    shots: tuple[int, ...] = (1, 5)
    remark: str = ""  # what to know of its rows besides

    def heading(self, block: Block) -> str:
        """Of one of `blocks`: its scenario too where the title cannot say it."""
        is_mixed = len({other.scenario for other in self.blocks}) > 1
        return f"{block.scenario.upper()}, {block.heading}" if is_mixed else block.heading


def cells_of(layout: Layout) -> set[str]:
    """Keys of the cells that the layout shows."""
    return {
        block.key(shot, line.method)
        for block in layout.blocks
        for line in block.lines
        for shot in layout.shots
    }


def _line(method: str, adaptation: str = "one_step", label: str | None = None) -> Line:
    return Line(method, adaptation, label or method_name(method))


_OURS = Line(*PURER, "PURER (ECI + ICFIL)")
# What the paper leaves out and shows what its numbers mean (METHODS 4), below its own rows.
_POOL_ITSELF = (_line("pool", "pool_features", "The pool's features, nearest class mean (ours)"),)
_BEYOND = (_line("random", "tuned_steps", "Random, tuned steps (ours)"), *_POOL_ITSELF)
_BASELINES = (*(_line(name) for name in ("random", "average", "ota", "dro")), _OURS, *_BEYOND)
_RANDOM = (_line("random"), _OURS, *_BEYOND)
_COMPONENTS = (
    _line("ei"),
    _line("eci", label="EI + curriculum (ECI)"),
    _line("ei", "icfil", "EI + ICFIL"),
    Line(*PURER, "ECI + ICFIL (PURER)"),
    *_POOL_ITSELF,
)
_CEILINGS = (
    _line("maml_dagger"),
    _line("real_maml", label="MAML on all images"),
    _line("real_protonet", "nearest_class_mean", "Prototypical network on all images"),
    _OURS,
    *_POOL_ITSELF,
)
_LAMBDAS = (
    Line(*PURER, "λ = 10 (PURER)"),
    _line("eci_lambda2", "icfil", "λ = 2"),
    _line("eci_lambda05", "icfil", "λ = 0.5"),
    *_POOL_ITSELF,
)
_POOLS = (
    _line("eci_pool2", "icfil", "2 teachers"),
    _line("eci_pool6", "icfil", "6 teachers"),
    Line(*PURER, "13 teachers (PURER)"),
    *_POOL_ITSELF,
)


def _both(scenario: str, n_way: int, lines: tuple[Line, ...]) -> tuple[Block, ...]:
    return tuple(Block(scenario, (name,), n_way, lines) for name in ("cifar_fs", "mini_imagenet"))


def _cifar(lines: tuple[Line, ...], n_way: int = 5) -> Block:
    return Block("ss", ("cifar_fs",), n_way, lines)


PAPER = {
    layout.name: layout
    for layout in (
        Layout(
            "table_1", "Table 1. SS: one data set, one architecture", _both("ss", 5, _BASELINES)
        ),
        Layout("table_2", "Table 2. SH: different architectures", _both("sh", 5, _RANDOM)),
        Layout(
            "table_3",
            "Table 3. MH: different data sets and architectures",
            (Block("mh", ("cifar_fs", "mini_imagenet"), 5, _RANDOM),),
        ),
        Layout(
            "table_4",
            "Table 4. The parts of PURER, SS (the paper: MiniImageNet only)",
            _both("ss", 5, _COMPONENTS),
        ),
        Layout("table_5", "Table 5. SS, 10-way", _both("ss", 10, _BASELINES)),
        Layout(
            "table_6",
            "Table 6. Against meta-learning with data, SS (the paper: MAML† alone)",
            (_cifar(_CEILINGS), _cifar(_CEILINGS, n_way=10)),
            remark="Others published, on all images of CIFAR-FS and to the end of training, 5-way:"
            " MAML (Conv4-32) about 58.9 / 71.5, prototypical networks (Conv4-64) about 55.5 / 72.0"
            " (METHODS 5). A row of all images is a ceiling at such a length only.",
        ),
        Layout("table_7", "Table 7. The curriculum's weight λ, SS", (_cifar(_LAMBDAS),)),
        Layout("table_8", "Table 8. The number of teachers, SS", (_cifar(_POOLS),)),
    )
}

_DISTILLED = tuple(
    _line(name, "nearest_class_mean")
    for name in (
        "distill_64",
        "distill",
        "distill_procedural",
        "distill_inverted",
        "distill_noise",
        "distill_no_prior",
        "distill_no_outputs",
        "distill_no_features",
        "distill_no_labels",
        "distill_no_metric",
    )
)
_POOL = (
    _line("pool", "pool_features", "The pool itself: features"),
    _line("pool", "pool_readout", "The pool itself: features and log-ratios, mirrored"),
)
_FROM_DISTILLED = tuple(
    _line("eci_distilled", row, f"{method_name('eci_distilled')} + {ADAPTATIONS[row]}")
    for row in ("one_step", "icfil", "nearest_class_mean")
)
# Beyond the papers (METHODS 5).
_CARRIED = (*_POOL, *_DISTILLED[:2], _OURS)
OURS = {
    layout.name: layout
    for layout in (
        Layout(
            "distillation",
            "One network that carries the pool, and what becomes of it without an ingredient, SS",
            (_cifar((*_POOL, *_DISTILLED, *_FROM_DISTILLED, _OURS)),),
        ),
        Layout(
            "distillation_elsewhere",
            "One network that carries the pool: other scenarios, data sets and tasks",
            (
                Block("sh", ("cifar_fs",), 5, _CARRIED),
                Block("mh", ("cifar_fs", "mini_imagenet"), 5, _CARRIED),
                Block("ss", ("mini_imagenet",), 5, _CARRIED),
                _cifar(_CARRIED, n_way=10),
            ),
        ),
    )
}

# What a task has if the grid has a cell of it, so that it says "not run" until then: of each method
# the first rows. Ablations and sensitivities have tables of their own.
_FIRST_ROWS = {
    "pool": ("pool_features",),
    "random": ("one_step",),
    "average": ("one_step",),
    "ota": ("one_step",),
    "dro": ("one_step",),
    "ei": ("one_step", "icfil"),
    "eci": ("one_step", "icfil"),
    "protonet": ("nearest_class_mean",),
    "anil": ("one_step",),
    "distill": ("nearest_class_mean",),
    "maml_dagger": ("one_step",),
    "real_maml": ("one_step",),
    "real_protonet": ("nearest_class_mean",),
}


def every_row(cells: Iterable[Cell]) -> list[Layout]:
    """One layout a task of `cells`: all methods and rows, also those that the papers leave out."""
    return [
        Layout(
            f"every_row-{scenario}-{dataset}-{n_way}way",
            f"Every row. {scenario.upper()}: {SCENARIOS.get(scenario, scenario)},"
            f" {data_name(found[0].datasets, n_way)}",
            (_block(found, in_grid(scenario, dataset, n_way).keys() & _FIRST_ROWS.keys()),),
            _shots(found),
        )
        for (scenario, dataset, n_way), found in by_task(cells).items()
    ]


def _shots(cells: Sequence[Cell]) -> tuple[int, ...]:
    """Those that a task has, run or in the grid."""
    promised = in_grid(*cells[0].task).values()
    return tuple(sorted({cell.n_shot for cell in cells}.union(*promised)))


def selected(cells: Sequence[Cell]) -> Layout:
    """The rows of the selected cell, between those of its pool."""
    first = cells[0]
    block = _block(cells, set())
    title = f"The selected cell. {first.scenario.upper()}, {block.heading}"
    return Layout("selected", title, (block,), (first.n_shot,))


def _block(cells: Sequence[Cell], expected: Set[str]) -> Block:
    """All rows of `cells`, and the first ones of the methods that are `expected` besides."""
    rows = {(cell.method, row) for cell in cells for row in cell.rows}
    run = {cell.method for cell in cells}
    rows |= {(name, row) for name in expected - run for row in _FIRST_ROWS[name]}
    lines = tuple(Line(*row, row_name(*row)) for row in sorted(rows, key=lambda r: row_order(*r)))
    scenario, _, n_way = cells[0].task
    return Block(scenario, tuple(cells[0].datasets), n_way, lines)
