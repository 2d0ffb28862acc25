"""Progress of a run: a live display on a terminal, plain lines elsewhere.

Both write to standard error and implement ``secfed.runtime.progress.Progress``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from secfed.report.measures import ACCURACY, F1, MATTHEWS, PERPLEXITY
from secfed.report.tables import round_up

if TYPE_CHECKING:
    from secfed.runtime.progress import Progress as RunProgress

__all__ = ["LineProgress", "LiveProgress", "progress_for"]

_QUIET_SECONDS: Final = 5.0
"""Plain lines about phases and sites come at most this often."""


@contextmanager
def progress_for(console: Console | None = None) -> Iterator[RunProgress]:
    """The progress display that fits the terminal, closed at the end."""
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield LineProgress(console)
        return
    display = LiveProgress(console)
    with display.bars:
        yield display


def round_line(arm: str, rounds: int, metrics: Mapping[str, Any]) -> str:
    """A finished round in one line."""
    number = metrics.get("round")
    parts = [f"{arm} round {number}/{rounds}"]
    if metrics.get("status", "completed") != "completed":
        return f"{parts[0]}: interrupted; it counts as spent"
    epsilon = metrics.get("epsilon")
    for measure in (ACCURACY, F1, MATTHEWS, PERPLEXITY):
        score = metrics.get(measure.key)
        if score is not None:
            parts.append(f"{measure.name} {measure.shown(score)}")
    if epsilon:
        parts.append(f"epsilon {round_up(max(epsilon.values()))}")
    for kind in ("dropouts", "silent"):
        lost = (metrics.get(kind) or {}).items()
        parts += [f"{site} lost after {phase}" for site, phase in lost]
    if metrics.get("sums_equal") is not None:
        parts.append("sum exact" if metrics["sums_equal"] else "SUM WRONG")
    if metrics.get("seconds") is not None:
        parts.append(f"{metrics['seconds']:.1f} s")
    return ", ".join(parts)


class _Position:
    """Where in the run we are, shared by both displays."""

    def __init__(self) -> None:
        self.arm_name = ""
        self.arm_index = 1
        self.arm_total = 1
        self.round_number = 0
        self.rounds = 0

    def enter_arm(self, name: str, index: int, total: int) -> None:
        self.arm_name, self.arm_index, self.arm_total = name, index, total
        self.round_number = 0

    def enter_round(self, number: int, rounds: int) -> None:
        self.round_number, self.rounds = number, rounds

    @property
    def finished_rounds(self) -> int:
        """Rounds done so far, of ``all_rounds``, if every arm has as many."""
        return (self.arm_index - 1) * self.rounds + max(self.round_number - 1, 0)

    @property
    def all_rounds(self) -> int:
        return self.arm_total * self.rounds


class LineProgress:
    """One line per arm, finished round and note; phases now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at = _Position()
        self._phase = ""
        self._last = time.monotonic()

    def arm(self, name: str, index: int, total: int) -> None:
        """Write a line."""
        self._at.enter_arm(name, index, total)
        self._write(f"arm {index}/{total}: {name}")

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """Remember the round."""
        del arm
        self._at.enter_round(round, rounds)

    def phase(self, text: str) -> None:
        """Write a line if nothing was written for a while."""
        self._phase = text
        self._write_rarely(text)

    def site(self, site: str, done: int, total: int) -> None:
        """Write a line if nothing was written for a while."""
        self._write_rarely(f"{self._phase}: {site}, {done}/{total} sites")

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(f"note: {text}")

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Nothing to show: it is for the operations log."""

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """Write a line."""
        self._write(round_line(self._at.arm_name, self._at.rounds, metrics))

    def _write_rarely(self, text: str) -> None:
        before_first_round = self._at.round_number == 0 and text == self._phase
        if before_first_round or time.monotonic() - self._last > _QUIET_SECONDS:
            self._write(f"  {text}")

    def _write(self, text: str) -> None:
        self._last = time.monotonic()
        self._console.print(Text(text), soft_wrap=True)


class LiveProgress:
    """Two bars: rounds of all arms with the time left, and sites of the phase."""

    def __init__(self, console: Console) -> None:
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._at = _Position()
        self._phase = ""
        self._rounds = self.bars.add_task("preparing", total=None)
        self._sites = self.bars.add_task("", total=None, visible=False)

    def arm(self, name: str, index: int, total: int) -> None:
        """Name the arm beside the first bar."""
        self._at.enter_arm(name, index, total)
        self.bars.update(self._rounds, description=f"arm {index}/{total} {name}")

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """Move the first bar."""
        self._at.enter_round(round, rounds)
        self.bars.update(
            self._rounds,
            description=(
                f"arm {self._at.arm_index}/{self._at.arm_total} {arm}, "
                f"round {round}/{rounds}"
            ),
            completed=self._at.finished_rounds,
            total=self._at.all_rounds,
        )

    def phase(self, text: str) -> None:
        """Restart the second bar."""
        self._phase = text
        self.bars.reset(self._sites, description=f"  {text}", total=None, visible=True)

    def site(self, site: str, done: int, total: int) -> None:
        """Move the second bar."""
        self.bars.update(
            self._sites,
            description=f"  {self._phase}: {site}",
            completed=done,
            total=total,
            visible=True,
        )

    def note(self, text: str) -> None:
        """Write a line above the bars."""
        self.bars.console.print(Text(text, style="yellow"), soft_wrap=True)

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Nothing to show: it is for the operations log."""

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """Write a line above the bars and move the first one."""
        line = round_line(self._at.arm_name, self._at.rounds, metrics)
        self.bars.console.print(Text(line), soft_wrap=True)
        self.bars.update(self._rounds, completed=self._at.finished_rounds + 1)
