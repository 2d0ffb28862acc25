"""Make a budget usable again, from both its files and from what others know.

Nothing that any of them knows to be reserved is lost: the longer of the two
chains is kept, and every other reservation is added to it as a new entry that
names the head it replaces. So a salvage can only raise what was spent.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from secfed.errors import PolicyError
from secfed.privacy.chain import (
    Charge,
    Link,
    Population,
    Receipt,
    State,
    add_up,
    extended,
    fresh_nonce,
    rendered,
)
from secfed.privacy.events import REPLACED
from secfed.privacy.journal import (
    BudgetFileError,
    Journal,
    lines_of,
    parsed,
    sync_folder,
)
from secfed.privacy.store import build_database, read_links

__all__ = ["Salvage", "salvage"]

_SQLITE_FILES = ("", "-wal", "-shm")


@dataclass(frozen=True)
class Salvage:
    """What a salvage did.

    Attributes:
        site: Whose budget it is.
        added: Reservations that the budget had lost, now counted as spent.
        set_aside: The files as they were before; empty when nothing changed.
    """

    site: str
    added: tuple[Charge, ...]
    set_aside: tuple[Path, ...]


def salvage(path: Path, receipts: Callable[[str], Sequence[Receipt]]) -> Salvage:
    """Rebuild both files of a budget so that they hold everything known.

    1. read what follows unbroken from the first entry, in either file;
    2. keep the longer chain and add what only the other or a receipt knows;
    3. if anything differs, set the files aside and put whole ones in place.

    Args:
        path: The database of the budget.
        receipts: Given the site's name, the reservations of that site which
            ledgers and receipts know.

    Raises:
        BudgetFileError: Neither file can be read from its beginning.
        PolicyError: It is not clear how a reservation is to be charged.
    """
    journal = Journal(path)
    if not path.is_file() and not journal.path.is_file():
        raise BudgetFileError(f"{path}: there is no budget here")
    with journal.locked(create=True) as descriptor:
        # 1
        in_database, database_whole = _in_database(path)
        in_journal, journal_whole = parsed(lines_of(descriptor))
        older = len(in_database) < len(in_journal)
        links = list(in_journal if older else in_database)
        state = _readable(path, links)
        # 2
        of_files = [
            charge.receipt()
            for chain in (in_database, in_journal)
            if chain
            for charge in add_up(chain).charges
        ]
        added = _extend(links, [*of_files, *receipts(state.site)])
        # 3
        whole = database_whole and journal_whole and list(in_database) == links
        if whole and list(in_journal) == links[: len(in_journal)]:
            return Salvage(state.site, (), ())
        aside = _replace(path, journal, links)
    charges = {charge.reservation: charge for charge in add_up(links).charges}
    return Salvage(state.site, tuple(charges[number] for number in added), aside)


def _in_database(path: Path) -> tuple[tuple[Link, ...], bool]:
    location = f"{path.resolve().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(location, uri=True)) as database:
            links, whole = read_links(database)
            (state,) = database.execute("PRAGMA integrity_check").fetchone()
            return links, whole and state == "ok"
    except (sqlite3.Error, UnicodeError):
        return (), False


def _readable(path: Path, links: Sequence[Link]) -> State:
    try:
        return add_up(links)
    except ValueError as error:
        raise BudgetFileError(
            f"{path}: neither this file nor its journal can be read from the beginning "
            f"({error}). Move both away, start a run (it makes new ones and refuses to "
            "spend), and reconcile these with the ledgers of all runs on these people"
        ) from error


def _extend(links: list[Link], receipts: Sequence[Receipt]) -> list[int]:
    """Add every reservation that the chain does not know; returns their numbers."""
    state = add_up(links)
    known = set(state.heads)
    added = []
    for receipt in receipts:
        if receipt.head in known:
            continue
        known.add(receipt.head)
        population = _population_of(receipt, state)
        entry = {
            "kind": "reserve",
            "population": population.name,
            "study_digest": receipt.study_digest,
            "run_id": receipt.run_id,
            "round": receipt.round,
            "event": dict(receipt.event),
            "group": _group_of(receipt, population, state),
            "unit": receipt.unit,
            "at": _now(),
            "nonce": fresh_nonce(),
            "replaces": receipt.head,
        }
        added.append(len(links))
        links.append(extended(links, entry))
        spent = {"kind": "spend", "reservation": added[-1], "at": entry["at"]}
        links.append(extended(links, spent))
    return added


def _population_of(receipt: Receipt, state: State) -> Population:
    """The one that the receipt names, that its run drew on, or the only one."""
    of_run = {c.population for c in state.charges if c.run_id == receipt.run_id}
    names = (
        {receipt.population} if receipt.population else of_run or {*state.populations}
    )
    held = [state.populations[name] for name in names if name in state.populations]
    if len(held) != 1:
        raise PolicyError(
            f"round {receipt.round} of run {receipt.run_id} is not in the budget, and "
            "nothing says which population of this site it belongs to; reconcile with "
            "the run directory that holds private/"
        )
    return held[0]


def _group_of(receipt: Receipt, population: Population, state: State) -> int:
    """How many units' worth each event is charged for."""
    if receipt.group is not None:
        return receipt.group
    if receipt.unit == "site":
        return REPLACED
    if receipt.unit in (None, population.unit):
        return 1
    held = state.charges_of(population.name)
    groups = [c.group for c in held if c.group > 1 and c.unit != "site"]
    if population.unit == "person" and groups:
        return max(groups)
    raise PolicyError(
        f"run {receipt.run_id} protects each {receipt.unit} and the population "
        f"{population.name!r} is kept per {population.unit}; reconcile with the run "
        "directory that holds private/"
    )


def _replace(path: Path, journal: Journal, links: Sequence[Link]) -> tuple[Path, ...]:
    """Put new files in place, the journal first.

    A crash in between leaves a journal that is newer than the database: the
    budget stays refused, and a second salvage ends this one.
    """
    stamp = datetime.now(UTC).strftime("before-%Y%m%dT%H%M%S.%fZ")
    aside = []
    database_files = [path.with_name(f"{path.name}{end}") for end in _SQLITE_FILES]
    for file in (*database_files, journal.path):
        if file.is_file() and file.stat().st_size:
            aside.append(file.with_name(f"{file.name}.{stamp}"))
            shutil.copy2(file, aside[-1])
    rebuilt = path.with_name(f"{path.name}.{stamp}.new")
    build_database(rebuilt, links)
    lines = journal.path.with_name(f"{journal.path.name}.{stamp}.new")
    lines.touch(mode=0o600, exist_ok=False)
    with lines.open("wb") as target:
        target.write(b"".join(map(rendered, links)))
        target.flush()
        os.fsync(target.fileno())
    lines.replace(journal.path)
    sync_folder(path.parent)
    for stale in database_files[1:]:
        stale.unlink(missing_ok=True)
    rebuilt.replace(path)
    sync_folder(path.parent)
    return tuple(aside)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
