"""What a coordinator knows of the budgets of sites on other machines.

The budgets and their receipts are the sites' files. The coordinator's file,
``private/asked.jsonl``, says which site it asked to begin a round or an evaluation,
durably and before it asked, and what the site signed in answer. Whom it asked counts
as spent, unless the site signed that it declined: an answer may be lost on its way, and
a statement must not say less than a site spent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from secfed.errors import RunDirectoryError
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.held_back import EvaluationPlan
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.accounts import Charged
from secfed.runtime.directory import append_line, read_lines

__all__ = ["RemoteAccounts", "Task"]

_ASKED: Final = "asked"
_RESERVED: Final = "reserved"
_DECLINED: Final = "declined"


@dataclass(frozen=True, order=True)
class Task:
    """What sites are asked to do: a round, or the evaluation that follows it.

    Tasks are ordered as they happen.
    """

    round: int
    evaluation: bool = False

    @classmethod
    def read(cls, number: object, evaluation: object) -> Self:
        """From two values of a file.

        Raises:
            ValueError: They are no task.
        """
        if type(number) is not int or type(evaluation) is not bool:
            raise ValueError(f"not a task: {number!r}, {evaluation!r}")
        return cls(number, evaluation)

    def __str__(self) -> str:
        what = "evaluation after round" if self.evaluation else "round"
        return f"{what} {self.round}"


class RemoteAccounts:
    """The sites' charges of one arm, from what was asked and answered.

    Args:
        path: The file; made when a site is asked first.
        plans: Every site's public plan.
        evaluations: What every site that evaluates releases; public.
        identities: Every site's pinned public identity.
        delta: At which epsilon is stated.

    Raises:
        RunDirectoryError: The file is damaged.
    """

    elsewhere = True

    def __init__(
        self,
        path: Path,
        plans: Mapping[str, PrivacyPlan],
        evaluations: Mapping[str, EvaluationPlan],
        identities: Mapping[str, bytes],
        delta: float,
    ) -> None:
        self._path = path
        self.plans = dict(plans)
        self._evaluations = dict(evaluations)
        self.identities = dict(identities)
        self._delta = delta
        self._heads: dict[tuple[Task, str], str | None] = {}
        for line in read_lines(path):
            try:
                task = Task.read(line["round"], line["evaluation"])
                self._apply(line["what"], task, line["site"], line["head"])
            except (KeyError, TypeError, ValueError) as error:
                raise RunDirectoryError(f"{path}: damaged: {error}") from error

    @property
    def witnesses(self) -> None:
        """Sites cosign with the identities that the roster pins."""
        return

    @property
    def earlier(self) -> None:
        """A site does not tell the coordinator what else it spent."""
        return

    def ask(self, task: Task, sites: Iterable[str]) -> None:
        """Note whom a task's first order goes to, before it goes."""
        for site in sorted(sites):
            self._note(_ASKED, task, site, None)

    def reserved(self, task: Task, site: str, head: str) -> None:
        """Note that a site signed that it reserved the task."""
        self._note(_RESERVED, task, site, head)

    def declined(self, task: Task, site: str) -> None:
        """Note that a site signed that it does not take part in the task."""
        self._note(_DECLINED, task, site, None)

    def require_funds(self, rounds: int) -> None:
        """Each site asks its own budget, before every round."""

    def require_known(self, heads: Callable[[str], Collection[str]]) -> None:
        """Each site checks its own budget against its own receipts."""

    def charges(self, number: int) -> dict[str, Charged]:
        """Each asked site's charge of one round, by its plan."""
        return self.charges_of(Task(number))

    def evaluation_charges(self, number: int) -> dict[str, Charged]:
        """Each asked site's charge of the evaluation after one round, by its plan."""
        return self.charges_of(Task(number, evaluation=True))

    def epsilon(self, number: int, *, evaluated: bool = False) -> dict[str, float]:
        """As ``Accounts.epsilon``, of everything that was asked up to this."""
        last, found = Task(number, evaluated), {}
        for site in self.charges_of(last):
            tasks = [task for task, name in self._heads if name == site]
            events = [self._event(task, site) for task in tasks if task <= last]
            found[site] = accounting.epsilon(events, self._delta)
        return found

    def charges_of(self, task: Task) -> dict[str, Charged]:
        """Each asked site's charge of one task, by its plan."""
        return {
            site: Charged(self._event(task, site), head)
            for (asked, site), head in sorted(self._heads.items())
            if asked == task
        }

    def _event(self, task: Task, site: str) -> DpEvent:
        if task.evaluation:
            return self._evaluations[site].event()
        return self.plans[site].round_event()

    def _note(self, what: str, task: Task, site: str, head: str | None) -> None:
        line = {"what": what, "site": site, "head": head, **asdict(task)}
        append_line(self._path, line)
        self._apply(what, task, site, head)

    def _apply(self, what: str, task: Task, site: str, head: str | None) -> None:
        able = self._evaluations if task.evaluation else self.plans
        if site not in able or what not in {_ASKED, _RESERVED, _DECLINED}:
            raise ValueError(f"an unknown line: {what!r} of {site!r}")
        if what == _DECLINED:
            self._heads.pop((task, site), None)
        else:
            self._heads[task, site] = head
