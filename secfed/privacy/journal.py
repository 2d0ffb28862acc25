"""The second copy of a budget: one line per entry, and the lock of its writers.

The journal only grows, and it grows after the database: it is the database's
chain or a beginning of it, whatever crashes. An unfinished last line is a write
that was never reported to anyone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from secfed.canonical import canonical_json, parse_canonical
from secfed.errors import PolicyError
from secfed.privacy.chain import Link, rendered, unbroken

__all__ = ["BUSY_SECONDS", "BudgetFileError", "Journal", "damaged", "sync_folder"]

BUSY_SECONDS = 60.0
_POLL_SECONDS = 0.02


class BudgetFileError(PolicyError):
    """The budget file cannot be trusted or used, so nothing may be spent."""


def damaged(path: Path, reason: object) -> BudgetFileError:
    """The error for files that contradict themselves, with the way out."""
    return BudgetFileError(
        f"{path}: the budget cannot be used ({reason}). Nothing may be spent until it "
        "is compared with what is known elsewhere: secfed budget reconcile "
        f"{path} --ledger RUN"
    )


class Journal:
    """The journal beside one budget file.

    Args:
        database: The path of the budget file.
    """

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(f"{database.name}.log")
        self._database = database

    def read(self) -> bytes:
        """Every finished line; takes no lock.

        Raises:
            FileNotFoundError: There is no journal.
            BudgetFileError: It cannot be read.
        """
        try:
            return _finished(self.path.read_bytes())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise damaged(self._database, error.strerror) from error

    @contextmanager
    def locked(self, *, create: bool = False) -> Iterator[int]:
        """Hold the one lock of writers; yields the journal, open for appending.

        Raises:
            BudgetFileError: It is missing (without ``create``), or another
                process holds the lock for too long.
        """
        flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0)
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                descriptor = os.open(self.path, flags, 0o600)
            except OSError as error:
                reason = f"{self.path.name} cannot be opened: {error.strerror}"
                if create:
                    reason = f"it cannot be created: {error.strerror}"
                raise damaged(self._database, reason) from error
            try:
                if self._acquired(descriptor, deadline):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)  # Also releases the lock.

    def extend(self, descriptor: int, links: Sequence[Link]) -> None:
        """Append what the journal, a beginning of ``links``, lacks; and sync.

        Raises:
            BudgetFileError: The disk refuses.
        """
        data = lines_of(descriptor)
        missing = b"".join(map(rendered, links[data.count(b"\n") :]))
        try:
            os.ftruncate(descriptor, len(data))
            while missing:
                missing = missing[os.write(descriptor, missing) :]
            os.fsync(descriptor)
        except OSError as error:
            raise BudgetFileError(
                f"{self.path}: {error.strerror}; what was just reserved counts as spent"
            ) from error

    def compare(self, links: Sequence[Link], lines: bytes) -> None:
        """Check that the journal's lines are a beginning of the database's chain.

        Raises:
            BudgetFileError: The two contradict each other.
        """
        held = lines.splitlines(keepends=True)
        if len(held) > len(links):
            newer = len(held) - len(links)
            raise damaged(
                self._database,
                f"{self.path.name} knows {newer} newer entries: an older copy of the "
                "budget is in its place",
            )
        for link, line in zip(links, held, strict=False):
            if rendered(link) != line:
                raise damaged(
                    self._database,
                    f"entry {link.sequence} is not the same in {self.path.name}",
                )

    def _acquired(self, descriptor: int, deadline: float) -> bool:
        """Wait for the lock; false if the file was replaced meanwhile."""
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BudgetFileError(
                        f"{self._database}: another process has held the budget for "
                        f"{BUSY_SECONDS:.0f} seconds; nothing was spent, try again"
                    ) from None
                time.sleep(_POLL_SECONDS)
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False


def lines_of(descriptor: int) -> bytes:
    """Every finished line of an open journal."""
    return _finished(os.pread(descriptor, os.fstat(descriptor).st_size, 0))


def parsed(lines: bytes) -> tuple[tuple[Link, ...], bool]:
    """The links up to the first line that is wrong, and whether none is."""
    rows = []
    for line in lines.splitlines():
        try:
            held = parse_canonical(line)
            rows.append((held["sequence"], held["head"], canonical_json(held["entry"])))
        except (ValueError, KeyError, TypeError):
            return unbroken(rows)[0], False
    return unbroken(rows)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's list of files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finished(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]
