"""What a part of the benchmark writes: tables, goals, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.cases import Case, is_playable
from benchmarks.measure import Timing
from benchmarks.plans import Plan
from benchmarks.secagg_session import Played, play

__all__ = ["GB", "MB", "MS", "Goal", "Part", "Run", "Section"]

MS: Final = 1e3
MB: Final = 1e6
GB: Final = 1e9


@dataclass
class Section:
    """One table: named columns, and rows of words, numbers and timings."""

    key: str
    title: str
    note: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **cells: Any) -> None:
        """One row; the names of its cells are the columns, underscores as spaces."""
        shown = {
            name.replace("_", " "): cell.to_json() if isinstance(cell, Timing) else cell
            for name, cell in cells.items()
        }
        self.rows.append(shown)


@dataclass(frozen=True)
class Goal:
    """What was asked for, and what was found."""

    name: str
    wanted: str
    measured: float
    unit: str
    met: bool


@dataclass
class Run:
    """What the parts share: sizes, progress, goals, and what was left out."""

    plan: Plan
    tick: Callable[[], None]
    announce: Callable[[str], None]
    goals: list[Goal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    sums_checked: int = 0
    played: dict[Case, Played] = field(default_factory=dict)

    def at_least(self, name: str, wanted: float, measured: float, unit: str) -> None:
        """Note a goal that larger values meet."""
        met = measured >= wanted
        self.goals.append(Goal(name, f"at least {wanted:g}", measured, unit, met))

    def at_most(self, name: str, wanted: float, measured: float, unit: str) -> None:
        """Note a goal that smaller values meet."""
        met = measured <= wanted
        self.goals.append(Goal(name, f"at most {wanted:g}", measured, unit, met))

    def play(self, case: Case, percents: Sequence[int] = (0,), **more: Any) -> Played:
        """A session of ours; a wrong sum raises."""
        self.announce(f"secfed, {case}")
        played = play(case, percents, tick=self.tick, **more)
        self.sums_checked += len(played.branches)
        self.played[case] = played
        return played

    def play_once(self, case: Case) -> Played:
        """The session without dropouts; an earlier part may have played it."""
        return self.played.get(case) or self.play(case)

    def playable(self, cases: Sequence[Case]) -> Iterator[Case]:
        """The cases that this version of the protocol accepts."""
        for case in cases:
            if is_playable(case):
                yield case
            else:
                self.left_out.append(f"not in this version of the protocol: {case}")


Part = Callable[[Run], Iterator[Section]]
"""Measures, and yields its tables when they are full."""
