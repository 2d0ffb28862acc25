"""Cells in processes: how many, how much memory, what a failure or Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from secfed.runtime.cells import CellJob, Limits, NoEvents, Outcome, run_cells

PLAY = """
import pathlib, sys, time
folder, seconds, megabytes = pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:4])
held = bytearray(int(megabytes * 1e6))
lines = folder / "arms" / "a" / "metrics.jsonl"
lines.parent.mkdir(parents=True)
time.sleep(0.3)  # the memory is there before the first round ends
lines.write_text("{}\\n{}\\n")
time.sleep(seconds)
"""


class Watch(NoEvents):
    """Keeps what happened, and how many cells ran at once."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.most = 0
        self.order: list[str] = []
        self.seen: dict[str, tuple[int, int]] = {}
        self.notes: list[str] = []

    def started(self, name: str, waiting: int) -> None:
        self.running.add(name)
        self.order.append(name)
        self.most = max(self.most, len(self.running))

    def moved(self, rounds: Mapping[str, tuple[int, int]]) -> None:
        self.seen |= rounds

    def ended(self, outcome: Outcome) -> None:
        self.running.remove(outcome.name)

    def note(self, text: str) -> None:
        self.notes.append(text)


def jobs(folder: Path, names: str) -> list[CellJob]:
    for name in names:
        (folder / name / "private").mkdir(parents=True)
    return [CellJob(name, folder / name, 1) for name in names]


def play(seconds: float = 0.6, megabytes: float = 1.0):
    def command(folder: Path) -> Sequence[str]:
        values = [str(folder), str(seconds), str(megabytes)]
        return [sys.executable, "-S", "-c", PLAY, *values]

    return command


def test_as_many_at_once_as_asked_in_the_order_of_the_study(tmp_path: Path) -> None:
    for limit in (1, 2):
        watch = Watch()
        found = run_cells(
            jobs(tmp_path / str(limit), "abc"), Limits(limit, 10**9), watch, (), play()
        )
        assert watch.most == limit
        assert watch.order == ["a", "b", "c"]
        assert watch.seen["a"] == (1, 1)
        assert all(o.exit_code == 0 and not o.reason for o in found.values())


def test_a_second_cell_waits_until_the_memory_of_the_first_is_known(
    tmp_path: Path,
) -> None:
    # 100 MB each: two fit into 300 MB and not into 180 MB.
    for limit, most in ((300e6, 2), (180e6, 1)):
        watch = Watch()
        found = run_cells(
            jobs(tmp_path / str(limit), "abc"),
            Limits(3, int(limit)),
            watch,
            (),
            play(megabytes=100),
        )
        assert watch.most == most
        assert all(100e6 < outcome.peak_bytes < 140e6 for outcome in found.values())
        assert watch.notes == []


def test_one_cell_that_is_larger_than_the_memory_runs_alone_and_is_named(
    tmp_path: Path,
) -> None:
    watch = Watch()
    run_cells(jobs(tmp_path, "ab"), Limits(2, 10**8), watch, (), play(megabytes=200))
    assert watch.most == 1
    assert "more than the 0.1 GB given" in watch.notes[0]


def test_a_cell_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    endings = {
        "a": "import sys; print('error: the site\\nrefuses', file=sys.stderr); sys.exit(4)",
        "b": "raise RuntimeError('bug')",
        "c": "import os; os.kill(os.getpid(), 9)",
        "d": "pass",
    }

    def command(folder: Path) -> Sequence[str]:
        return [sys.executable, "-S", "-c", endings[folder.name]]

    found = run_cells(jobs(tmp_path, "abcd"), Limits(2, 10**9), Watch(), (), command)
    assert (found["a"].exit_code, found["a"].reason) == (4, "the site refuses")
    assert (
        found["b"].reason == "its process ended with code 1; its log is private/log.txt"
    )
    assert "SIGKILL" in found["c"].reason
    assert found["d"].reason == ""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_interrupt_every_cell_once_and_wait(
    tmp_path: Path, number: signal.Signals
) -> None:
    code = (
        "import pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "try:\n"
        "    (folder / 'ready').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(0.5)\n"  # a second interrupt would end this
        "    (folder / 'settled').touch()\n"
    )

    def command(folder: Path) -> Sequence[str]:
        return [sys.executable, "-S", "-c", code, str(folder)]

    def press() -> None:
        while not (tmp_path / "a" / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        run_cells(jobs(tmp_path, "ab"), Limits(1, 10**9), Watch(), (), command)
    presser.join()
    assert (tmp_path / "a" / "settled").exists()
    assert not (tmp_path / "b" / "ready").exists()


def test_a_cell_inherits_the_lock_of_its_grid(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    code = f"import os; os.fstat({descriptor})"

    def command(_folder: Path) -> Sequence[str]:
        return [sys.executable, "-S", "-c", code]

    for keep, expected in (((descriptor,), 0), ((), 1)):
        folder = tmp_path / str(expected)
        found = run_cells(jobs(folder, "a"), Limits(), Watch(), keep, command)
        assert found["a"].exit_code == expected
    os.close(descriptor)
