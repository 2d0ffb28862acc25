"""What a part of the benchmark writes: tables, goals, and what was left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.measure import Timing

__all__ = ["GB", "MB", "MS", "Findings", "Goal", "Section"]

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
class Findings:
    """What the parts of a benchmark share: progress, goals, and what was left out."""

    tick: Callable[[], None]
    announce: Callable[[str], None]
    goals: list[Goal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def at_least(self, name: str, wanted: float, measured: float, unit: str) -> None:
        """Note a goal that larger values meet."""
        met = measured >= wanted
        self.goals.append(Goal(name, f"at least {wanted:g}", measured, unit, met))

    def at_most(self, name: str, wanted: float, measured: float, unit: str) -> None:
        """Note a goal that smaller values meet."""
        met = measured <= wanted
        self.goals.append(Goal(name, f"at most {wanted:g}", measured, unit, met))
