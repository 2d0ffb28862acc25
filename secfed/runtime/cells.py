"""Several cells at once: each in a process of its own, within the memory given.

A cell's process is ``secfed resume`` on the cell's directory, so whatever ends it
(Ctrl-C, a crash, a full machine) leaves a run that can be continued.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Protocol

import psutil

import secfed
from secfed.runtime.ending import ending_on_sigterm

__all__ = ["CellEvents", "CellJob", "Limits", "NoEvents", "Outcome", "run_cells"]

_POLL_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 60.0
_LOG_NAME: Final = "log.txt"
_SILENT: Final = 400


@dataclass(frozen=True)
class CellJob:
    """A cell that is to be finished.

    Attributes:
        name: Of the cell.
        directory: Its run directory, made already.
        rounds: Rounds of all its arms together.
    """

    name: str
    directory: Path
    rounds: int

    @property
    def done(self) -> int:
        """Rounds that are on disk; round 0 of an arm is its state before training."""
        files = self.directory.glob("arms/*/metrics.jsonl")
        return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in files)


@dataclass(frozen=True)
class Limits:
    """What the cells may use.

    Attributes:
        jobs: Cells at once, at most.
        memory_bytes: Of all of them; None is what the machine has free now.
    """

    jobs: int = 1
    memory_bytes: int | None = None

    @property
    def memory(self) -> int:
        """The bytes that the cells share."""
        return self.memory_bytes or int(psutil.virtual_memory().available)


@dataclass(frozen=True)
class Outcome:
    """How a cell's process ended; ``reason`` is empty where it finished."""

    name: str
    exit_code: int
    reason: str
    seconds: float
    peak_bytes: int


class CellEvents(Protocol):
    """Receives what happens to cells, in order, from one thread."""

    def started(self, name: str, waiting: int) -> None:
        """A cell's process started; so many cells wait."""

    def moved(self, rounds: Mapping[str, tuple[int, int]]) -> None:
        """Rounds done and in all, of every running cell."""

    def ended(self, outcome: Outcome) -> None:
        """A cell's process ended, whether well or not."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class NoEvents:
    """Tells nobody."""

    def started(self, name: str, waiting: int) -> None:
        """Ignore the event."""

    def moved(self, rounds: Mapping[str, tuple[int, int]]) -> None:
        """Ignore the event."""

    def ended(self, outcome: Outcome) -> None:
        """Ignore the event."""

    def note(self, text: str) -> None:
        """Ignore the event."""


Command = Callable[[Path], Sequence[str]]


def _resume(directory: Path) -> Sequence[str]:
    return [sys.executable, "-m", "secfed.cli", "resume", str(directory)]


@dataclass
class _Running:
    """A cell's process and the most memory that it was seen to use."""

    job: CellJob
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float
    done_before: int
    peak: int = 0

    def observe(self) -> None:
        try:
            used = int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return
        self.peak = max(self.peak, used)

    @property
    def settled(self) -> bool:
        """Whether it has played a round, so that its memory is known."""
        return self.job.done > self.done_before

    def outcome(self) -> Outcome:
        self.log.close()
        code = self.process.wait()
        return Outcome(
            name=self.job.name,
            exit_code=code,
            reason=_reason(code, Path(self.log.name)) if code else "",
            seconds=time.monotonic() - self.started,
            peak_bytes=self.peak,
        )


@dataclass
class _Pool:
    """The running cells, and what the largest of all so far used."""

    limits: Limits
    memory: int
    running: list[_Running] = field(default_factory=list)
    largest: int = 0

    def has_room(self) -> bool:
        """Whether another cell may start.

        The first always may. Others wait until one has played a round, so that the
        memory of a cell is known, and then take as much as the largest used.
        """
        if not self.running:
            return True
        if len(self.running) >= self.limits.jobs or not self._known:
            return False
        used = sum(max(entry.peak, self._known) for entry in self.running)
        return used + self._known <= self.memory

    @property
    def _known(self) -> int:
        settled = [entry.peak for entry in self.running if entry.settled]
        return max([self.largest, *settled])

    def observe(self) -> list[_Running]:
        """Look at every process; returns and forgets those that ended."""
        for entry in self.running:
            entry.observe()
        ended = [e for e in self.running if e.process.poll() is not None]
        self.running = [e for e in self.running if e.process.poll() is None]
        self.largest = max([self.largest, *(entry.peak for entry in ended)])
        return ended

    def stop(self) -> None:
        """Interrupt every process as Ctrl-C would, once, and wait."""
        for entry in self.running:
            entry.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _STOP_SECONDS
        for entry in self.running:
            try:
                entry.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                entry.process.kill()
                entry.process.wait()
            entry.log.close()


@ending_on_sigterm()
def run_cells(
    jobs: Sequence[CellJob],
    limits: Limits,
    events: CellEvents,
    keep_open: Sequence[int] = (),
    command: Command = _resume,
) -> dict[str, Outcome]:
    """Run every cell's process to its end; one that fails does not stop the others.

    Args:
        jobs: The cells, in the order in which they start.
        limits: How many at once, and their memory.
        events: Is told what happens.
        keep_open: File descriptors that the processes inherit: a lock's.
        command: Makes the command line of a cell; tests give another.

    Returns:
        How each cell ended, by name.

    Raises:
        KeyboardInterrupt: As it came, or for SIGTERM, after every process was
            interrupted too.
    """
    waiting, outcomes = deque(jobs), dict[str, Outcome]()
    pool = _Pool(limits, limits.memory)
    threads = max(1, (os.cpu_count() or 1) // max(1, min(limits.jobs, len(jobs))))
    try:
        while waiting or pool.running:
            while waiting and pool.has_room():
                job = waiting.popleft()
                pool.running.append(_start(job, command, threads, keep_open))
                events.started(job.name, len(waiting))
            time.sleep(_POLL_SECONDS)
            for entry in pool.observe():
                outcome = outcomes[entry.job.name] = entry.outcome()
                events.ended(outcome)
            events.moved({e.job.name: (e.job.done, e.job.rounds) for e in pool.running})
    finally:
        pool.stop()
    if pool.largest > pool.memory:
        events.note(
            f"a single cell used {pool.largest / 1e9:.1f} GB, more than the "
            f"{pool.memory / 1e9:.1f} GB given"
        )
    return outcomes


def _start(
    job: CellJob, command: Command, threads: int, keep_open: Sequence[int]
) -> _Running:
    log = (job.directory / "private" / _LOG_NAME).open("wb")
    root = str(Path(secfed.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command(job.directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        env={
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
        },
        pass_fds=tuple(keep_open),
        # Ctrl-C reaches this process alone, which passes it on once.
        process_group=0,
    )
    return _Running(job, process, log, time.monotonic(), job.done)


def _reason(code: int, log: Path) -> str:
    """Why a cell failed: its own last words, or how its process ended."""
    lines = log.read_text("utf-8", "replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if code > 0 and starts:
        words = " ".join(" ".join(lines[starts[-1] :]).split())
        return words.removeprefix("error: ")[:_SILENT]
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}; if memory was short, use fewer jobs"
    return f"its process ended with code {code}; its log is private/{_LOG_NAME}"
