from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

STAGES = ("split", "pretrain", "meta_train", "data_based", "meta_test", "aggregate")
OTHERS = ("stages.pool", "stages.check", "stages.cli")


@pytest.mark.parametrize("module", [*(f"stages.{s}" for s in STAGES), *OTHERS])
def test_help_does_not_import_torch(module: str) -> None:
    """A stage's help answers at once (DESIGN 2)."""
    target = module if module.endswith(("check", "cli")) else f"{module}.command"
    code = (
        "import sys, importlib, typer.testing as t\n"
        f"app = importlib.import_module({target!r}).app\n"
        "result = t.CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'torch' not in sys.modules\n"
        "print(result.output)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Usage" in result.stdout


def test_purer_lists_the_stages_in_pipeline_order() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from stages.cli import app; app(['--help'])"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    places = [result.stdout.index(f" {stage} ") for stage in ("check", *STAGES)]
    assert places == sorted(places)


def test_using_a_learner_waits_for_nothing_that_it_does_not_need() -> None:
    """`purer adapt` and `embed`, to the point where they have imported everything of their own.

    Typer imports pydantic itself; what takes time is to build the sections of params.yaml with it.
    """
    code = (
        "import sys\n"
        "from stages.cli import app\n"
        "for command in (['adapt', 's', '--predict', 'n'], ['embed', 'n', '--out', 'x.csv']):\n"
        "    code = app([*command, '--learner', 'nowhere'], standalone_mode=False)\n"
        "    assert code == 2, code\n"
        "assert 'stages.use.few_shot' in sys.modules\n"
        "slow = {'pandas', 'torchvision', 'ruamel.yaml', 'pyarrow', 'scipy', 'timm'}\n"
        "slow |= {'stages.interface.params', 'stages.common.params'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_wrong_command_is_refused_with_the_nearest() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from stages.cli import app; app(['adpt'])"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "adapt" in result.stderr
