"""Progress on the terminal: a spinner with counts, or one line per piece of work."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.status import Status

__all__ = ["Progress"]

_EVERY_SECONDS = 0.2


class Progress:
    """What is being measured now, how many steps it has made, and for how long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting", console=console)
        self._what = ""
        self._steps = 0
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def announce(self, what: str) -> None:
        """A new piece of work begins."""
        self._what, self._steps = what, 0
        elapsed = time.monotonic() - self._start
        self._console.print(
            f"{elapsed:5.0f} s  {what}", highlight=False, soft_wrap=True
        )

    def tick(self) -> None:
        """One more step of it is done."""
        self._steps += 1
        now = time.monotonic()
        if self._console.is_terminal and now - self._shown > _EVERY_SECONDS:
            self._shown = now
            self._status.update(f"{self._what}: {self._steps:,} steps")
