"""Pickles from outside, through a door that admits arrays and plain containers only.

CIFAR-100's batches and miniImageNet's caches exist only in pickled form. A pickle can name any
importable function; this unpickler knows the handful that numpy arrays need and refuses the rest
before anything is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from stages.interface.errors import BadInput

_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_arrays(path: Path) -> Any:
    """The content of a pickle of arrays, bytes, strings, numbers, lists, tuples and dicts.

    Strings of Python 2 pickles come as latin-1 text.

    Raises BadInput if it holds anything else, or is cut short.
    """
    try:
        with path.open("rb") as stream:
            return _ArraysOnly(stream, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path}: refused: {error}; only arrays, strings, lists and dicts are admitted"
        ) from None
    except Exception as error:  # whatever a broken one makes of its reader
        raise BadInput(f"{path}: damaged pickle: {error or 'it ends too early'}") from None
