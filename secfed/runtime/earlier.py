"""The earlier runs that a study names: their ledgers, and what they cost each site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from secfed.earlier_runs import EarlierRun, NamedRuns, charges_at, read_tuning_run
from secfed.entries import RunCosts
from secfed.errors import BudgetExceededError, ModelError
from secfed.ledger import LEDGER_NAME
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.budget import Budget, Spent
from secfed.privacy.not_held import not_held
from secfed.study import Study
from secfed.teacher_ledger import read_teacher_run

__all__ = ["charge_earlier", "open_tuning", "read_evidence", "read_named"]


def open_tuning(study: Study, base_dir: Path) -> tuple[EarlierRun, ...]:
    """The runs by which the study's settings were chosen, in its order.

    Args:
        study: The study.
        base_dir: Folder that relative paths start from.

    Raises:
        ModelError: A ledger is missing.
        LedgerError, PolicyError: It is another one than was pinned, or of a run that
            cannot be composed with the study.
    """
    return tuple(
        read_tuning_run(read_evidence(base_dir / run.ledger), study, index)
        for index, run in enumerate(study.tuning_runs)
    )


def read_named(study: Study, base_dir: Path) -> NamedRuns:
    """What all runs spent that a study names.

    Raises:
        ModelError, LedgerError, PolicyError: As ``open_tuning``; of the teacher, too.
    """
    taught, section = None, study.teacher
    if section is not None and section.run is not None:
        data = read_evidence(base_dir / section.run / LEDGER_NAME)
        taught = read_teacher_run(data, study).costs
    runs = open_tuning(study, base_dir)
    return NamedRuns(taught, tuple(run.costs for run in runs))


def charge_earlier(
    budget: Budget, runs: Iterable[RunCosts], site: str, own: Sequence[DpEvent] = ()
) -> None:
    """Let a site's budget hold what earlier runs spent there: all of it, or nothing.

    What the budget holds already, because those runs trained on its records, is not
    charged again; what it does not, as in a rehearsal, is added as spent.

    Args:
        budget: Of the site, with its population open.
        runs: What earlier runs spent.
        site: The site's name, there as here.
        own: What the study will run itself; it has to fit beside them.

    Raises:
        BudgetExceededError: All together do not fit; nothing was spent.
        PolicyError: A ledger tells less than the budget knows itself.
    """
    charges = charges_at(runs, site)
    if not charges:
        return
    due = [
        Spent(c.study_digest, c.run_id, c.round, accounting.event_from_json(c.event))
        for c in not_held(Budget.read(budget.path), charges)
    ]
    if not due:
        return
    if not budget.can_afford([*(spent.event for spent in due), *own]):
        raise BudgetExceededError(
            site,
            f"the study and the {len(due)} earlier rounds that it names and this "
            "budget does not hold yet do not fit; nothing was spent. Raise "
            "max_epsilon in site.toml if the site agrees, or lower the study's epsilon",
        )
    budget.add_spent(due)


def read_evidence(path: Path) -> bytes:
    """A file of an earlier run.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: not readable: {error.strerror}") from error
