"""The last file of a run: what belongs to it, digest by digest, signed.

``manifest.json`` is the canonical JSON of

    {"coordinator_key": hex, "files": {path: sha256}, "format": 2,
     "signature": hex, "study_digest": hex}

followed by a newline. It names every file below the run directory except itself
and what stands in ``private/`` (also in ``arms/<arm>/private/`` and, in a grid, in
``cells/<cell>/private/``). What the ledger's head is, its checkpoint says, which is one
of the files. A comparison has no ledger of its own and names the files of its arms,
their manifests included; a grid names those of its cells. The coordinator signs
everything but the signature.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json, file_sha256, parse_canonical
from secfed.errors import RunDirectoryError, VerificationError
from secfed.signing import MANIFEST, CoordinatorKey, verify_signature

__all__ = [
    "MANIFEST_NAME",
    "PRIVATE_NAME",
    "Manifest",
    "list_files",
    "read_manifest",
    "write_manifest",
]

MANIFEST_NAME = "manifest.json"
PRIVATE_NAME = "private"
_NESTED_NAMES = ("cells", "arms")

_FIELDS = {
    "coordinator_key",
    "files",
    "format",
    "signature",
    "study_digest",
}
_FORMAT = 2
_MAX_FILES = 100_000
_MAX_DEPTH = 16
_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Manifest:
    """A verified manifest; ``files`` maps relative POSIX paths to SHA-256."""

    study_digest: str
    coordinator_key: bytes
    files: Mapping[str, str]


def list_files(run_dir: Path) -> dict[str, Path]:
    """Every file that a manifest names or should name, by relative path, sorted.

    Raises:
        RunDirectoryError: A symbolic link or another thing that is neither a
            file nor a directory, a name that a manifest cannot carry, or more
            files or levels than any run has.
        OSError: A directory cannot be read.
    """
    found: dict[str, Path] = {}
    for name, path in _walk(run_dir, ()):
        if len(found) == _MAX_FILES:
            raise RunDirectoryError(f"{run_dir}: more than {_MAX_FILES} files")
        found[name] = path
    return dict(sorted(found.items()))


def write_manifest(run_dir: Path, study_digest: str, key: CoordinatorKey) -> Manifest:
    """Name and sign what the run directory holds now; the last write of a run.

    The file appears whole or not at all, replacing an earlier manifest.

    Raises:
        RunDirectoryError: As ``list_files``.
    """
    files = {name: file_sha256(path) for name, path in list_files(run_dir).items()}
    fields: dict[str, Any] = {
        "format": _FORMAT,
        "study_digest": study_digest,
        "coordinator_key": key.public_bytes.hex(),
        "files": files,
    }
    signature = key.sign(MANIFEST, canonical_json(fields))
    data = canonical_json(fields | {"signature": signature.hex()}) + b"\n"
    _replace(run_dir / MANIFEST_NAME, data)
    return read_manifest(data)


def read_manifest(data: bytes) -> Manifest:
    """Parse a manifest and check the signature by the key that it names.

    Whether that key is the right one is the caller's question.

    Raises:
        VerificationError: Not canonical, a field is missing, extra or
            malformed, a path leads out of the directory, or the signature is
            wrong.
    """
    try:
        fields = _parse(data)
        key = bytes.fromhex(fields["coordinator_key"])
        signature = bytes.fromhex(fields["signature"])
    except ValueError as error:
        raise VerificationError(f"{MANIFEST_NAME}: {error}") from error
    signed = {name: value for name, value in fields.items() if name != "signature"}
    try:
        verify_signature(key, MANIFEST, canonical_json(signed), signature)
    except VerificationError as error:
        raise VerificationError(f"{MANIFEST_NAME}: {error}") from error
    return Manifest(
        study_digest=fields["study_digest"],
        coordinator_key=key,
        files=fields["files"],
    )


def _parse(data: bytes) -> dict[str, Any]:
    if not data.endswith(b"\n"):
        raise ValueError("the file does not end in a newline")
    fields = parse_canonical(data[:-1])
    if not isinstance(fields, dict):
        raise ValueError("not an object")  # noqa: TRY004
    if type(fields.get("format")) is not int or fields["format"] != _FORMAT:
        raise ValueError(
            f"format {fields.get('format')!r:.20}; this version reads format {_FORMAT}"
        )
    if fields.keys() != _FIELDS:
        raise ValueError("the fields are not those of a manifest")
    _require_hex("study_digest", fields["study_digest"], 64)
    _require_hex("coordinator_key", fields["coordinator_key"], 64)
    _require_hex("signature", fields["signature"], 128)
    if not isinstance(fields["files"], dict):
        raise ValueError("'files' is not an object")  # noqa: TRY004
    for name, value in fields["files"].items():
        _require_name(name)
        _require_hex(f"the digest of {name!r}", value, 64)
    return fields


def _require_hex(what: str, value: object, digits: int) -> None:
    if not isinstance(value, str) or len(value) != digits or not set(value) <= _DIGITS:
        raise ValueError(f"{what} is not {digits} lowercase hexadecimal digits")


def _require_name(name: str) -> None:
    parts = name.split("/")
    if (
        any(part in {"", ".", ".."} for part in parts)
        or "\\" in name
        or not name.isprintable()
    ):
        raise ValueError(f"{name!r} is not a path inside the run directory")
    if name == MANIFEST_NAME or _is_private(tuple(parts)):
        raise ValueError(f"{name!r} cannot be named by a manifest")


def _is_private(parts: tuple[str, ...]) -> bool:
    for name in _NESTED_NAMES:
        if parts[:1] == (name,):
            parts = parts[2:]
    return parts[:1] == (PRIVATE_NAME,)


def _walk(directory: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    if len(parts) > _MAX_DEPTH:
        raise RunDirectoryError(f"{directory}: nested too deeply for a run directory")
    for child in sorted(directory.iterdir()):
        here = (*parts, child.name)
        if _is_private(here) or here == (MANIFEST_NAME,):
            continue
        mode = child.lstat().st_mode
        name = "/".join(here)
        if stat.S_ISDIR(mode):
            yield from _walk(child, here)
        elif stat.S_ISREG(mode):
            try:
                _require_name(name)
            except ValueError as error:
                raise RunDirectoryError(str(error)) from error
            yield name, child
        else:
            what = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
            raise RunDirectoryError(f"{name}: {what}; a run directory holds none")


def _replace(path: Path, data: bytes) -> None:
    # Hidden in private/, so that an interrupted write is never a stray file.
    private = path.parent / PRIVATE_NAME
    made = not private.exists()
    private.mkdir(mode=0o700, exist_ok=True)
    partial = private / f".{path.name}.partial"
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    if made:
        private.rmdir()
