from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import typer

from stages.interface.errors import BadInput, refuses_bad_input
from stages.interface.interrupt import deferred_interrupts
from stages.interface.provenance import (
    Stopwatch,
    changed_params,
    commit,
    processor,
    save_provenance,
)
from stages.interface.work import fingerprint, work_folder


def test_the_first_ctrl_c_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupts() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def _try(root: str, a: int, out: str, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    os.environ["DVC_ROOT"] = root
    try:
        with work_folder("split", {"a": a}, [], Path(out), "pool"):
            answers.put("got it")
    except BadInput as error:
        answers.put(str(error))


@pytest.mark.parametrize(
    ("a", "out", "refused"), [(1, "other", True), (2, "out", True), (2, "other", False)]
)
def test_one_process_a_job_and_an_output(
    a: int, out: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    answers: multiprocessing.Queue[str] = multiprocessing.get_context("spawn").Queue()
    with work_folder("split", {"a": 1}, [], Path("out"), "pool") as folder:
        other = multiprocessing.get_context("spawn").Process(
            target=_try, args=(str(tmp_path), a, out, answers)
        )
        other.start()
        other.join()
        assert ("another process works on it" in answers.get(timeout=10)) == refused
    assert not folder.exists()


def test_somebody_elses_place_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder, file = tmp_path / "mine", tmp_path / "file"
    folder.mkdir()
    for path in (file, folder / "thesis.tex"):
        path.write_text("dear")
    for place in (file, folder):
        with (
            pytest.raises(BadInput, match="allowed: a"),
            work_folder("split", {}, [], place, "pool"),
        ):
            pytest.fail("the work began")
    assert (folder / "thesis.tex").exists()


def test_unfinished_work_stays_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with (
        pytest.raises(RuntimeError),
        work_folder("split", {"a": 1}, [], Path("out"), "pool") as folder,
    ):
        (folder / "half").touch()
        raise RuntimeError
    with work_folder("split", {"a": 1}, [], Path("out"), "pool") as again:
        assert (again / "half").exists()
    with work_folder("split", {"a": 2}, [], Path("out"), "pool") as other:
        assert other != again


def test_the_fingerprint_knows_inputs_and_files(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("1")
    names = {fingerprint("split", 1, [file]), fingerprint("split", 2, [file])}
    file.write_text("2")
    names |= {fingerprint("split", 1, [file]), fingerprint("pretrain", 1, [file])}
    assert len(names) == 4


def test_bad_input_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    @refuses_bad_input
    def command() -> None:
        raise BadInput("x = 3: allowed: [1, 2]")

    with pytest.raises(typer.Exit) as stop:
        command()
    assert stop.value.exit_code == 2
    assert "error: x = 3: allowed: [1, 2]" in capsys.readouterr().err


def test_the_stopwatch_adds_up_over_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    first = Stopwatch(tmp_path)
    now += 60
    first.save()
    second = Stopwatch(tmp_path)  # after a kill
    now += 30
    assert second.seconds == 90
    assert "cores" in processor()
    assert re.fullmatch(r"[0-9a-f]{10}(\+changes)?", commit())


def test_what_a_run_is_made_from_is_what_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever edits or commits for the next run while this one works changes nothing in it."""
    monkeypatch.setattr("stages.interface.provenance.commit", lambda: "before")
    watch = Stopwatch(tmp_path)
    monkeypatch.setattr("stages.interface.provenance.commit", lambda: "after")
    save_provenance(tmp_path / "provenance.json", watch.seconds, "cpu", watch.origin)
    assert json.loads((tmp_path / "provenance.json").read_text())["commit"] == "before"


def test_what_differs_from_the_committed_parameters_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "params.yaml"
    file.write_text("seed: 0\neci: {weight: 10.0, compile: auto}\nlist: [1]\n")
    assert changed_params() == {}  # no repository
    for command in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "-qm", "x"),
    ):
        subprocess.run(["git", *command], check=True)
    assert changed_params() == {}
    file.write_text("seed: 1\neci: {weight: 2.0, compile: auto}\nlist: [1]\nnew: a # b\n")
    assert changed_params() == {"eci.weight": 2.0, "new": "a"}
