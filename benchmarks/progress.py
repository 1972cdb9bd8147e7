"""How far a comparison is: a bar in a terminal, a line a case elsewhere. On stderr."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """A suite's steps; a context manager, so that the bar is gone before the table is printed."""

    def __init__(self, suite: str, steps: int) -> None:
        self._suite, self._steps = suite, steps
        self._bar: Any = None
        self._task: Any = None
        self._last = ""

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("[bold]{task.fields[suite]}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=self._steps, suite=self._suite)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, text: str) -> None:
        """One step begins; `text` is "what: which part of it"."""
        if self._bar is not None:
            done = 0 if not self._last else 1
            self._bar.update(self._task, advance=done, description=text)
        elif text.split(":")[0] != self._last.split(":")[0]:
            print(f"{self._suite}: {text.split(':')[0]}", file=sys.stderr, flush=True)
        self._last = text
