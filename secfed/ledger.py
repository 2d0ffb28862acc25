"""The append-only record of a run: one signed line per entry, leaves of one tree.

A line is a DSSE envelope (``secfed.attestations``); bodies are described in
``secfed.entries``. Entry 0 is the study. Each entry names its index and the leaf hash
of the line before, 64 zeros in entry 0, so that what was rewritten, moved or left out
is found by its number. Cutting entries off the end is shown by the checkpoint,
the signed head of the tree over all lines (``secfed.checkpoints``). Times are what the
coordinator's clock said, and prove nothing. docs/ledger.md says who checks what.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from securesystemslib.signer import Key, Signer

from protocols import merkle
from secfed.attestations import (
    CoordinatorSigner,
    Statement,
    coordinator_key,
    open_line,
    parse_line,
    read_keys,
    seal_line,
)
from secfed.checkpoints import Checkpoint, log_origin, sign_checkpoint
from secfed.entries import Body, StudyEntry, parse_body
from secfed.errors import LedgerError, RunDirectoryError, VerificationError
from secfed.notes import Note
from secfed.signing import CoordinatorKey

__all__ = [
    "CHECKPOINT_NAME",
    "GENESIS",
    "LEDGER_NAME",
    "Entry",
    "Ledger",
    "origin_of",
    "signer_of",
    "split_lines",
    "tree_head",
    "verify_entries",
]

LEDGER_NAME = "ledger.jsonl"
CHECKPOINT_NAME = "ledger.checkpoint"

GENESIS = "0" * 64
"""What entry 0 names as the entry before it."""


@dataclass(frozen=True)
class Entry:
    """One verified entry. ``body`` is its JSON object; do not change it.

    ``digest`` is the leaf hash of its line, hex; ``previous`` that of the line before.
    """

    index: int
    kind: str
    time: str
    body: Mapping[str, Any]
    previous: str
    digest: str

    def parsed(self) -> Body:
        """The body as its type of ``secfed.entries``."""
        return parse_body(self.kind, self.body)


def split_lines(data: bytes) -> list[bytes]:
    """A ledger file's lines without their newlines.

    Raises:
        LedgerError: The last line is incomplete.
    """
    lines = data.split(b"\n")
    if lines.pop():
        raise LedgerError(len(lines), "the line is incomplete")
    return lines


def signer_of(lines: Sequence[bytes]) -> bytes:
    """The coordinator's key as entry 0 names it; whether it is the right one is open.

    Raises:
        LedgerError: Entry 0 is not there or not that of a run.
    """
    try:
        first = parse_line(lines[0]) if lines else None
        if first is None or first.kind != StudyEntry.kind:
            raise LedgerError(0, "not a ledger of a run")
        return bytes.fromhex(first.body["coordinator_key"])
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(0, f"not a ledger of a run: {error}") from error


def origin_of(study: StudyEntry) -> str:
    """The name of the log that begins with this entry."""
    return log_origin(study.study_digest, study.run_id)


def tree_head(lines: Sequence[bytes], study: StudyEntry) -> Checkpoint:
    """The head of the tree over a ledger's lines."""
    return Checkpoint(origin_of(study), len(lines), merkle.root(lines))


def verify_entries(lines: Iterable[bytes], public_key: bytes) -> tuple[Entry, ...]:
    """Check every line of a ledger and return its entries.

    1. The line is the one encoding of an envelope that the coordinator signed, and
       everybody whom entry 0 names beside it.
    2. Its index is its position and ``previous`` the leaf hash of the line before.
    3. Its time and body have the form that its kind asks for; entry 0 is the study.
    4. Its subjects are that study and the files that the body names.

    Args:
        lines: The lines in file order, without newlines.
        public_key: The coordinator's raw Ed25519 public key.

    Raises:
        LedgerError: Names the first entry that fails, and why.
    """
    entries: list[Entry] = []
    keys: tuple[Key, ...] | None = None
    for index, line in enumerate(lines):
        try:
            keys = keys or (coordinator_key(public_key), *_further_keys(line))
            entries.append(_verified(line, index, keys, entries))
        except (ValueError, VerificationError) as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(index, str(error)) from error
    return tuple(entries)


def _further_keys(line: bytes) -> tuple[Key, ...]:
    return read_keys(parse_line(line).body.get("also_signed_by"))


def _verified(
    line: bytes, index: int, keys: Sequence[Key], before: Sequence[Entry]
) -> Entry:
    # 1
    statement = open_line(line, keys)
    # 2
    if statement.index != index:
        raise LedgerError(index, f"this line says that it is entry {statement.index}")
    if statement.previous != (before[-1].digest if before else GENESIS):
        raise LedgerError(index, "it does not follow the entry before it")
    # 3
    _check_time(statement.time)
    body = parse_body(statement.kind, statement.body)
    if (index == 0) != isinstance(body, StudyEntry):
        raise LedgerError(index, "entry 0 is the study, and no other is")
    # 4
    study = str((before[0].body if before else statement.body)["study_digest"])
    if statement.subjects != _subjects(study, body):
        raise LedgerError(index, "it is not about the files that it names")
    return _entry(statement, line)


