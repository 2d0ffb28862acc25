"""The files of a budget: a database and its journal.

``budget.sqlite`` (SQLite, WAL, synchronous = FULL) holds the chain of entries;
``budget.sqlite.log`` holds the same entries, one per line. A write goes to the
database, then to the journal, and only then returns. Whatever crashes, the
journal is therefore a beginning of the database. Any other difference is damage,
or one of the two is an older copy, and nothing is written until a person has
looked (``secfed.privacy.salvage``).

Writers hold the journal's lock from the first read to the last write. Readers
hold none: they read the journal first, which can only be behind.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json, parse_canonical
from secfed.privacy import migration
from secfed.privacy.chain import (
    Entry,
    Link,
    State,
    add_up,
    extended,
    rendered,
    unbroken,
)
from secfed.privacy.journal import (
    BUSY_SECONDS,
    BudgetFileError,
    Journal,
    damaged,
    lines_of,
    sync_folder,
)

__all__ = ["BudgetStore", "Writer", "build_database", "read_links"]

_APPLICATION_ID = 0x73666264  # "sfbd", in the SQLite header.
_FORMAT = 2
_SALT_BYTES = 32
_MAGIC = b"SQLite format 3\0"
_TABLES = {
    "log": "CREATE TABLE log (sequence INTEGER PRIMARY KEY, head TEXT NOT NULL, "
    "entry TEXT NOT NULL) STRICT",
    "never_forget": "CREATE TRIGGER never_forget BEFORE DELETE ON log "
    "BEGIN SELECT RAISE(ABORT, 'an entry is never removed'); END",
    "never_rewrite": "CREATE TRIGGER never_rewrite BEFORE UPDATE ON log "
    "BEGIN SELECT RAISE(ABORT, 'an entry is never changed'); END",
}


class Writer:
    """The entries of one transaction."""

    def __init__(self, links: Sequence[Link], state: State) -> None:
        self.links = list(links)
        self.state = state
        self._before = len(links)

    @property
    def new(self) -> list[Link]:
        """What this transaction adds."""
        return self.links[self._before :]

    def append(self, entry: Entry) -> Link:
        """Add one entry; it is checked against those before it."""
        link = extended(self.links, entry)
        self.state = add_up([*self.links, link])
        self.links.append(link)
        return link


class BudgetStore:
    """The two files of one budget.

    Guarantees:
        What ``transaction`` added is in both files when it returns.
        Every read checks that the journal is a beginning of the database, and
        that the database still begins with what this object saw before.

    Args:
        path: The database; the journal stands beside it.
        site: Whose budget it must be; None accepts any, for reading.
        create: Whether missing files are created.

    Raises:
        BudgetFileError: The files are missing (without ``create``), damaged, no
            budget, of another site, of a newer format, or contradict each other.
    """

    def __init__(self, path: Path, site: str | None, *, create: bool = False) -> None:
        self.path = path
        self.journal = Journal(path)
        self._site = site
        self._seen: Link | None = None
        if create and site is not None and not os.path.lexists(path):
            self._create(site)
        if not path.is_file():
            raise BudgetFileError(f"{path}: there is no budget file here")
        if path.stat().st_size == 0:
            raise damaged(path, "it is empty")
        with path.open("rb") as file:
            database = file.read(len(_MAGIC)) == _MAGIC
        if not database and not self.journal.path.exists():
            raise BudgetFileError(f"{path}: not a budget file, and not a database")

    def prepare(self) -> None:
        """Migrate an older format; make both files private to their owner."""
        if self._format() == 1:
            self._migrate()
        self.read()
        with _connection(self.path) as database:
            database.execute("PRAGMA journal_mode = WAL")  # As a rule it is already.
        for path in (self.path, self.journal.path):
            path.chmod(0o600)

    def read(self) -> State:
        """What the entries add up to; changes nothing, also in an older format."""
        lines = self._journal_lines()
        with _connection(self.path) as database:
            database.execute("PRAGMA query_only = ON")
            _check_whole(self.path, database)
            if _checked_header(self.path, database) == 1:
                return self._state(self._migrated(database, lines))
            return self._state(self._links(database, lines))

    @contextmanager
    def transaction(self) -> Iterator[Writer]:
        """Check, then add entries to both files, or to none when it raises."""
        with self.journal.locked() as descriptor, _connection(self.path) as database:
            if _checked_header(self.path, database) != _FORMAT:
                raise damaged(self.path, "an older file is in its place")
            with _committed(database):
                links = self._links(database, lines_of(descriptor))
                writer = Writer(links, self._state(links))
                yield writer
                _insert(database, writer.new)
            self._seen = writer.links[-1]
            self.journal.extend(descriptor, writer.links)

    def _links(self, database: sqlite3.Connection, lines: bytes) -> tuple[Link, ...]:
        """The chain of the database, compared with the journal and with memory."""
        links, whole = read_links(database)
        if not whole:
            raise damaged(
                self.path, f"entry {len(links)} does not follow the one before"
            )
        self.journal.compare(links, lines)
        seen = self._seen
        if seen is not None and links[seen.sequence : seen.sequence + 1] != (seen,):
            raise damaged(self.path, "it was replaced by an older copy during this run")
        self._seen = links[-1]
        return links

    def _state(self, links: Sequence[Link]) -> State:
        try:
            state = add_up(links)
        except ValueError as error:
            raise damaged(self.path, error) from error
        if self._site not in (None, state.site):
            raise BudgetFileError(
                f"{self.path}: this is the budget of {state.site!r}, not of "
                f"{self._site!r}"
            )
        return state

    def _format(self) -> int:
        with _connection(self.path) as database:
            return _checked_header(self.path, database)

    def _journal_lines(self) -> bytes:
        try:
            return self.journal.read()
        except FileNotFoundError:
            if self._format() == 1:
                return b""
            raise damaged(self.path, f"{self.journal.path.name} is missing") from None

    def _create(self, site: str) -> None:
        """Make both files, the journal first; an interrupted creation is taken up."""
        with self.journal.locked(create=True) as descriptor:
            if os.path.lexists(self.path):
                return  # Another process was faster.
            lines = lines_of(descriptor)
            if lines.count(b"\n") > 1:
                reason = (
                    f"it is missing, and {self.journal.path.name} knows its entries"
                )
                raise damaged(self.path, reason)
            links = _chain(site, _salt(lines), [])
            self.journal.extend(descriptor, links)
            build_database(self.path, links)

    def _migrate(self) -> None:
        """Format 1 to 2 in one transaction; the journal is written before it ends."""
        with (
            self.journal.locked(create=True) as descriptor,
            _connection(self.path) as database,
            _committed(database),
        ):
            if _checked_header(self.path, database) == 1:
                links = self._migrated(database, lines_of(descriptor))
                self._state(links)
                self.journal.extend(descriptor, links)
                migration.drop_former(database)
                _create_tables(database)
                _insert(database, links)
        sync_folder(self.path.parent)

    def _migrated(self, database: sqlite3.Connection, lines: bytes) -> list[Link]:
        """The chain of a file of format 1; a journal can only be an unfinished one."""
        try:
            site, entries = migration.read_former(database)
        except ValueError as error:
            raise damaged(self.path, error) from error
        links = _chain(site, _salt(lines), entries)
        if not b"".join(map(rendered, links)).startswith(lines):
            raise damaged(self.path, "it is an older copy, from before its migration")
        return links


def read_links(database: sqlite3.Connection) -> tuple[tuple[Link, ...], bool]:
    """The chain up to the first entry that is wrong, and whether none is."""
    rows = []
    try:
        query = "SELECT sequence, head, entry FROM log ORDER BY sequence"
        for sequence, head, entry in database.execute(query):
            rows.append((sequence, head, entry.encode()))
    except (sqlite3.Error, UnicodeError, AttributeError):
        return unbroken(rows)[0], False  # What was read before the damage counts.
    links, whole = unbroken(rows)
    return links, whole and bool(links)


def build_database(path: Path, links: Sequence[Link]) -> None:
    """Put a complete database in place, or leave the one that is there.

    An empty file at the path is therefore never a new budget.
    """
    handle, name = tempfile.mkstemp(".new", path.name, path.parent)
    os.close(handle)  # mkstemp made it with mode 0600.
    try:
        with closing(sqlite3.connect(name, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            with _committed(database):
                _create_tables(database)
                _insert(database, links)
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()
    sync_folder(path.parent)


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    # A connection per operation: nothing is shared by threads or forks.
    # Mode rw does not create a file that has been removed meanwhile.
    location = f"{path.resolve().as_uri()}?mode=rw"
    try:
        with closing(
            sqlite3.connect(
                location, timeout=BUSY_SECONDS, isolation_level=None, uri=True
            )
        ) as database:
            # Every commit waits until the disk has it (sqlite.org/wal.html).
            database.execute("PRAGMA synchronous = FULL")
            yield database
    except (sqlite3.Error, UnicodeError) as error:
        raise damaged(path, error) from error


@contextmanager
def _committed(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _checked_header(path: Path, database: sqlite3.Connection) -> int:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise BudgetFileError(f"{path}: not a budget file")
    if version > _FORMAT:
        raise BudgetFileError(
            f"{path}: this budget has format {version} and this version of secfed "
            f"knows {_FORMAT} at most; use the newer secfed that wrote it"
        )
    if version < 1:
        raise damaged(path, f"it says format {version}")
    return int(version)


def _check_whole(path: Path, database: sqlite3.Connection) -> None:
    (state,) = database.execute("PRAGMA integrity_check").fetchone()
    if state != "ok":
        raise damaged(path, state)
    tables = database.execute("SELECT name, sql FROM sqlite_master")
    found = {name: sql for name, sql in tables if not name.startswith("sqlite_")}
    if _checked_header(path, database) == _FORMAT and found != _TABLES:
        raise damaged(path, "its tables or triggers were changed")


def _create_tables(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {_FORMAT}")
    for statement in _TABLES.values():
        database.execute(statement)


def _insert(database: sqlite3.Connection, links: Sequence[Link]) -> None:
    rows = [(x.sequence, x.head, canonical_json(x.entry).decode()) for x in links]
    database.executemany("INSERT INTO log VALUES (?, ?, ?)", rows)


def _salt(lines: bytes) -> str:
    """That of an unfinished attempt, or a fresh one."""
    try:
        first: Any = parse_canonical(lines.split(b"\n")[0])
        return str(first["entry"]["salt"])
    except (ValueError, KeyError, TypeError):
        return secrets.token_hex(_SALT_BYTES)


def _chain(site: str, salt: str, entries: Sequence[Entry]) -> list[Link]:
    """A chain from its first entry on."""
    first = {"kind": "store", "format": _FORMAT, "site": site, "salt": salt}
    links: list[Link] = []
    for entry in [first, *entries]:
        links.append(extended(links, entry))
    return links
