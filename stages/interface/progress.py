"""One line of progress: rate, time left, and what the stage has to say.

On a terminal a live bar; elsewhere (a log file, CI) one plain line every ten seconds.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """`with Reporter("meta_train", 3000) as report: report(i, loss=..., accuracy=...)`."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._first = title, total, done
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._start = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, rate="", said="")

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, **state: float | str) -> None:
        """Say that `done` of the total are done, with the current state's named values."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
        said = "  ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in state.items()
        )
        if self._live:
            self._bar.update(self._task, completed=done, rate=f"{rate:.2f}/s", said=said)
        elif now - self._last_line > SECONDS_BETWEEN_LINES or done == self._total:
            self._last_line = now
            left = (self._total - done) / rate if rate else 0.0
            self._console.print(
                f"{self._title}: {done}/{self._total}  {rate:.2f}/s  {left:.0f} s left  {said}",
                soft_wrap=True,
            )
