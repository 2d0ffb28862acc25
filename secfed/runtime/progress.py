"""What a run tells the people who wait for it.

A run reports through this interface and never prints; the command line draws
it on a terminal or writes plain lines. Nothing passed here is private: it is
what the coordinator and the simulator may know. An ``event`` is for the operations
log (``secfed.runtime.watching``) and for nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

__all__ = ["NoProgress", "Progress"]


class Progress(Protocol):
    """Receives the events of a run, in order, from one thread."""

    def arm(self, name: str, index: int, total: int) -> None:
        """Arm ``name`` starts; it is number ``index`` (from 1) of ``total``."""

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """Round ``round`` (from 1) of ``rounds`` of an arm starts."""

    def phase(self, text: str) -> None:
        """A phase of the round starts, for example ``masked input``."""

    def site(self, site: str, done: int, total: int) -> None:
        """``site`` has finished this phase, as number ``done`` of ``total``."""

    def note(self, text: str) -> None:
        """Something worth a line, for example a dropout and its recovery."""

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Something for the operations log: one of ``secfed.operations.KINDS``."""

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """A round ended; ``metrics`` is its line of ``metrics.jsonl``."""


class NoProgress:
    """Tells nobody; for tests and for callers that read the run directory."""

    def arm(self, name: str, index: int, total: int) -> None:
        """Ignore the event."""

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """Ignore the event."""

    def phase(self, text: str) -> None:
        """Ignore the event."""

    def site(self, site: str, done: int, total: int) -> None:
        """Ignore the event."""

    def note(self, text: str) -> None:
        """Ignore the event."""

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Ignore the event."""

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """Ignore the event."""
