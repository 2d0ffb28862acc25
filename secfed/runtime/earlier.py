"""The earlier runs that a study names: their ledgers, and what they cost each site."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from secfed.earlier_runs import EarlierRun, NamedRuns, charges_at, read_tuning_run
from secfed.entries import RunCosts
from secfed.errors import ModelError
from secfed.ledger import LEDGER_NAME
from secfed.privacy import accounting
from secfed.privacy.budget import Budget
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


def charge_earlier(budget: Budget, runs: Iterable[RunCosts], site: str) -> None:
    """Let a site's budget hold what earlier runs spent there.

    What the budget holds already, because those runs trained on its records, is not
    charged again; what it does not, as in a rehearsal, is added as spent.

    Raises:
        BudgetExceededError: All together do not fit.
    """
    charges = charges_at(runs, site)
    if not charges:
        return
    accounts = Budget.read(budget.path)
    held = {(c.run_id, c.round) for account in accounts for c in account.charges}
    for charge in charges:
        if (charge.run_id, charge.round) not in held:
            event = accounting.event_from_json(charge.event)
            reservation = budget.reserve(
                charge.study_digest, charge.run_id, charge.round, event
            )
            budget.spend(reservation)


def read_evidence(path: Path) -> bytes:
    """A file of an earlier run.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: not readable: {error.strerror}") from error
