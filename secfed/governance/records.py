"""Signed records of a site's folder: canonical JSON, a key, its signature.

A record is read only from a plain file and only in its one form. A file that does not
verify is never skipped: it may be a withdrawal that somebody damaged.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from secfed.canonical import canonical_json, parse_canonical
from secfed.errors import VerificationError
from secfed.signing import CoordinatorKey, verify_signature

__all__ = [
    "open_record",
    "parse_time",
    "printable",
    "read_files",
    "require_hex",
    "require_text",
    "sealed",
    "time_text",
    "write_once",
]

_MOST_BYTES: Final = 1 << 20
_MOST_FILES: Final = 10_000
_SUFFIX: Final = ".json"
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_DIGITS: Final = frozenset("0123456789abcdef")


def sealed(key: CoordinatorKey, label: str, fields: Mapping[str, Any]) -> bytes:
    """The fields with the signer's key and signature, as the content of a file."""
    signed = {**fields, "operator": key.public_bytes.hex()}
    signature = key.sign(label, canonical_json(signed))
    return canonical_json(signed | {"signature": signature.hex()}) + b"\n"


def open_record(data: bytes, labels: Mapping[str, str]) -> dict[str, Any]:
    """Check a record by the key that it names, and return its fields.

    Args:
        data: The content of a file.
        labels: The signature's label by the record's ``kind``.

    Raises:
        VerificationError: It is malformed or wrongly signed.
    """
    if not data.endswith(b"\n") or len(data) > _MOST_BYTES:
        raise VerificationError("cut short or too long")
    try:
        fields = parse_canonical(data[:-1])
    except ValueError as error:
        raise VerificationError(str(error)) from error
    if not isinstance(fields, dict) or type(fields.get("format")) is not int:
        raise VerificationError("not a record of an operator")
    if fields["format"] != 1 or fields.get("kind") not in list(labels):
        raise VerificationError("of another kind or format; this version reads 1")
    key = bytes.fromhex(require_hex(fields, "operator", 64))
    signature = bytes.fromhex(require_hex(fields, "signature", 128))
    signed = {name: value for name, value in fields.items() if name != "signature"}
    verify_signature(key, labels[fields["kind"]], canonical_json(signed), signature)
    return signed


def require_hex(fields: Mapping[str, Any], name: str, digits: int) -> str:
    """A field of lowercase hexadecimal digits.

    Raises:
        VerificationError: It is something else.
    """
    value = fields.get(name)
    if not isinstance(value, str) or len(value) != digits or not set(value) <= _DIGITS:
        raise VerificationError(f"{name!r} is not {digits} hexadecimal digits")
    return value


def require_text(fields: Mapping[str, Any], name: str) -> str:
    """A field of text.

    Raises:
        VerificationError: It is something else.
    """
    value = fields.get(name)
    if not isinstance(value, str):
        raise VerificationError(f"{name!r} is not text")
    return value


def printable(text: str) -> str:
    """Text of a study, so that it can be shown: one line, and nothing that steers.

    A line break or a terminal's escape sequence in a title would let whoever wrote the
    study write on the operator's page.
    """
    return "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text
    )


def time_text(moment: datetime) -> str:
    """A moment in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(fields: Mapping[str, Any], name: str) -> datetime:
    """A field that ``time_text`` wrote.

    Raises:
        VerificationError: It is something else.
    """
    text = require_text(fields, name)
    if not _TIME.fullmatch(text):
        raise VerificationError(f"{name!r} is not a time like 2027-03-31T12:00:00Z")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise VerificationError(f"{name!r} is not a time: {error}") from error


def read_files(folder: Path) -> dict[Path, bytes]:
    """Every record's bytes, by path; none where there is no folder.

    Raises:
        VerificationError: One is a link, a directory or a device, or cannot be read.
    """
    try:
        names = sorted(p for p in folder.iterdir() if p.name.endswith(_SUFFIX))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise VerificationError(f"{folder}: {error.strerror}") from error
    if len(names) > _MOST_FILES:
        raise VerificationError(f"{folder}: more than {_MOST_FILES} files")
    return {path: _plain_bytes(path) for path in names}


def _plain_bytes(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise VerificationError(f"{path}: not a plain file")
            return file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise VerificationError(f"{path}: {error.strerror}") from error


def write_once(path: Path, data: bytes) -> None:
    """Write a new file whole or not at all, and wait until the disk has it.

    Raises:
        FileExistsError: There is one of this name.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
