"""Tab-separated lines, as GLUE's files are: quotes are ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secfed.errors import DataError

__all__ = ["read_tsv"]


def read_tsv(
    path: Path, text: str, names: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """The columns of a file by name.

    Args:
        path: The file, for errors.
        text: Its content. Lines with nothing on them are no records.
        names: Of the columns, where the file has no header.

    Raises:
        DataError: A row is wider or narrower than the header, the header names a
            column twice, or there is no record.
    """
    lines = [line.rstrip("\r").split("\t") for line in text.split("\n")]
    rows = [line for line in lines if line != [""]]
    header = list(names) if names is not None else rows[0] if rows else []
    rows = rows if names is not None else rows[1:]
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{path}: the header names {repeated!r} twice")
    if not rows:
        raise DataError(f"{path}: no records")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{path}: row {number} has {len(row)} fields, there are "
                f"{len(header)} columns"
            )
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}