def _subjects(study_digest: str, body: Body) -> Mapping[str, str]:
    return {"study": study_digest, **body.files()}


def _entry(statement: Statement, line: bytes) -> Entry:
    return Entry(
        index=statement.index,
        kind=statement.kind,
        time=statement.time,
        body=statement.body,
        previous=statement.previous,
        digest=merkle.leaf_hash(line).hex(),
    )


class Ledger:
    """A ledger file open for appending by one process.

    Guarantees:
        An entry that ``append`` returned is on the disk, and no later call
        changes it. A failed ``append`` leaves the file as it was.

    Args:
        path: The file; it is created when it does not exist.
        key: The coordinator's key; existing entries must be signed by it.
        also: Who signs every entry beside the coordinator; entry 0 names them.

    Raises:
        LedgerError: An existing entry does not verify. Only an incomplete last
            line, which a crash leaves behind, is cut off instead.
        RunDirectoryError: Another process has the ledger open.
    """

    def __init__(
        self, path: Path, key: CoordinatorKey, also: Sequence[Signer] = ()
    ) -> None:
        self._path = path
        self._key = key
        further = sorted(also, key=lambda signer: signer.public_key.keyid)
        self._signers: tuple[Signer, ...] = (CoordinatorSigner(key), *further)
        self._size = 0
        self._lines: tuple[bytes, ...] = ()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o644)
        try:
            self._lock()
            self._entries = self._recover()
            _sync_directory(path.parent)
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, kind: str, body: Mapping[str, Any], time: str) -> Entry:
        """Sign an entry, write it and wait until the disk has it.

        Args:
            kind: One of ``secfed.entries.KINDS``.
            body: The entry's JSON object, usually from ``to_body()``.
            time: The time to record, ISO 8601 in UTC, for example
                ``2026-03-01T12:00:00Z``.

        Raises:
            LedgerError: The body or the time is malformed; nothing was written.
            OSError: The disk refused; the file is as it was.
        """
        if os.fstat(self._descriptor).st_size != self._size:
            # A signal came between writing an entry and remembering it.
            self._entries = self._recover()
        try:
            line = self._sealed(kind, body, time)
        except (ValueError, VerificationError) as error:
            raise LedgerError(len(self._lines), f"not written: {error}") from error
        self._write(line + b"\n")
        self._lines = (*self._lines, line)
        self._entries = (*self._entries, _entry(parse_line(line), line))
        self._size = os.fstat(self._descriptor).st_size
        return self._entries[-1]

    def _sealed(self, kind: str, body: Mapping[str, Any], time: str) -> bytes:
        _check_time(time)
        parsed = parse_body(kind, body)
        first = self._entries[0].body if self._entries else body
        if (not self._entries) != isinstance(parsed, StudyEntry):
            raise ValueError("entry 0 is the study, and no other is")
        statement = Statement(
            index=len(self._entries),
            kind=kind,
            time=time,
            body=body,
            previous=self._entries[-1].digest if self._entries else GENESIS,
            subjects=_subjects(str(first["study_digest"]), parsed),
        )
        line = seal_line(statement, self._signers)
        # A signer that signs wrongly is found before its line is on the disk.
        keys = tuple(signer.public_key for signer in self._signers)
        open_line(line, keys)
        if keys[1:] == _further_keys(self._lines[0] if self._lines else line):
            return line
        raise ValueError("entry 0 does not name everybody who signs, or others")

    def entries(self) -> tuple[Entry, ...]:
        """Everything recorded so far, in order."""
        return self._entries

    def lines(self) -> tuple[bytes, ...]:
        """The leaves of the tree: the lines of the file, without newlines."""
        return self._lines

    def checkpoint(self) -> Note:
        """The tree's head with the coordinator's signature; needs entry 0."""
        study = self._entries[0].parsed()
        if not isinstance(study, StudyEntry):
            raise LedgerError(0, "not a ledger of a run")
        return sign_checkpoint(tree_head(self._lines, study), self._key)

    def close(self) -> None:
        """Let other processes have the file. Appending afterwards fails."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{self._path}: another process is writing this ledger; "
                f"wait until it ends"
            ) from error

    def _recover(self) -> tuple[Entry, ...]:
        data = self._path.read_bytes()
        complete = data.rfind(b"\n") + 1
        lines = split_lines(data[:complete])
        entries = verify_entries(lines, self._key.public_bytes)
        # Without its newline the last line was never acknowledged to anyone.
        if complete != len(data):
            os.ftruncate(self._descriptor, complete)
            os.fsync(self._descriptor)
        self._size, self._lines = complete, tuple(lines)
        return entries

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except BaseException:
            os.ftruncate(self._descriptor, before)
            raise


def _check_time(text: str) -> None:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError as error:
        raise ValueError("the time is not ISO 8601") from error
    if offset != timedelta(0):
        raise ValueError("the time is not in UTC")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
