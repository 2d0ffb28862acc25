"""What a site's populations have spent, on the site's disk, across studies.

Events are reserved before a round's first step and are never returned: after a
crash, a reserved round counts as spent. A check and its reservation are one
transaction, so that two processes cannot both take the last of a budget.

A budget belongs to a declared population, not to a file of records: fingerprints
of the data are versions of the population, and nothing resets when a row is
added. How a damaged or older file is noticed stands in ``secfed.privacy.store``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final, get_args

from secfed.errors import BudgetExceededError, PolicyError
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.chain import (
    Charge,
    Link,
    Population,
    Receipt,
    State,
    fresh_nonce,
)
from secfed.privacy.journal import BudgetFileError
from secfed.privacy.plan import Unit
from secfed.privacy.store import BudgetStore, Writer

__all__ = [
    "ALARMS",
    "Account",
    "Budget",
    "BudgetFileError",
    "Charge",
    "Population",
    "Receipt",
    "Spent",
    "alarm_of",
    "group_of",
    "percent_of",
]

ALARMS: Final = (50, 80, 100)
"""Percent of a limit at which ``Account.alarm`` changes."""


@dataclass(frozen=True)
class Spent:
    """One round of a run, and what it ran, for the study's unit."""

    study_digest: str
    run_id: str
    round: int
    event: DpEvent


@dataclass(frozen=True)
class Account:
    """One population's account, read from the files."""

    site: str
    population: Population
    charges: tuple[Charge, ...]

    @cached_property
    def spent_epsilon(self) -> float:
        """Epsilon of everything reserved or spent, at the population's delta."""
        events = [charge.cost for charge in self.charges]
        return accounting.epsilon(events, self.population.delta)

    @property
    def remaining(self) -> float:
        """The limit less ``spent_epsilon``, at least 0.

        For people. Epsilons do not add up; ask ``can_afford`` what still fits.
        """
        return max(0.0, self.population.max_epsilon - self.spent_epsilon)

    @property
    def percent(self) -> float:
        """How much of the limit is spent, rounded up to a whole percent."""
        return percent_of(self.spent_epsilon, self.population.max_epsilon)

    @property
    def alarm(self) -> int:
        """The highest of ``ALARMS`` that is reached; 0 below the first."""
        return alarm_of(self.percent)


def percent_of(epsilon: float, limit: float) -> float:
    """How much of a limit an epsilon is, rounded up to a whole percent."""
    share = 100 * epsilon / limit
    return float(math.ceil(share)) if math.isfinite(share) else share


def alarm_of(percent: float) -> int:
    """The highest of ``ALARMS`` that is reached; 0 below the first."""
    return max((step for step in ALARMS if percent >= step), default=0)


def group_of(
    population: str, kept: Unit, unit: Unit, records_per_person: int | None
) -> int:
    """How many units' worth each event of a study is charged for.

    Args:
        population: Its declared name.
        kept: The unit that its budget is kept in.
        unit: The study's.
        records_per_person: The most that one person has, as the site declares it.

    Raises:
        PolicyError: The study cannot draw on this population.
    """
    if unit == "site":
        return accounting.REPLACED
    if kept == unit:
        return 1
    if (kept, unit) == ("person", "record") and records_per_person is not None:
        return records_per_person
    hint = (
        ", or declare max_records_per_person in site.toml" if kept == "person" else ""
    )
    raise PolicyError(
        f"population {population!r} is kept per {kept}, so a study per {unit} cannot "
        f"draw on it; use a study per {kept}{hint}"
    )


