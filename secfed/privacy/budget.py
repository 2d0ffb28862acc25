"""What a site's populations have spent, on the site's disk, across studies.

One SQLite file holds the events of every population of a site. Events are
reserved before a round's first step and are never returned: after a crash, a
reserved round counts as spent. The file never forgets an event, and a check and
its reservation are one transaction, so that two processes cannot both take the
last of a budget.

Restoring an older copy of the file would reset what was spent. The file cannot
notice this; the signed ledgers of the rounds do.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from secfed.errors import BudgetExceededError, PlanError, PolicyError
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.plan import Unit

__all__ = ["Budget", "BudgetFileError", "Charge", "Population"]

_APPLICATION_ID = 0x73666264  # "sfbd", in the SQLite header.
_FORMAT = 1
_BUSY_SECONDS = 60.0
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
CREATE TABLE site (name TEXT NOT NULL) STRICT;
CREATE TABLE populations (
    name TEXT PRIMARY KEY,
    unit TEXT NOT NULL,
    max_epsilon REAL NOT NULL,
    delta REAL NOT NULL
) STRICT;
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    population TEXT NOT NULL REFERENCES populations (name),
    study_digest TEXT NOT NULL,
    run_id TEXT NOT NULL,
    round INTEGER NOT NULL,
    event TEXT NOT NULL,
    reserved_at TEXT NOT NULL,
    spent_at TEXT,
    UNIQUE (run_id, round)
) STRICT;
CREATE TRIGGER never_forget BEFORE DELETE ON reservations
BEGIN SELECT RAISE(ABORT, 'a reservation is never returned'); END;
CREATE TRIGGER never_rewrite BEFORE UPDATE OF
    id, population, study_digest, run_id, round, event ON reservations
BEGIN SELECT RAISE(ABORT, 'a reservation is never changed'); END;
"""


class BudgetFileError(PolicyError):
    """The budget file cannot be trusted or used, so nothing may be spent."""


@dataclass(frozen=True)
class Population:
    """One declared population and the limits its site last set for it."""

    name: str
    unit: Unit
    max_epsilon: float
    delta: float


@dataclass(frozen=True)
class Charge:
    """One round's event; ``reserved`` and ``spent`` cost the same."""

    reservation: int
    study_digest: str
    run_id: str
    round: int
    event: DpEvent
    state: Literal["reserved", "spent"]
    reserved_at: str


