"""How budget files of format 1 become entries of format 2.

Format 1 had a table of populations and one of reservations. Its reservations
keep their order and their events; there is nothing in it to check them against.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from secfed.errors import PlanError
from secfed.privacy import accounting
from secfed.privacy.chain import Entry

__all__ = ["drop_former", "read_former"]


def read_former(database: sqlite3.Connection) -> tuple[str, list[Entry]]:
    """The site and the entries of a file of format 1.

    Raises:
        ValueError: A row does not hold what that format promised.
    """
    owner = database.execute("SELECT name FROM site").fetchall()
    if len(owner) != 1:
        raise ValueError("it does not name one site")
    entries: list[Entry] = []
    for name, unit, max_epsilon, delta in database.execute(
        "SELECT name, unit, max_epsilon, delta FROM populations ORDER BY rowid"
    ):
        entries.append(
            {
                "kind": "population",
                "name": name,
                "unit": unit,
                "max_epsilon": max_epsilon,
                "delta": delta,
            }
        )
    for row in database.execute(
        "SELECT population, study_digest, run_id, round, event, reserved_at, spent_at "
        "FROM reservations ORDER BY id"
    ):
        entries.append(_reservation(row))
        if row[6] is not None:
            # Entry 0 is the store's, so the reservation's number is the length.
            entries.append({"kind": "spend", "reservation": len(entries), "at": row[6]})
    return str(owner[0][0]), entries


def drop_former(database: sqlite3.Connection) -> None:
    """Remove the tables of format 1, inside the caller's transaction."""
    for table in ("reservations", "populations", "site"):
        database.execute(f"DROP TABLE {table}")


def _reservation(row: tuple[Any, ...]) -> Entry:
    population, study_digest, run_id, number, event, reserved_at, _ = row
    try:
        known = accounting.event_from_json(json.loads(event))
    except PlanError as error:
        raise ValueError(str(error)) from error
    return {
        "kind": "reserve",
        "population": population,
        "study_digest": study_digest,
        "run_id": run_id,
        "round": number,
        "event": accounting.event_to_json(known),
        "group": 1,
        "at": reserved_at,
    }
