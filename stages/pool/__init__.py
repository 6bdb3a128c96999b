"""Bringing one's own pool: `purer pool import`, `show`, `check`; `importing.add_teacher`."""
