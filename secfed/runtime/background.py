"""Work that goes on beside the messages: one job at a time, in a thread of its own.

Where many simulated sites share a process, the work waits until it is asked for.

A site trains while keys and shares travel. A job that has begun cannot be stopped, so
the next one waits for it: two jobs would train the same model. The thread does not
keep a process alive; who ends a process asks ``busy`` first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Background", "Job", "WhenAsked"]

T = TypeVar("T")


class Job(Generic[T]):
    """One piece of work; its result is kept until it is asked for or dropped."""

    def __init__(
        self,
        work: Callable[[], T],
        after: threading.Thread | None,
        *,
        when_asked: bool = False,
    ) -> None:
        self._work: Callable[[], T] | None = work
        self._result: T | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._dropped = False
        self.thread = threading.Thread(
            target=self._run, args=(after,), name="training", daemon=True
        )
        if not when_asked:
            self._begin()

    def result(self) -> T:
        """Wait for the end; what the work returned, once.

        Raises:
            RuntimeError: It was dropped, or asked for before.
            BaseException: What the work raised.
        """
        self._begin()
        self.thread.join()
        if self._error is not None:
            raise self._error
        with self._lock:
            found, self._result = self._result, None
        if found is None:
            raise RuntimeError("nobody keeps the result of this job")
        return found

    def _begin(self) -> None:
        if self.thread.ident is None:
            self.thread.start()

    def drop(self) -> None:
        """Nobody wants the result: do not begin, or forget it at the end."""
        with self._lock:
            self._dropped, self._result = True, None

    def _run(self, after: threading.Thread | None) -> None:
        if after is not None:
            after.join()
        work, self._work = self._work, None
        if self._dropped or work is None:
            return
        try:
            found = work()
        except BaseException as error:  # noqa: BLE001 - raised where it is asked for
            self._error = error
            return
        with self._lock:
            self._result = None if self._dropped else found

    def __repr__(self) -> str:
        return "Job(<private>)"


class Background:
    """Starts jobs; each begins when the one before it has ended."""

    def __init__(self) -> None:
        self._last: threading.Thread | None = None

    def start(self, work: Callable[[], T]) -> Job[T]:
        """Begin this work as soon as the thread is free."""
        job = Job(work, self._last)
        self._last = job.thread
        return job

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return self._last is not None and self._last.is_alive()


class WhenAsked(Background):
    """Jobs that run when their result is asked for.

    For a process that plays many sites, one after another: nothing runs beside it, and
    there is one thread at a time, not one of each site.
    """

    def start(self, work: Callable[[], T]) -> Job[T]:
        """Keep this work until its result is wanted."""
        return Job(work, None, when_asked=True)
