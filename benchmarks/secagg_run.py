"""What the parts of the secure sum's benchmark share: sizes and played sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cases import Case, is_playable
from benchmarks.plans import Plan
from benchmarks.secagg_session import Played, play
from benchmarks.sections import Findings, Section

__all__ = ["Part", "Run"]


@dataclass(kw_only=True)
class Run(Findings):
    """Sessions are played once for all parts, and every sum is checked."""

    plan: Plan
    sums_checked: int = 0
    played: dict[Case, Played] = field(default_factory=dict)

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
