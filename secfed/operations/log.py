"""Appending to an operations log.

Every line is on the disk when ``event`` returns. Several processes may write: each
reads the last line under a lock. A full file is renamed after its first line's number
and the chain goes on in a new one, so that old files can be archived one by one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from secfed.errors import RunDirectoryError, VerificationError
from secfed.operations.lines import FIRST, Line, parse_line, written
from secfed.operations.reading import older_files, older_name

__all__ = ["LOG_NAME", "OperationsLog"]

LOG_NAME: Final = "operations.jsonl"
_MAX_BYTES: Final = 16 * 1024 * 1024


class OperationsLog:
    """The operations log of a site or a coordinator.

    Args:
        path: The file that is written now.
        max_bytes: Above this size a new file is begun.
        about: Fields of every event: ``role``, ``node``, ``study``, ``run``.
    """

    def __init__(
        self, path: Path, *, max_bytes: int = _MAX_BYTES, **about: str
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._about = about

    def about(self, **fields: str) -> OperationsLog:
        """The same log, saying more of every event."""
        known = self._about | fields
        return OperationsLog(self.path, max_bytes=self._max_bytes, **known)

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Append one event and wait until the disk has it.

        Raises:
            UnknownEventError: Not an event of the closed list; nothing was written.
            RunDirectoryError: The file cannot be written.
            VerificationError: The end of the file is not a line of this log.
        """
        now = datetime.now(UTC)
        written(0, FIRST, kind, self._about | fields, now)  # Refused before the lock.
        try:
            with _locked(self.path):
                self._append(kind, fields, now)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path}: the operations log cannot be written "
                f"({error.strerror}), and nothing goes on without it"
            ) from error

    def configuration(self, file: str, sha256: str) -> None:
        """Say what a file is, and whether it is another than at the last start.

        Raises:
            RunDirectoryError, VerificationError: As for ``event``.
        """
        before = self._last_digest(file)
        self.event("configuration-loaded", file=file, sha256=sha256)
        if before not in (None, sha256):
            self.event(
                "configuration-changed", file=file, sha256=sha256, before=str(before)
            )

    def _append(
        self, kind: str, fields: dict[str, str | int | Sequence[str]], now: datetime
    ) -> None:
        last = self._last()
        if _mended(self.path):
            last = self._write(last, "line-removed", {}, now)
        if self.path.exists() and self.path.stat().st_size >= self._max_bytes:
            self._rotate()
        self._write(last, kind, fields, now)

    def _write(
        self,
        last: Line | None,
        kind: str,
        fields: dict[str, str | int | Sequence[str]],
        now: datetime,
    ) -> Line:
        number, before = (last.sequence + 1, last.sha256) if last else (0, FIRST)
        line = written(number, before, kind, self._about | fields, now)
        new = not self.path.exists()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path, flags, 0o600), "ab") as file:
            file.write(line.data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync_folder(self.path.parent)
        return line

    def _last(self) -> Line | None:
        """The last whole line, of this file or of the newest that was renamed.

        Raises:
            VerificationError: It is not a line of this log.
        """
        for path in (self.path, *reversed(older_files(self.path))):
            data = _last_line(path)
            if data is None:
                continue
            try:
                return parse_line(data)
            except ValueError as error:
                raise VerificationError(
                    f"{path}: its last line is damaged ({error}). Put the file aside "
                    "as evidence; then a new log begins"
                ) from error
        return None

    def _rotate(self) -> None:
        with self.path.open("rb") as file:
            first = parse_line(file.readline().rstrip(b"\n"))
        self.path.rename(older_name(self.path, first.sequence))
        _sync_folder(self.path.parent)

    def _last_digest(self, file: str) -> str | None:
        """What a file was when it was read last, in this file or the one before."""
        for path in (self.path, *reversed(older_files(self.path)[-1:])):
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            for data in reversed(lines):
                if b'"configuration-loaded"' not in data:
                    continue
                line = parse_line(data)
                if line.fields["file"] == file:
                    return str(line.fields["sha256"])
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(f"{path}.lock", flags, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last_line(path: Path) -> bytes | None:
    """The last line that ends with a newline."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _LONGEST))
        lines = file.read().split(b"\n")
    whole = [line for line in lines[:-1] if line]
    return whole[-1] if whole else None


_LONGEST: Final = 1 << 17
"""More bytes than two lines have."""


def _mended(path: Path) -> bool:
    """Cut off what a crash left of a last line; whether there was something."""
    if not path.exists():
        return False
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - _LONGEST)
        file.seek(start)
        tail = file.read()
        if not tail or tail.endswith(b"\n"):
            return False
        file.truncate(start + tail.rfind(b"\n") + 1)
        os.fsync(file.fileno())
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