class Budget:
    """The privacy budget of one site.

    Guarantees:
        ``reserve`` returns only after the event is on disk, and only if the
        epsilon of all events of the population, by the reference accountant,
        stays within ``max_epsilon``.

    Args:
        path: The budget file, created with mode 0600 if missing.
        site: The site's name. A file of another site is refused.
        create: Whether a missing file is created.

    Raises:
        BudgetFileError: The file is missing (without ``create``), unreadable,
            damaged, not a budget, or another site's.

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
        if create and not os.path.lexists(self.path):
            self._create()
        self._check_file()

    def open(
        self, population: str, unit: Unit, max_epsilon: float, delta: float
    ) -> Budget:
        """Choose the population that the other methods speak of.

        The limits are the site's own and replace those set before; what was
        spent stays. The unit is fixed when a population is first opened,
        because events for records say nothing about persons.

        Returns:
            This budget.

        Raises:
            PolicyError: The population is kept in another unit, or a limit is
                not valid.
        """
        if not population:
            raise PolicyError(f"{self.site}: a population needs a name")
        if unit not in get_args(Unit):
            raise PolicyError(f"{self.site}: {unit!r} is not a privacy unit")
        if not 0 < max_epsilon < float("inf") or not 0 < delta < 1:
            raise PolicyError(
                f"{self.site}: a budget has a positive, finite max_epsilon and a delta "
                f"in (0, 1), not {max_epsilon!r} and {delta!r}"
            )
        with self._transaction() as database:
            row = _row(
                database, "SELECT unit FROM populations WHERE name=?", population
            )
            if row is not None and row[0] != unit:
                raise PolicyError(
                    f"{self.site}: population {population!r} is kept per {row[0]}, so "
                    f"a study per {unit} cannot draw on it; use a study per {row[0]}"
                )
            database.execute(
                "INSERT INTO populations VALUES (?, ?, ?, ?) ON CONFLICT (name) DO "
                "UPDATE SET max_epsilon = excluded.max_epsilon, delta = excluded.delta",
                (population, unit, float(max_epsilon), float(delta)),
            )
        self._population = population
        return self

    def populations(self) -> tuple[Population, ...]:
        """Every population of this file, by name."""
        with self._connection() as database:
            rows = database.execute("SELECT * FROM populations ORDER BY name")
            return tuple(Population(*row) for row in rows)

    def reserve(
        self, study_digest: str, run_id: str, round_number: int, event: DpEvent
    ) -> int:
        """Pay for one round before its first step.

        Returns:
            The reservation's number, for ``spend``.

        Raises:
            BudgetExceededError: The population's total would pass its limit.
            PolicyError: This round of this run was reserved before. It counts
                as spent and is not repeated; continue with the next round.
            PlanError: The event is not one that the accountant knows.
        """
        encoded = json.dumps(accounting.event_to_json(event), sort_keys=True)
        with self._transaction() as database:
            known = "SELECT id FROM reservations WHERE run_id=? AND round=?"
            if _row(database, known, run_id, round_number) is not None:
                raise PolicyError(
                    f"{self.site}: round {round_number} of run {run_id} was reserved "
                    "before; it counts as spent and is not repeated"
                )
            population = self._opened(database)
            self._require(population, [*self._events(database), event])
            cursor = database.execute(
                "INSERT INTO reservations (population, study_digest, run_id, round, "
                "event, reserved_at) VALUES (?, ?, ?, ?, ?, ?)",
                (population.name, study_digest, run_id, round_number, encoded, _now()),
            )
            reservation = cursor.lastrowid
        if reservation is None:  # SQLite numbers every row; this is for the types.
            raise BudgetFileError(f"{self.path}: the reservation was not stored")
        return reservation

    def spend(self, reservation: int) -> None:
        """Record that a reserved round completed; costs nothing more.

        Raises:
            PolicyError: The population has no such reservation.
        """
        with self._transaction() as database:
            name = self._opened(database).name
            found = database.execute(
                "UPDATE reservations SET spent_at = coalesce(spent_at, ?) "
                "WHERE id = ? AND population = ?",
                (_now(), reservation, name),
            )
            if found.rowcount != 1:
                raise PolicyError(
                    f"{self.site}: population {name!r} has no reservation {reservation}"
                )

    def can_afford(self, events: Sequence[DpEvent]) -> bool:
        """Whether all these events would fit, beside everything spent.

        Asked before a study starts. It reserves nothing, so each round is
        checked again.
        """
        with self._connection() as database:
            population = self._opened(database)
            everything = [*self._events(database), *events]
        return accounting.fits(everything, population.delta, population.max_epsilon)

    def history(self) -> tuple[Charge, ...]:
        """The population's charges in the order they were reserved."""
        with self._connection() as database:
            rows = database.execute(
                "SELECT id, study_digest, run_id, round, event, spent_at, reserved_at "
                "FROM reservations WHERE population = ? ORDER BY id",
                (self._opened(database).name,),
            ).fetchall()
        return tuple(
            Charge(
                reservation=row[0],
                study_digest=row[1],
                run_id=row[2],
                round=row[3],
                event=self._decode(row[4]),
                state="reserved" if row[5] is None else "spent",
                reserved_at=row[6],
            )
            for row in rows
        )

    def spent_epsilon(self) -> float:
        """Epsilon of everything reserved or spent, at the population's delta."""
        with self._connection() as database:
            delta = self._opened(database).delta
            return accounting.epsilon(self._events(database), delta)

    def remaining(self) -> float:
        """The limit less ``spent_epsilon``, at least 0.

        For people. Epsilons do not add up; ask ``can_afford`` what still fits.
        """
        with self._connection() as database:
            limit = self._opened(database).max_epsilon
        return max(0.0, limit - self.spent_epsilon())

    def __repr__(self) -> str:
        return f"Budget(site={self.site!r}, population={self._population!r})"

    def _require(self, population: Population, events: list[DpEvent]) -> None:
        if accounting.fits(events, population.delta, population.max_epsilon):
            return
        before = accounting.epsilon(events[:-1], population.delta)
        after = accounting.epsilon(events, population.delta)
        raise BudgetExceededError(
            self.site,
            f"population {population.name!r} has spent epsilon {before:.4g} of "
            f"{population.max_epsilon:g} and this round would raise it to {after:.4g} "
            f"(delta {population.delta:g}); nothing was spent. Plan fewer rounds or "
            "more noise, or let the site raise max_epsilon",
        )

    def _opened(self, database: sqlite3.Connection) -> Population:
        query = "SELECT * FROM populations WHERE name = ?"
        row = _row(database, query, self._population)
        if row is None:
            raise PolicyError(f"{self.site}: open a population of the budget first")
        return Population(*row)

    def _events(self, database: sqlite3.Connection) -> list[DpEvent]:
        query = "SELECT event FROM reservations WHERE population = ? ORDER BY id"
        rows = database.execute(query, (self._population,)).fetchall()
        return [self._decode(row[0]) for row in rows]

    def _decode(self, event: str) -> DpEvent:
        try:
            return accounting.event_from_json(json.loads(event))
        except (ValueError, PlanError) as error:
            raise self._damaged(error) from error

    def _create(self) -> None:
        """Put a complete new file in place, or leave the one that was faster.

        An empty file at the path is therefore never a new budget.
        """
        try:
            handle, name = tempfile.mkstemp(".new", self.path.name, self.path.parent)
            os.close(handle)  # mkstemp made it with mode 0600.
        except OSError as error:
            raise BudgetFileError(
                f"{self.path}: the budget cannot be created: {error.strerror}"
            ) from error
        try:
            with closing(sqlite3.connect(name)) as database:
                database.executescript(_SCHEMA)
                database.execute("INSERT INTO site VALUES (?)", (self.site,))
                database.commit()
            os.link(name, self.path)
        except FileExistsError:
            pass
        finally:
            Path(name).unlink()
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _check_file(self) -> None:
        if not self.path.is_file():
            raise BudgetFileError(f"{self.path}: there is no budget file here")
        if self.path.stat().st_size == 0:
            raise BudgetFileError(
                f"{self.path}: the budget file is empty; restore it from a copy"
            )
        with self._connection() as database:
            header = (
                database.execute("PRAGMA application_id").fetchone()[0],
                database.execute("PRAGMA user_version").fetchone()[0],
            )
            if header != (_APPLICATION_ID, _FORMAT):
                raise BudgetFileError(
                    f"{self.path}: not a budget file of format {_FORMAT}"
                )
            state = database.execute("PRAGMA integrity_check").fetchone()[0]
            if state != "ok":
                raise self._damaged(state)
            owner = _row(database, "SELECT name FROM site")
        if owner != (self.site,):
            name = owner[0] if owner else "nobody"
            raise BudgetFileError(
                f"{self.path}: this is the budget of {name!r}, not of {self.site!r}"
            )
        self.path.chmod(0o600)

    def _damaged(self, reason: object) -> BudgetFileError:
        return BudgetFileError(
            f"{self.path}: the budget file cannot be read ({reason}); nothing may be "
            "spent until it is restored from a copy"
        )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # A connection per operation: nothing is shared by threads or forks.
        # Mode rw does not create a file that has been removed meanwhile.
        location = f"{self.path.resolve().as_uri()}?mode=rw"
        try:
            with closing(
                sqlite3.connect(
                    location, timeout=_BUSY_SECONDS, isolation_level=None, uri=True
                )
            ) as database:
                # FULL, and a directory sync when the rollback journal goes:
                # without it a power cut can bring the journal back and undo a
                # reservation that was already reported.
                database.execute("PRAGMA synchronous = EXTRA")
                database.execute("PRAGMA foreign_keys = ON")
                yield database
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise BudgetFileError(
                    f"{self.path}: another process has held the budget for "
                    f"{_BUSY_SECONDS:.0f} seconds; nothing was spent, try again"
                ) from error
            raise self._damaged(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as database:
            # The write lock is taken before reading: check and insert are one.
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


def _row(database: sqlite3.Connection, query: str, *values: object) -> Any:
    return database.execute(query, values).fetchone()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
