"""Reading an operations log back: is the chain whole, and which lines does one want?

What the chain shows: no line in the middle was changed, removed, added or moved. It
cannot show that the end was not cut off, or that somebody who may write the file did
not write all of it anew. For that, compare with a line that was shipped elsewhere
(``seen``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from secfed.errors import VerificationError
from secfed.operations.lines import FIRST, Line, parse_line

__all__ = ["Checked", "Line", "older_files", "older_name", "read_log", "selected"]


@dataclass(frozen=True)
class Checked:
    """A log whose chain is whole.

    Attributes:
        lines: In order.
        files: Where they stand, in order.
    """

    lines: tuple[Line, ...]
    files: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether it begins with the very first line."""
        return bool(self.lines) and self.lines[0].previous == FIRST

    @property
    def head(self) -> str:
        """SHA-256 of the last line, which fixes all before it."""
        return self.lines[-1].sha256 if self.lines else FIRST


def older_name(path: Path, sequence: int) -> Path:
    """What a full file is renamed to: after the number of its first line."""
    return path.with_name(f"{path.stem}-{sequence:012d}{path.suffix}")


def older_files(path: Path) -> tuple[Path, ...]:
    """The full files beside the one that is written now, oldest first."""
    pattern = f"{path.stem}-{'[0-9]' * 12}{path.suffix}"
    return tuple(sorted(path.parent.glob(pattern)))


def read_log(path: Path, seen: str | None = None) -> Checked:
    """Read a log with its older files, or one older file by its own name.

    Args:
        path: The file.
        seen: SHA-256 of a line that must be in it.

    Raises:
        VerificationError: The chain is broken; names the file and the line.
    """
    files = (*older_files(path), *([path] if path.exists() else []))
    if not files:
        raise VerificationError(f"{path}: there is no operations log")
    lines: list[Line] = []
    for file in files:
        for number, data in _lines_of(file):
            lines.append(_next(lines, data, f"{file}: line {number}"))
    if seen is not None and all(line.sha256 != seen for line in lines):
        raise VerificationError(
            f"{path}: no line has the hash {seen}, so this is not the log that was "
            "seen, or it was cut off before that line"
        )
    return Checked(tuple(lines), files)


def _lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    *lines, rest = path.read_bytes().split(b"\n")
    yield from enumerate(lines, start=1)
    if rest:
        raise VerificationError(
            f"{path}: line {len(lines) + 1} has no end: a crash while it was written, "
            "or somebody cut the file"
        )


def _next(before: list[Line], data: bytes, where: str) -> Line:
    try:
        line = parse_line(data)
    except ValueError as error:
        raise VerificationError(f"{where}: {error}") from error
    if before:
        number, previous = before[-1].sequence + 1, before[-1].sha256
        if (line.sequence, line.previous) != (number, previous):
            raise VerificationError(
                f"{where}: does not follow the line before it: a line was changed, "
                "removed, added or moved here"
            )
    elif (line.sequence == 0) != (line.previous == FIRST):
        raise VerificationError(f"{where}: neither the first line of a log nor a later")
    return line


def selected(
    lines: Collection[Line],
    *,
    actions: Collection[str] = (),
    levels: Collection[str] = (),
    study: str | None = None,
    since: datetime | None = None,
) -> tuple[Line, ...]:
    """The lines that one asks for; what is not asked about does not matter."""
    return tuple(
        line
        for line in lines
        if (not actions or line.action in actions)
        and (not levels or line.value["log.level"] in levels)
        and (study is None or str(line.fields.get("study", "")).startswith(study))
        and (since is None or datetime.fromisoformat(line.time) >= since)
    )
