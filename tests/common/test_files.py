from __future__ import annotations

import json
import os
import resource
import struct
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.aggregate.layouts import OURS, PAPER
from stages.common.files import (
    KINDS,
    check_place,
    kinds_of,
    load_json,
    load_tensors,
    remove_half_written,
    save_json,
    save_tensors,
    written_whole,
)
from stages.common.seeds import derive
from stages.interface.errors import BadInput
from tests.conftest import ROOT


def test_equal_contents_give_equal_bytes_and_one_metadata_key(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3), "a": torch.ones(2, 2)}
    for i in range(20):
        save_tensors(tmp_path / f"{i}", tensors, {"x": 1, "w": [1, 2], "a": {"z": 1, "y": 2}})
    contents = {(tmp_path / f"{i}").read_bytes() for i in range(20)}
    assert len(contents) == 1
    content = contents.pop()
    (length,) = struct.unpack("<Q", content[:8])
    assert list(json.loads(content[8 : 8 + length])["__metadata__"]) == ["purer"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as if no more could be written
    try:
        with pytest.raises(OSError, match=r"whole\.safetensors: .*File too large"):
            save_tensors(tmp_path / "whole.safetensors", {"a": torch.ones(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def write_folder(path: Path, name: str, kind: str = "pool") -> None:
    with written_whole(path, kind) as temporary:
        temporary.mkdir()
        (temporary / name).touch()


def test_a_folder_replaces_one_of_its_kind_or_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    for name in ("manifest.json", "teacher-00.safetensors"):
        write_folder(path, name)
        (path / ".DS_Store").touch()
    assert sorted(p.name for p in path.iterdir()) == [".DS_Store", "teacher-00.safetensors"]
    with pytest.raises(BadInput, match="files of no learner"):
        write_folder(path, "snapshots", "learner")
    assert (path / "teacher-00.safetensors").exists()


def test_what_a_killed_process_left_half_written_is_no_hindrance(tmp_path: Path) -> None:
    """In a container the next process may have its number."""
    mine, others = tmp_path / f".a[b].{os.getpid()}.tmp", tmp_path / ".a[b].1.tmp"
    for half in (mine, others):
        half.mkdir()
        (half / "manifest.json").write_text("ha")
    (tmp_path / ".ab.1.tmp").touch()  # of another place
    write_folder(tmp_path / "a[b]", "manifest.json")
    assert not (tmp_path / "a[b]/manifest.json").read_text()
    assert not mine.exists()
    (tmp_path / ".a[b].2.tmp").write_text("half")
    remove_half_written(tmp_path / "a[b]")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ab.1.tmp", "a[b]"]


def test_a_folder_with_anything_else_in_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    write_folder(path, "manifest.json")
    (path / "thesis.tex").write_text("dear")
    with pytest.raises(BadInput, match="files of no pool"), written_whole(path, "pool"):
        pytest.fail("refused before the work")
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "thesis.tex"]


def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    folder, file = tmp_path / "pool", tmp_path / "file"
    write_folder(folder, "manifest.json")
    file.write_text("before")
    with pytest.raises(BadInput, match="pool: is a folder: allowed: a file"):
        save_json(folder, {})
    with pytest.raises(BadInput, match="file: is a file: allowed: a folder"):
        write_folder(file, "manifest.json")
    assert (folder / "manifest.json").is_file()
    assert file.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [file, folder]  # and no temporary ones


def test_a_folder_that_is_a_link_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="link: is a link: allowed: a folder, or a new name"):
        check_place(tmp_path / "link", "pool")


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_a_place_without_a_name_is_refused(place: str) -> None:
    with pytest.raises(BadInput, match="no place to write to"):
        save_json(Path(place), {})


def test_what_the_stages_write_may_be_written_again() -> None:
    """Every folder of reports/ that is in git, and every table there can be."""
    places = {path.parent for path in (ROOT / "reports").glob("*/*/*") if path.is_file()}
    folders = [p for p in places if p.name in ("tables", "figures")]
    assert folders
    for folder in (*folders, ROOT / "reports" / "selected"):
        assert "report" in kinds_of(folder), folder
    for name in (*PAPER, *OURS):
        assert any(fnmatch(f"{name}.md", ours) for ours in KINDS["report"]), name


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(BadInput, match="no such file"):
        load_tensors(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(BadInput, match="not written by purer"):
        load_tensors(path)
    for metadata in ("{", "[1]", '"abc"'):
        save_file({"a": torch.ones(1)}, path, {"purer": metadata})
        with pytest.raises(BadInput, match="its metadata is not a JSON object"):
            load_tensors(path)
    path.write_bytes(b"garbage")
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        load_tensors(path)
    path.write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        load_json(path)


def test_seeds_depend_on_every_part_of_the_purpose() -> None:
    assert derive(0, "pretrain", "batches", 3) == derive(0, "pretrain", "batches", 3)
    purposes = [(0, "a", 1), (0, "a", 11), (0, "a1", 1), (1, "a", 1), (0, "a", 1, 1), (0, "b", 1)]
    assert len({derive(*purpose) for purpose in purposes}) == len(purposes)
    # Pinned: a change here changes every number of the project.
    assert derive(0, "meta_train", "episode", 0, 0) == 1557698021264409345