class Budget:
    """The privacy budget of one site.

    Guarantees:
        ``reserve`` returns only after the event is on disk, twice, and only if
        the epsilon of all events of the population, by the reference accountant,
        stays within ``max_epsilon``.

    Args:
        path: The budget file, created with mode 0600 if missing. Its second copy
            stands beside it.
        site: The site's name. A file of another site is refused.
        create: Whether a missing file is created.

    Raises:
        BudgetFileError: The file is missing (without ``create``), unreadable,
            damaged, an older copy of itself, not a budget, of a newer format, or
            another site's.

    Example::

        budget = Budget(site_dir / "budget.sqlite", "north")
        budget.open("patients-2026", "person", max_epsilon=8.0, delta=1e-5)
        ticket = budget.reserve(study_digest, run_id, 1, plan.round_event())
        ...  # The round's steps.
        budget.spend(ticket)
    """

    def __init__(self, path: str | Path, site: str, *, create: bool = True) -> None:
        self.path = Path(path)
        self.site = site
        self._population: str | None = None
        self._group = 1
        self._unit: Unit = "record"
        self._store = BudgetStore(self.path, site, create=create)
        self._store.prepare()

    @classmethod
    def read(cls, path: str | Path) -> tuple[Account, ...]:
        """Every account of a budget file, by population; changes nothing.

        Raises:
            BudgetFileError: As for ``Budget``.
        """
        state = BudgetStore(Path(path), None).read()
        return tuple(
            Account(state.site, population, state.charges_of(name))
            for name, population in sorted(state.populations.items())
        )

    def open(
        self,
        population: str,
        unit: Unit,
        max_epsilon: float,
        delta: float,
        *,
        fingerprint: str | None = None,
        records_per_person: int | None = None,
    ) -> Budget:
        """Choose the population that the other methods speak of.

        The limits are the site's own and replace those set before; what was
        spent stays. The unit is fixed when a population is first opened,
        because events for records say nothing about persons.

        A study whose unit is the site may draw on every population, and is always
        charged for a person: one person's records can replace the whole update,
        which moves it by up to 2 C (``accounting.REPLACED``). A population that is
        kept per site takes such studies only.

        Args:
            population: Its declared name.
            unit: What the study protects.
            max_epsilon: The limit for everything that is ever spent.
            delta: The delta at which it is measured.
            fingerprint: Of the data that is used now: a version of the
                population, which changes nothing about what was spent.
            records_per_person: The most records that one person has in the data,
                as the site declares it. With it, a study per record may draw on
                a budget per person: each event is charged for that many records.

        Returns:
            This budget.

        Raises:
            PolicyError: The population is kept in another unit, the data is
                already a version of another population, or a limit is not valid.
        """
        self._check_limits(population, unit, max_epsilon, delta)
        with self._store.transaction() as writer:
            held = writer.state.populations.get(population)
            # A cap says that this is a population of persons.
            kept = held.unit if held else "person" if records_per_person else unit
            group = self._group_of(population, kept, unit, records_per_person)
            limits = (float(max_epsilon), float(delta))
            if held is None or (held.max_epsilon, held.delta) != limits:
                entry = {"kind": "population", "name": population, "unit": kept}
                writer.append(entry | {"max_epsilon": limits[0], "delta": limits[1]})
            if fingerprint is not None:
                self._add_version(writer, population, fingerprint)
        self._population, self._group, self._unit = population, group, unit
        return self

    def populations(self) -> tuple[Population, ...]:
        """Every population of this file, by name."""
        held = self._store.read().populations
        return tuple(held[name] for name in sorted(held))

    def reserve(
        self,
        study_digest: str,
        run_id: str,
        round_number: int,
        event: DpEvent,
        known_heads: Iterable[str] = (),
    ) -> int:
        """Pay for one round before its first step.

        Args:
            study_digest: Of the study.
            run_id: Of the run and its arm.
            round_number: From 1.
            event: What the round will run, for the study's unit.
            known_heads: As for ``require_known``.

        Returns:
            The reservation's number, for ``spend``.

        Raises:
            BudgetExceededError: The population's total would pass its limit.
            BudgetFileError: The file is damaged or an older copy of itself.
            PolicyError: This round of this run was reserved before. It counts
                as spent and is not repeated; continue with the next round.
            PlanError: The event is not one that the accountant knows, or is sampled
                where the study's unit is the site.
        """
        spent = Spent(study_digest, run_id, round_number, event)
        cost = self._cost(event)
        known_heads = tuple(known_heads)
        with self._store.transaction() as writer:
            account = self._opened(writer.state)
            self._require_heads(writer.state, known_heads)
            for charge in writer.state.charges:
                if (charge.run_id, charge.round) == (run_id, round_number):
                    raise PolicyError(
                        f"{self.site}: round {round_number} of run {run_id} was "
                        "reserved before; it counts as spent and is not repeated"
                    )
            self._require(account, [cost])
            return self._reserve(writer, account, spent).sequence

    def _reserve(self, writer: Writer, account: Account, spent: Spent) -> Link:
        return writer.append(
            {
                "kind": "reserve",
                "population": account.population.name,
                "study_digest": spent.study_digest,
                "run_id": spent.run_id,
                "round": spent.round,
                "event": accounting.event_to_json(spent.event),
                "group": self._group,
                "unit": self._unit,
                "at": _now(),
                "nonce": fresh_nonce(),
            }
        )

    def add_spent(self, charges: Sequence[Spent]) -> None:
        """Pay for what is over and not held yet: all of it, or nothing.

        Args:
            charges: What ran, for the study's unit.

        Raises:
            BudgetExceededError: All together do not fit.
            BudgetFileError: The file is damaged or an older copy of itself.
        """
        with self._store.transaction() as writer:
            account = self._opened(writer.state)
            held = {(charge.run_id, charge.round) for charge in writer.state.charges}
            due = [
                spent for spent in charges if (spent.run_id, spent.round) not in held
            ]
            self._require(account, [self._cost(spent.event) for spent in due])
            for spent in due:
                link = self._reserve(writer, account, spent)
                writer.append(
                    {"kind": "spend", "reservation": link.sequence, "at": _now()}
                )

    def spend(self, reservation: int) -> None:
        """Record that a reserved round was sent; costs nothing more.

        Raises:
            PolicyError: The population has no such reservation.
        """
        with self._store.transaction() as writer:
            account = self._opened(writer.state)
            if self._charge(account, reservation).state == "reserved":
                writer.append(
                    {"kind": "spend", "reservation": reservation, "at": _now()}
                )

    def receipt(self, reservation: int) -> Receipt:
        """What to keep outside the budget, to know a reservation again.

        Raises:
            PolicyError: The population has no such reservation.
        """
        return self._charge(self._account(), reservation).receipt()

    def require_known(self, heads: Iterable[str]) -> None:
        """Check that this budget holds every reservation that others have seen.

        Args:
            heads: What ledgers and receipts name as this site's budget.

        Raises:
            BudgetFileError: It was restored from an older copy, or replaced.
        """
        self._require_heads(self._store.read(), tuple(heads))

    def can_afford(self, events: Sequence[DpEvent]) -> bool:
        """Whether all these events would fit, beside everything spent.

        Asked before a study starts. It reserves nothing, so each round is
        checked again.
        """
        account = self._account()
        costs = [self._cost(event) for event in events]
        everything = [*(charge.cost for charge in account.charges), *costs]
        held = account.population
        return accounting.fits(everything, held.delta, held.max_epsilon)

    def history(self) -> tuple[Charge, ...]:
        """The population's charges in the order they were reserved."""
        return self._account().charges

    def spent_epsilon(self) -> float:
        """Epsilon of everything reserved or spent, at the population's delta."""
        return self._account().spent_epsilon

    def remaining(self) -> float:
        """As ``Account.remaining``."""
        return self._account().remaining

    def __repr__(self) -> str:
        return f"Budget(site={self.site!r}, population={self._population!r})"

    def _account(self) -> Account:
        return self._opened(self._store.read())

    def _opened(self, state: State) -> Account:
        held = state.populations.get(self._population or "")
        if held is None:
            raise PolicyError(f"{self.site}: open a population of the budget first")
        return Account(self.site, held, state.charges_of(held.name))

    def _charge(self, account: Account, reservation: int) -> Charge:
        for charge in account.charges:
            if charge.reservation == reservation:
                return charge
        raise PolicyError(
            f"{self.site}: population {account.population.name!r} has no reservation "
            f"{reservation}"
        )

    def _cost(self, event: DpEvent) -> DpEvent:
        if self._unit == "site":
            return accounting.replaced_event(event)
        return accounting.group_event(event, self._group)

    def _require(self, account: Account, costs: Sequence[DpEvent]) -> None:
        held = account.population
        before = [charge.cost for charge in account.charges]
        if accounting.fits([*before, *costs], held.delta, held.max_epsilon):
            return
        after = accounting.epsilon([*before, *costs], held.delta)
        raise BudgetExceededError(
            self.site,
            f"population {held.name!r} has spent epsilon "
            f"{account.spent_epsilon:.4g} of {held.max_epsilon:g} and this round would "
            f"raise it to {after:.4g} (delta {held.delta:g}); nothing was spent. Plan "
            "fewer rounds or more noise, or let the site raise max_epsilon",
        )

    def _require_heads(self, state: State, heads: tuple[str, ...]) -> None:
        if missing := set(heads) - state.heads:
            raise BudgetFileError(
                f"{self.path}: the run's ledger knows {len(missing)} reservation(s) "
                "that this budget does not hold, so it is an older copy or another "
                "file. Nothing may be spent until they are added: secfed budget "
                f"reconcile {self.path} --ledger RUN"
            )

    def _group_of(
        self, population: str, kept: Unit, unit: Unit, records_per_person: int | None
    ) -> int:
        try:
            return group_of(population, kept, unit, records_per_person)
        except PolicyError as error:
            raise PolicyError(f"{self.site}: {error}") from error

    def _add_version(self, writer: Writer, population: str, fingerprint: str) -> None:
        for other in writer.state.populations.values():
            if fingerprint in other.versions and other.name != population:
                raise PolicyError(
                    f"{self.site}: these records belong to population {other.name!r}, "
                    f"and another name ({population!r}) would spend their budget "
                    f"twice; write population = {other.name!r} in site.toml"
                )
        if fingerprint not in writer.state.populations[population].versions:
            entry = {"kind": "version", "population": population}
            writer.append(entry | {"fingerprint": fingerprint})

    def _check_limits(
        self, population: str, unit: Unit, max_epsilon: float, delta: float
    ) -> None:
        if not population:
            raise PolicyError(f"{self.site}: a population needs a name")
        if unit not in get_args(Unit):
            raise PolicyError(f"{self.site}: {unit!r} is not a privacy unit")
        if not 0 < max_epsilon < float("inf") or not 0 < delta < 1:
            raise PolicyError(
                f"{self.site}: a budget has a positive, finite max_epsilon and a delta "
                f"in (0, 1), not {max_epsilon!r} and {delta!r}"
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
