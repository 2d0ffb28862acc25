"""What each run spent of a population, in order: for a data protection officer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from secfed.privacy import accounting
from secfed.privacy.budget import Account, Charge, alarm_of, percent_of

__all__ = ["RunSpend", "spending", "spending_csv"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class RunSpend:
    """All rounds of one run on one population; epsilons in the population's unit.

    ``epsilon_alone`` is of this run by itself, ``epsilon_composed`` of it and all that
    began before it. Alone-epsilons do not add up to the composed one.
    """

    site: str
    population: str
    unit: str
    delta: float
    max_epsilon: float
    study_digest: str
    run: str
    rounds: int
    first_reserved_at: str
    last_reserved_at: str
    epsilon_alone: float
    epsilon_composed: float
    percent: float
    alarm: int


def spending(account: Account) -> tuple[RunSpend, ...]:
    """The runs of one account, by their first reservation."""
    runs: dict[tuple[str, str], list[Charge]] = {}
    for charge in account.charges:
        runs.setdefault((charge.study_digest, charge.run_id), []).append(charge)
    found, before = [], []
    for charges in runs.values():
        before += charges
        found.append(_spend(account, charges, before))
    return tuple(found)


def _spend(
    account: Account, charges: Sequence[Charge], before: Sequence[Charge]
) -> RunSpend:
    held = account.population
    composed = accounting.epsilon([c.cost for c in before], held.delta)
    percent = percent_of(composed, held.max_epsilon)
    return RunSpend(
        site=account.site,
        population=held.name,
        unit=held.unit,
        delta=held.delta,
        max_epsilon=held.max_epsilon,
        study_digest=charges[0].study_digest,
        run=charges[0].run_id,
        rounds=len(charges),
        first_reserved_at=charges[0].reserved_at,
        last_reserved_at=charges[-1].reserved_at,
        epsilon_alone=accounting.epsilon([c.cost for c in charges], held.delta),
        epsilon_composed=composed,
        percent=percent,
        alarm=alarm_of(percent),
    )


def spending_csv(rows: Sequence[RunSpend]) -> str:
    """One line for each run; a text that a spreadsheet would execute is quoted."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([field.name for field in fields(RunSpend)])
    for row in rows:
        writer.writerow([_cell(value) for value in asdict(row).values()])
    return file.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
