"""The append-only record of a run: one signed line per entry, chained by digests.

A line is the canonical JSON of

    {"body": …, "digest": …, "index": 0, "kind": …, "previous": …,
     "signature": …, "time": "2026-03-01T12:00:00Z"}

followed by a newline. ``digest`` is the SHA-256 of the canonical JSON of body,
index, kind, previous and time; ``previous`` is the digest of the entry before,
64 zeros in entry 0; ``signature`` is the coordinator's over the same bytes that
are digested. Bodies are described in ``secfed.entries``.

The chain shows rewriting, reordering and gaps. Cutting entries off the end is
shown by the head in the manifest, not by the chain. Times are what the
coordinator's clock said, and prove nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from secfed.canonical import canonical_json, parse_canonical, sha256_hex
from secfed.entries import Body, parse_body
from secfed.errors import LedgerError, RunDirectoryError, VerificationError
from secfed.signing import LEDGER_ENTRY, CoordinatorKey, verify_signature

__all__ = ["GENESIS", "Entry", "Ledger", "head", "split_lines", "verify_entries"]

GENESIS = "0" * 64
"""What entry 0 names as the entry before it."""

_FIELDS = {"body", "digest", "index", "kind", "previous", "signature", "time"}


@dataclass(frozen=True)
class Entry:
    """One verified entry. ``body`` is its JSON object; do not change it."""

    index: int
    kind: str
    time: str
    body: Mapping[str, Any]
    previous: str
    digest: str
    signature: str

    def parsed(self) -> Body:
        """The body as its type of ``secfed.entries``."""
        return parse_body(self.kind, self.body)


def head(entries: Iterable[Entry]) -> str:
    """The digest of the last entry, ``GENESIS`` when there is none."""
    last = GENESIS
    for entry in entries:
        last = entry.digest
    return last


def split_lines(data: bytes) -> list[bytes]:
    """A ledger file's lines without their newlines.

    Raises:
        LedgerError: The last line is incomplete.
    """
    lines = data.split(b"\n")
    if lines.pop():
        raise LedgerError(len(lines), "the line is incomplete")
    return lines


def verify_entries(lines: Iterable[bytes], public_key: bytes) -> tuple[Entry, ...]:
    """Check every line of a ledger and return its entries.

    1. The line is canonical JSON with exactly the fields of an entry.
    2. Its index is its position and ``previous`` the digest of the entry before.
    3. Its digest is that of its content.
    4. The coordinator signed it.
    5. Its time and body have the form that its kind asks for.

    Args:
        lines: The lines in file order, without newlines.
        public_key: The coordinator's raw Ed25519 public key.

    Raises:
        LedgerError: Names the first entry that fails, and why.
    """
    entries: list[Entry] = []
    previous = GENESIS
    for index, line in enumerate(lines):
        entry = _verify_line(line, index, previous, public_key)
        entries.append(entry)
        previous = entry.digest
    return tuple(entries)


def _verify_line(line: bytes, index: int, previous: str, public_key: bytes) -> Entry:
    # 1
    entry = _parse_line(line, index)
    # 2
    if entry.index != index:
        raise LedgerError(index, f"this line says that it is entry {entry.index}")
    if entry.previous != previous:
        raise LedgerError(index, "it does not follow the entry before it")
    # 3
    content = _content(entry.index, entry.kind, entry.time, entry.body, entry.previous)
    if sha256_hex(content) != entry.digest:
        raise LedgerError(index, "the digest is not that of its content")
    # 4
    try:
        verify_signature(public_key, LEDGER_ENTRY, content, _signature(entry))
    except (ValueError, VerificationError) as error:
        raise LedgerError(index, f"wrongly signed: {error}") from error
    # 5
    try:
        _check_time(entry.time)
        entry.parsed()
    except ValueError as error:
        raise LedgerError(index, str(error)) from error
    return entry


def _parse_line(line: bytes, index: int) -> Entry:
    try:
        value = parse_canonical(line)
    except ValueError as error:
        raise LedgerError(index, f"not canonical JSON: {error}") from error
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise LedgerError(index, "the fields are not those of an entry")
    if type(value["index"]) is not int or not isinstance(value["body"], dict):
        raise LedgerError(index, "the index or the body has the wrong type")
    texts = _FIELDS - {"index", "body"}
    if any(not isinstance(value[name], str) for name in texts):
        raise LedgerError(index, "a field that should be text is not")
    return Entry(**value)


def _signature(entry: Entry) -> bytes:
    signature = bytes.fromhex(entry.signature)
    if signature.hex() != entry.signature:
        raise ValueError("not lowercase hexadecimal")
    return signature


class Ledger:
    """A ledger file open for appending by one process.

    Guarantees:
        An entry that ``append`` returned is on the disk, and no later call
        changes it. A failed ``append`` leaves the file as it was.

    Args:
        path: The file; it is created when it does not exist.
        key: The coordinator's key; existing entries must be signed by it.

    Raises:
        LedgerError: An existing entry does not verify. Only an incomplete last
            line, which a crash leaves behind, is cut off instead.
        RunDirectoryError: Another process has the ledger open.
    """

    def __init__(self, path: Path, key: CoordinatorKey) -> None:
        self._path = path
        self._key = key
        self._size = 0
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
        index = len(self._entries)
        previous = head(self._entries[-1:])
        try:
            _check_time(time)
            parse_body(kind, body)
            content = _content(index, kind, time, body, previous)
        except ValueError as error:
            raise LedgerError(index, f"not written: {error}") from error
        fields = parse_canonical(content) | {
            "digest": sha256_hex(content),
            "signature": self._key.sign(LEDGER_ENTRY, content).hex(),
        }
        self._write(canonical_json(fields) + b"\n")
        entry = Entry(**fields)
        self._entries = (*self._entries, entry)
        self._size = os.fstat(self._descriptor).st_size
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """Everything recorded so far, in order."""
        return self._entries

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
        self._size = complete
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


def _content(
    index: int, kind: str, time: str, body: Mapping[str, Any], previous: str
) -> bytes:
    fields = {"index": index, "kind": kind, "time": time, "previous": previous}
    return canonical_json(fields | {"body": dict(body)})


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
