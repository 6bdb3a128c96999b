"""Bringing one's own pool: `purer pool import`, `show`, `check`; from Python, `add_teacher`."""

from stages.pool.importing import add_teacher

__all__ = ["add_teacher"]
