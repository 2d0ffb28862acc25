"""How far a coordinator is, in a file and for its monitoring, and how it ended.

The file is ``private/status.json``; it is read by ``secfed status`` while the
coordinator runs, and after it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from secfed.canonical import canonical_json
from secfed.errors import SecfedError
from secfed.runtime.directory import read_lines, write_atomically
from secfed.runtime.progress import Progress
from secfed.runtime.vitals import Vitals, known_phase

__all__ = ["StatusProgress", "read_status"]

_NAME: Final = "status.json"
_PATIENCE_SECONDS: Final = 600.0  # For what has no deadline: scores, files.

_End = Literal["finished", "stopped", "aborted", "refused", "failed"]
_ENDS: Final[Mapping[int, _End]] = {4: "refused", 5: "aborted"}
"""By the exit code of ``secfed.errors``; every other error is a failure."""


def read_status(private: Path) -> dict[str, Any]:
    """What was told last; empty where nothing was, or the file is damaged."""
    try:
        told = json.loads((private / _NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


class StatusProgress:
    """Passes events on and keeps what they say.

    Args:
        inner: Told every event.
        run_dir: Of the coordinator.
        needed: Sites without which a round is not opened.
        epsilon_limit: Of the study.
        deadline_seconds: The longest that a phase waits.
    """

    def __init__(
        self,
        inner: Progress,
        run_dir: Path,
        *,
        needed: int = 0,
        epsilon_limit: float | None = None,
        deadline_seconds: float = 3600.0,
    ) -> None:
        self._inner = inner
        self._private = run_dir / "private"
        self._needed, self._limit = needed, epsilon_limit
        self._patience = deadline_seconds + _PATIENCE_SECONDS
        self._began = self._last = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._bytes = (0, 0)
        self._lines = run_dir / "metrics.jsonl"
        self._told: dict[str, Any] = {
            "round": 0,
            "rounds": 0,
            "phase": "",
            "sites": [],
            "asked": 0,
            "needed": needed,
            "epsilon": self._spent(),
            "epsilon_limit": epsilon_limit,
            "end": None,
            "error": read_status(self._private).get("error", ""),
        }

    def arm(self, name: str, index: int, total: int) -> None:
        """Pass the event on."""
        self._inner.arm(name, index, total)

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """Keep the round."""
        self._inner.round(arm, round, rounds)
        self._enter("", round=round, rounds=rounds, epsilon=self._spent())

    def phase(self, text: str) -> None:
        """Keep the phase."""
        self._inner.phase(text)
        self._enter(text)

    def site(self, site: str, done: int, total: int) -> None:
        """Keep who has answered."""
        self._inner.site(site, done, total)
        self._keep(sites=[*self._told["sites"], site], asked=total)

    def note(self, text: str) -> None:
        """Pass the event on."""
        self._inner.note(text)

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Pass the event on."""
        self._inner.event(kind, **fields)

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """Keep what the round cost."""
        self._inner.finished_round(metrics)
        up, down = self._bytes
        self._bytes = (up + metrics["bytes_up"], down + metrics["bytes_down"])
        self._keep(epsilon=self._spent())

    @contextmanager
    def noting_the_end(self) -> Iterator[None]:
        """Keep in which of five ways the block ends, and by which class of error."""
        try:
            yield
        except BaseException as error:
            with suppress(OSError):  # A full disk must not hide what happened.
                self._note_end(_end_by(error), type(error).__name__)
            raise
        self._note_end("finished", "")

    def vitals(self) -> Vitals:
        """For monitoring; called in another thread."""
        told, (up, down) = self._told, self._bytes
        return Vitals(
            role="coordinator",
            healthy=time.monotonic() - self._last < self._patience,
            round=told["round"],
            rounds=told["rounds"],
            phase=known_phase(told["phase"]),
            seconds=dict(self._seconds),
            bytes_up=up,
            bytes_down=down,
            epsilon_spent=told["epsilon"],
            epsilon_limit=self._limit,
            sites=(len(told["sites"]), told["asked"], self._needed),
            last_error=told["error"],
        )

    def _note_end(self, end: _End, error: str) -> None:
        self._enter("", end=end, error=error, epsilon=self._spent())

    def _spent(self) -> float | None:
        """The highest epsilon of a site after the rounds that ended, with a sum or not.

        A round that is being played is added when it ends.
        """
        lines = read_lines(self._lines)
        spent = [value for line in lines for value in line["epsilon"].values()]
        return max(spent, default=None)

    def _enter(self, phase: str, **values: Any) -> None:
        """A phase ends and another begins."""
        now, before = time.monotonic(), known_phase(self._told["phase"])
        spent = self._seconds.get(before, 0.0) + now - self._began
        self._seconds = {**self._seconds, before: round(spent, 3)}
        self._began = now
        self._keep(phase=phase, sites=[], asked=0, **values)

    def _keep(self, **values: Any) -> None:
        self._last = time.monotonic()
        # A new dictionary: another thread may be reading the one before.
        self._told = {**self._told, **values, "changed": int(time.time())}
        path = self._private / _NAME
        write_atomically(path, canonical_json(self._told) + b"\n")


def _end_by(error: BaseException) -> _End:
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    code = error.exit_code if isinstance(error, SecfedError) else 1
    return _ENDS.get(code, "failed")
