"""Which device a stage runs on, and how its memory is kept."""

from __future__ import annotations

import contextlib
import ctypes

from stages.interface.errors import BadInput


def resolve(name: str) -> str:
    """'auto' becomes 'cuda' where CUDA is, else 'cpu'; a device that is not there is refused."""
    import torch

    keep_freed_memory()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        index, count = name.partition(":")[2] or "0", torch.cuda.device_count()
        if not index.isdigit() or int(index) >= count:
            allowed = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(count))])
            raise BadInput(
                f"device = {name!r}: this machine has {count} CUDA devices; allowed: {allowed}"
            )
    return name


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free instead of giving it back to the system each time.

    By default every activation of some megabytes is a fresh mapping whose pages fault one by one.
    Measured on two cores: an iteration of ECI takes 0.49 s with the default, 0.35 s with this.
    Elsewhere than on glibc nothing happens.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of <malloc.h>
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
