"""SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ending_on_sigterm"]


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, so that children end, too.

    For the main thread: no other may set a signal's handler.
    """

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
