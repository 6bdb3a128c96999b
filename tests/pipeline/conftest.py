"""The whole project in a new folder, with an experiment small enough to run in seconds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
POOL = "ss-glyphs-5way"  # of the small experiment


class Project:
    """A clone with small parameters, and commands run in it as a user would."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        """Standard output and error of a command that must exit with `code`."""
        result = subprocess.run(
            command,
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
            timeout=600,
        )
        assert result.returncode == code, result.stdout
        return result.stdout

    def set(self, **changes: object) -> None:
        """Change params.yaml at dotted keys written with double underscores."""
        yaml = YAML()
        document = yaml.load(self.root / "params.yaml")
        for name, value in changes.items():
            *parents, last = name.split("__")
            section = document
            for part in parents:
                section = section[part]
            section[last] = value
        yaml.dump(document, self.root / "params.yaml")

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def restore(self) -> None:
        """Everything in git as it was committed; DVC's cache stays."""
        # DVC's experiments leave an index whose time stamps hide a change of equal length.
        (self.root / "params.yaml").unlink()
        self.run("git", "reset", "-q", "--hard")
        self.run("git", "clean", "-qfd")


def executed(output: str) -> list[str]:
    """Names of the stages that DVC ran (or, dry, would run)."""
    return [name.split(":")[-1] for name in re.findall(r"Running stage '([^']+)'", output)]


def copy_project(root: Path) -> Project:
    """What git would give a new user, the uncommitted changes of this checkout included."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for file in files:
        if file and (ROOT / file).is_file() and not file.endswith("dvc.lock"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, root / file)
    project = Project(root)
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "config", "user.email", "test@example.invalid")
    project.run("git", "config", "user.name", "test")
    return project


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small experiment, run once from end to end by `dvc repro` and committed."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    project.set(
        device="cpu",
        n_query=4,
        datasets__glyphs__images_per_class=20,
        datasets__textures__images_per_class=20,
        pretrain__pool_size=3,
        meta_test__n_episodes=6,
        meta_test__icfil__head_steps=5,
        meta_test__tuned_steps__n_episodes=2,
        meta_test__curve_episodes=4,
        budgets__quick__pretrain={"epochs": 2, "resnet_epochs": 1, "batch_size": 16},
        budgets__quick__meta_train={"n_iterations": 8, "curriculum_start": 1, "n_snapshots": 2},
        meta_train__distillation__batch_size=16,
        meta_train__distillation__n_components=8,
        pseudo__images_per_class=10,
        pseudo__inversion_steps=2,
        budgets__quick__distillation={
            "n_iterations": 6,
            "n_snapshots": 1,
            "procedural_images": 40,
            "inverted_images": 10,
            "inversion_steps": 2,
        },
        budgets__quick__data_based={"n_iterations": 4, "n_snapshots": 2},
        budgets__quick__meta_test__n_val_episodes=3,
    )
    project.commit("small parameters")
    project.run("dvc", "repro")
    project.commit("results")
    return project


@pytest.fixture
def project(experiment: Project) -> Iterator[Project]:
    """The small experiment as it was committed, whatever another test did with it."""
    yield experiment
    experiment.restore()
