"""The progress of a command that works through many items."""

import sys
from typing import Any


class Progress:
    """A bar on stderr: where that is a terminal, of rich; without rich a plain one; nothing elsewhere."""

    def __init__(self, total: int, title: str) -> None:
        self._bar: Any = None
        self._title, self._total = title, total
        self.live = sys.stderr.isatty()  # what is printed meanwhile would get in its way
        if self.live:
            try:
                from rich import console, progress
            except ImportError:
                return
            columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
            self._bar = progress.Progress(
                *columns, progress.TimeRemainingColumn(), console=console.Console(file=sys.stderr), transient=True
            )
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.live:
            print(end="\r\033[K", file=sys.stderr, flush=True)

    def __call__(self, done: int, text: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self._title} {text}")
        elif self.live:
            print(end=f"\r\033[K{done}/{self._total} {self._title} {text}"[:79], file=sys.stderr, flush=True)
