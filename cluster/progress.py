"""What a run tells its reader: numbered steps, progress bars on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar(Protocol):
    """A running progress display."""

    def advance(self, steps: float = 1.0) -> None:
        """Move on by `steps`."""
        ...

    def describe(self, text: str) -> None:
        """Show `text` beside the bar."""
        ...


class _RichBar:
    def __init__(self, progress: Progress, title: str, total: float) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=total)

    def advance(self, steps: float = 1.0) -> None:
        self._progress.advance(self._task, steps)

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=f"{self._title} {text}")


class _PlainBar:
    """Says something at each fifth of the way, so that a log file stays readable."""

    def __init__(self, progress: ProgressReporter, title: str, total: float) -> None:
        self._reporter, self._title, self._total = progress, title, total
        self._done, self._said = 0.0, 0
        self._text = ""

    def advance(self, steps: float = 1.0) -> None:
        self._done += steps
        fifth = int(5 * self._done / self._total) if self._total else 0
        if fifth > self._said:
            self._said = fifth
            total = max(self._total, self._done)  # more may come while it is done
            self._reporter.say(f"{self._title}: {self._done:.0f} of {total:.0f} {self._text}")

    def describe(self, text: str) -> None:
        self._text = text


class ProgressReporter:
    """Prints the steps of a run on standard output."""

    def __init__(self) -> None:
        # This stream, whatever `sys.stdout` becomes: Ray prints its own advice there.
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._step = 0

    @property
    def interactive(self) -> bool:
        """Whether a person is watching a terminal."""
        return self._console.is_terminal

    def step(self, title: str) -> None:
        """Begin the next numbered step."""
        self._step += 1
        self._console.print(
            f"\n[{self._clock()}] {self._step:2d}. {title}", markup=False, style="bold"
        )

    def say(self, text: str) -> None:
        """A line under the present step."""
        self._console.print(f"[{self._clock()}]     {text}", markup=False)
        self._console.file.flush()

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"

    @contextmanager
    def bar(self, title: str, total: float) -> Iterator[Bar]:
        """A progress bar over `total` steps."""
        if not self.interactive:
            yield _PlainBar(self, title, total)
            return
        columns = (
            TextColumn("            {task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield _RichBar(progress, title, total)
