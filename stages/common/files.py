"""Files that are whole or not there: safetensors with one metadata key, JSON, Parquet.

safetensors with two or more metadata keys writes different bytes each time (DESIGN 3), so all
metadata is one key holding sorted JSON. Everything is written beside its place and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.interface.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

METADATA_KEY = "purer"
# What the stages put into folders. A folder with anything else in it is somebody's own.
KINDS = {
    "pool": ("manifest.json", "teacher-*.safetensors"),
    "learner": ("snapshots", "history.parquet", "synthetic.safetensors", "synthetic.png"),
    "evaluation": ("episodes.parquet", "provenance.json", "synthetic.png"),
    "report": (
        *("table*.md", "table*.parquet", "every_row-*", "distillation*", "*-*way*.png"),
        *("accuracy.*", "history.csv", "selection.csv", "training.png", "synthetic.png"),
    ),
}
FILE = "file"  # what is written, if not a folder of one of these kinds
NOBODYS = (".DS_Store", "Thumbs.db", ".*.[0-9]*.tmp")  # of file managers, and of a killed process


@contextmanager
def written_whole(path: Path, kind: str = FILE) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    The block creates a file there, or a folder of a `kind` of KINDS. A file replaces a file, a
    folder one that is empty or of its kind.

    Raises BadInput before the block runs if something else is there, and OSError if nothing can be
    written there.
    """
    check_place(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)  # of a killed process that had our number
    temporary.touch()
    temporary.unlink()
    try:
        yield temporary
        if temporary.is_file():
            temporary.chmod(0o644)  # safetensors writes files that only their owner can read
        else:
            assert kind in kinds_of(temporary), (kind, [*temporary.iterdir()])  # else never again
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        remove(temporary)


def remove_half_written(path: Path) -> None:
    """Remove what processes left that were killed while they wrote `path`; none may be at it."""
    for temporary in path.parent.glob(f".{escape(path.name)}.[0-9]*.tmp"):
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_place(path: Path, kind: str = FILE) -> None:
    """Raise BadInput unless a file, or a folder of that kind of KINDS, may be written there."""
    if path.name in ("", ".."):
        raise BadInput(f"{path}: no place to write to: allowed: the name of a file or folder")
    if kind == FILE and path.is_dir():
        raise BadInput(f"{path}: is a folder: allowed: a file, or a new name")
    if kind != FILE and path.is_file():
        raise BadInput(f"{path}: is a file: allowed: a folder, or a new name")
    if kind != FILE and path.is_symlink():
        raise BadInput(f"{path}: is a link: allowed: a folder, or a new name")
    if path.is_dir() and kind not in kinds_of(path):
        raise BadInput(
            f"{path}: a folder with files of no {kind}, so it is not replaced; allowed:"
            f" a new name, an empty folder, or one with files of a {kind} alone"
        )


def kinds_of(folder: Path) -> set[str]:
    """The kinds that all there is in the folder may be of; every kind of an empty one."""
    names = [entry.name for entry in folder.iterdir()]
    return {
        kind
        for kind, patterns in KINDS.items()
        if all(any(fnmatch(name, pattern) for pattern in (*NOBODYS, *patterns)) for name in names)
    }


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """One safetensors file; equal contents give equal bytes.

    Raises OSError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    with written_whole(path) as temporary:
        try:
            save_file(contiguous, temporary, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
        except SafetensorError as error:  # a full disk is no OSError to it
            raise OSError(f"{path}: {error}") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of `save_tensors`.

    Raises BadInput for a file that is missing, truncated, or not one of ours.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, metadata_of(
            file, path
        )


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """The open safetensors file, for reading parts of it. Raises BadInput as `load_tensors`."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise BadInput(f"{path}: is a folder: allowed: a safetensors file")
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise BadInput(f"{path}: not a whole safetensors file: {error}") from None
    with file:
        yield file


def metadata_of(file: Any, path: Path) -> dict[str, Any]:
    metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise BadInput(f"{path}: not written by purer (no metadata key {METADATA_KEY!r})")
    try:
        content = json.loads(metadata[METADATA_KEY])
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: its metadata is not a JSON object: not written by purer")
    return content


def save_json(path: Path, content: Any) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def load_json(path: Path) -> Any:
    """Raises BadInput for a file that is missing, cannot be read, or is not JSON."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: not valid JSON: {error}") from None


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Parquet, without an index."""
    with written_whole(path) as temporary:
        table.to_parquet(temporary, index=False)


def load_table(path: Path) -> pd.DataFrame:
    """Raises BadInput for a file that is missing or not Parquet."""
    import pandas as pd
    from pyarrow import ArrowException

    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a whole Parquet file: {error}") from None
