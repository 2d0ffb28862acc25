"""What the operations log hears of a run: a progress that writes it down.

A run's log is ``private/operations.jsonl`` of its directory, a site's stands in its
state folder. Both are the party's own: they are no evidence and go to nobody but its
security team.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from secfed.canonical import digest
from secfed.errors import SecfedError
from secfed.operations import LOG_NAME, OperationsLog, ended
from secfed.policy import SitePolicy
from secfed.privacy.budget import Budget
from secfed.runtime.progress import Progress
from secfed.study import Study

__all__ = [
    "LoggedProgress",
    "budget_alarms",
    "log_of_run",
    "watched",
]


class LoggedProgress:
    """Passes everything on, and writes rounds and events to the operations log."""

    def __init__(self, inner: Progress, log: OperationsLog) -> None:
        self._inner = inner
        self._log = log
        self._arm = ""
        self._opened = False

    def arm(self, name: str, index: int, total: int) -> None:
        """The policy let the study pass."""
        self._inner.arm(name, index, total)
        self._open()

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """A round began."""
        self._open()
        self._arm = arm
        self._log.event("round-started", round=round, arm=arm)
        self._inner.round(arm, round, rounds)

    def phase(self, text: str) -> None:
        """Pass the event on."""
        self._inner.phase(text)

    def site(self, site: str, done: int, total: int) -> None:
        """Pass the event on."""
        self._inner.site(site, done, total)

    def note(self, text: str) -> None:
        """Pass the event on; a free text enters no log."""
        self._inner.note(text)

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Write it down."""
        self._log.event(kind, **fields)

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """A round is complete; of its metrics only the number is written down."""
        self._log.event("round-completed", round=int(metrics["round"]), arm=self._arm)
        self._inner.finished_round(metrics)

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            self._log.event("study-opened")


def log_of_run(run_dir: Path, study: Study, run_id: str, role: str) -> OperationsLog:
    """The operations log of a run directory."""
    path = run_dir / "private" / LOG_NAME
    run = run_id.partition("/")[0]
    return OperationsLog(path, study=study.digest(), run=run, role=role)


@contextmanager
def watched(
    run_dir: Path,
    study: Study,
    run_id: str,
    progress: Progress,
    *,
    role: Literal["simulation", "coordinator"] = "simulation",
    policy: SitePolicy | None = None,
) -> Iterator[Progress]:
    """Write down what a run tells, how it began and how it ended.

    Raises:
        RunDirectoryError: The log cannot be written; nothing goes on without it.
    """
    log = log_of_run(run_dir, study, run_id, role)
    resumed = log.path.exists()
    log.event("started")
    if policy is not None:
        log.configuration("policy", digest(policy.model_dump(mode="json")))
    if resumed:
        log.event("study-resumed")
    try:
        yield LoggedProgress(progress, log)
    except BaseException as error:
        # What went wrong is told, also where the disk for the log is full.
        with suppress(SecfedError):
            log.event(**ended(error))
        raise
    log.event("study-finished")


def budget_alarms(budget: Budget, population: str) -> dict[str, Any] | None:
    """The highest alarm step that a population has reached, as fields of an event."""
    for account in Budget.read(budget.path):
        if account.population.name == population and account.alarm:
            return {"population": population, "percent": account.alarm}
    return None
