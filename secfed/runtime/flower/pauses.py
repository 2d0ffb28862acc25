"""How long to wait between two looks: briefly while things happen, longer later."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Pauses"]

_SHARE: Final = 0.02


class Pauses:
    """Pauses of a fiftieth of the time for which nothing came, within bounds.

    A message is seldom alone, so that looks are frequent after one; sites that wait for
    hours ask their coordinator once in a while, however many they are.

    Args:
        shortest: Seconds, right after something came.
        longest: Seconds, where nothing came for long.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._last = time.monotonic()

    def came(self) -> None:
        """Something came, or is known to come soon."""
        self._last = time.monotonic()

    def seconds(self) -> float:
        """The next pause."""
        idle = time.monotonic() - self._last
        return min(self._longest, max(self._shortest, _SHARE * idle))

    def wait(self) -> None:
        """Sleep for the next pause."""
        time.sleep(self.seconds())
