"""Interrupted anywhere, meta-training ends in the bytes of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages.common.learner import load_learner
from stages.common.pool import load_manifest
from stages.meta_train.picture import MARGIN
from tests.conftest import ROOT

N_ITERATIONS = 60


def _start(
    folder: Path, pool: Path, pause: float, compiled: str = "never"
) -> subprocess.Popen[str]:
    """meta_train in a process of its own, checkpointing at every iteration."""
    yaml = YAML()
    document = yaml.load(ROOT / "params.yaml")
    document["n_query"] = 2
    document["device"] = "cpu"
    document["meta_train"]["episode_inversion"].update(patience=1, compile=compiled)
    budget = document["budgets"]["quick"]["meta_train"]
    budget.update(n_iterations=N_ITERATIONS, curriculum_start=5, n_snapshots=4)
    folder.mkdir(exist_ok=True)
    yaml.dump(document, folder / "params.yaml")
    arguments = f"--pool {pool} --scenario ss --n-way 3 --n-shot 2 --method eci --budget quick"
    arguments += f" --out {folder / 'out'}"
    code = (
        "import time, stages.common.loop as loop\n"
        "from stages.meta_train.episode_inversion import EpisodeInversionRun as Run\n"
        "loop.SECONDS_BETWEEN_CHECKPOINTS = 0\n"
        "step = Run.step\n"
        "def slow(self, t):\n"
        f"    time.sleep({pause})\n"
        "    return step(self, t)\n"
        "Run.step = slow\n"
        "from stages.meta_train.command import app\n"
        f"app({arguments.split()!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _outputs(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def _written(folder: Path) -> list[int]:
    """When the checkpoint was written last, in nanoseconds; nothing if there is none."""
    return [p.stat().st_mtime_ns for p in folder.glob(".work/*/checkpoint.safetensors")]


def _wait_for_new_checkpoint(
    folder: Path, process: subprocess.Popen[str], before: list[int]
) -> None:
    deadline = time.monotonic() + 300
    while _written(folder) in ([], before):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pool and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    from stages.common.pool import save_manifest, save_teacher
    from tests.conftest import random_state, teacher_info

    pool = folder / "pool"
    infos = [teacher_info(0), teacher_info(1, n_classes=2)]
    for info in infos:
        save_teacher(pool / info.file, info, random_state(info))
    save_manifest(pool, infos)
    process = _start(folder, pool, pause=0)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "60 iterations of eci" in stdout
    return folder, pool


def test_the_outputs_of_a_run(whole: tuple[Path, Path]) -> None:
    folder, _ = whole
    assert sorted(_outputs(folder)) == [
        "history.parquet",
        *(f"snapshots/iteration-{t:06d}.safetensors" for t in (15, 30, 45, 60)),
        "synthetic.png",
        "synthetic.safetensors",
    ]
    history = pd.read_parquet(folder / "out" / "history.parquet")
    assert history["iteration"].tolist() == list(range(1, N_ITERATIONS + 1))
    assert history["feedback"].sum() > 0
    assert set(history) >= {
        "inversion_cross_entropy",
        "inversion_bn_statistics",
        "inversion_tv",
        "inversion_l2",
        "outer_loss",
        "outer_accuracy",
        "adversarial_loss",
    }
    _, _, info = load_learner(folder / "out/snapshots/iteration-000030.safetensors")
    assert (info.iteration, info.method, info.n_way) == (30, "eci", 3)
    assert info.class_names == tuple(own.class_names for own in load_manifest(whole[1]))
    assert Image.open(folder / "out" / "synthetic.png").size == (4 * 64, MARGIN + 5 * 64)
    assert [p.name for p in (folder / ".work").iterdir()] == ["locks"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_and_resumed_gives_the_same_bytes(
    whole: tuple[Path, Path], number: signal.Signals, tmp_path: Path
) -> None:
    folder, pool = whole
    for _ in range(2):  # twice, at different places
        before = _written(tmp_path)
        process = _start(tmp_path, pool, pause=0.05)
        _wait_for_new_checkpoint(tmp_path, process, before)
        time.sleep(0.3)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        if number != signal.SIGKILL:
            assert "repeat the command to go on" in stderr
        assert not (tmp_path / "out").exists()
    process = _start(tmp_path, pool, pause=0)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert _outputs(tmp_path) == _outputs(folder)


def test_compiled_runs_resume_to_the_same_bytes_too(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    """As long runs are: and what a kill left half-written does not reach the outputs."""
    _, pool = whole
    process = _start(tmp_path / "whole", pool, pause=0, compiled="always")
    assert process.wait(timeout=300) == 0, process.communicate()
    process = _start(tmp_path / "cut", pool, pause=0.05, compiled="always")
    _wait_for_new_checkpoint(tmp_path / "cut", process, [])
    time.sleep(0.5)
    process.kill()
    process.communicate()
    (work,) = (tmp_path / "cut").glob(".work/meta_train-*")
    (work / "snapshots").mkdir(exist_ok=True)
    (work / "snapshots" / ".iteration-000015.safetensors.1.tmp").write_text("half")
    (tmp_path / "cut/.out.1.tmp").mkdir()
    process = _start(tmp_path / "cut", pool, pause=0, compiled="always")
    assert process.wait(timeout=300) == 0, process.communicate()
    assert _outputs(tmp_path / "cut") == _outputs(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".out.*"))
