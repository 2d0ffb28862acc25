"""How far a long benchmark is, and how much time is left."""

from __future__ import annotations

import time

from rich.console import Console

__all__ = ["Remaining"]

_EVERY_SECONDS = 20.0
_MINUTE, _HOUR = 60, 3600


class Remaining:
    """Prints one line per cell and, in between, how much is done.

    Time left is the time so far per unit of work, times the work that is left;
    cells that were found finished count as neither.

    Args:
        console: Where to.
        work: Size of every cell that is to be trained, in any common unit.
    """

    def __init__(self, console: Console, work: float) -> None:
        self._console, self._left, self._done = console, work, 0.0
        self._start = self._shown = time.monotonic()

    def line(self, what: str, inside: float = 0.0) -> None:
        """Print what is done now; ``inside`` is work done in the current cell."""
        self._shown = now = time.monotonic()
        done = self._done + inside
        left = ""
        if done > 0 and self._left > inside:
            left = duration((now - self._start) * (self._left - inside) / done)
            left = f", about {left} left"
        elapsed = duration(now - self._start)
        text = f"{elapsed:>8}  {what}{left}"
        self._console.print(text, highlight=False, soft_wrap=True)

    def tick(self, what: str, inside: float) -> None:
        """The same, unless a line was printed a short time ago."""
        if time.monotonic() - self._shown > _EVERY_SECONDS:
            self.line(what, inside)

    def finished(self, work: float) -> None:
        """A cell of this size is trained."""
        self._done += work
        self._left -= work


def duration(seconds: float) -> str:
    """In the two largest units that say something."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h {seconds % _HOUR / _MINUTE:.0f} min"
