"""The directory against its manifest: signature, signer, digests, nothing else."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfed.canonical import digest, file_sha256, parse_json
from secfed.errors import RunDirectoryError, VerificationError
from secfed.manifest import MANIFEST_NAME, Manifest, list_files, read_manifest
from secfed.signing import fingerprint, format_fingerprint, parse_fingerprint
from secfed.study import Study, load_study_dict
from secfed.verify.checks import Checklist

__all__ = [
    "Bundle",
    "check_files",
    "check_signer",
    "check_study",
    "is_directory",
    "read_plain",
]

_MAX_TEXT_BYTES = 64 << 20
_MAX_NAMED = 8


@dataclass(frozen=True)
class Bundle:
    """A run directory and its manifest, whose signature is valid."""

    root: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The content of a file that the manifest names.

        Raises:
            VerificationError: The manifest does not name it.
            RunDirectoryError: It is not a plain file, or far too large.
            OSError: It cannot be read.
        """
        if name not in self.manifest.files:
            raise VerificationError(f"{name}: the manifest does not name it")
        return read_plain(self.root / name, name)

    def json(self, name: str) -> Any:
        """The content of a JSON file that the manifest names.

        Raises:
            VerificationError: As ``read``, or the file is not JSON.
        """
        data = self.read(name)
        try:
            return parse_json(data)
        except ValueError as error:
            raise VerificationError(f"{name}: not JSON: {error}") from error


def read_plain(path: Path, name: str) -> bytes:
    """Read a plain file of bounded size, following no link."""
    with open(path, "rb", opener=_open_plainly) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RunDirectoryError(f"{name}: not a plain file")
        if status.st_size > _MAX_TEXT_BYTES:
            raise RunDirectoryError(f"{name}: {status.st_size} bytes are too many")
        return file.read(_MAX_TEXT_BYTES)


def _open_plainly(path: str, flags: int) -> int:
    # Following no link, and not waiting for the other end of a pipe.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def check_files(
    root: Path, trust: str | None, checklist: Checklist
) -> tuple[Bundle | None, bool]:
    """Make the checks that concern files and the signer.

    Returns:
        The bundle, or None where no manifest can be read, and whether the
        signer is the trusted one.
    """
    bundle = checklist.read("manifest", lambda: _read_bundle(root))
    if bundle is None:
        return None, False
    found = bundle.manifest.coordinator_key
    pinned = checklist.read("coordinator key", lambda: check_signer(found, trust))
    checklist.ask("files", lambda: _check_digests(bundle))
    checklist.ask("no other files", lambda: _check_nothing_else(bundle))
    return bundle, bool(pinned)


def check_study(bundle: Bundle) -> tuple[Study, str]:
    """The study and its name in words, if ``study.json`` is what was signed.

    Raises:
        VerificationError: It is another one.
        StudyError: It is not a valid study.
    """
    value = bundle.json("study.json")
    if digest(value) != bundle.manifest.study_digest:
        raise VerificationError("study.json: not the study that the manifest names")
    if not isinstance(value, dict):
        raise VerificationError("study.json: not an object")
    study = load_study_dict(value, "study.json")
    return study, f"the study {study.name!r} that the manifest names"


def _read_bundle(root: Path) -> tuple[Bundle, str]:
    try:
        data = read_plain(root / MANIFEST_NAME, MANIFEST_NAME)
    except FileNotFoundError as error:
        raise VerificationError(
            f"{MANIFEST_NAME} is missing: not a run, or one that did not end; "
            f"an interrupted run is continued with 'secfed resume'"
        ) from error
    bundle = Bundle(root, read_manifest(data))
    return bundle, f"signed; it names {len(bundle.manifest.files)} files"


def check_signer(public_key: bytes, trust: str | None) -> tuple[bool, str]:
    """Whether this is the key that is trusted; False where none was named.

    Raises:
        VerificationError: It is another one.
    """
    found = fingerprint(public_key)
    if trust is None:
        return False, (
            f"UNPINNED: signed by {format_fingerprint(found)}; compare it with the "
            f"coordinator's, or pass it with --trust"
        )
    expected = parse_fingerprint(trust)
    if found != expected:
        raise VerificationError(
            f"signed by {format_fingerprint(found)}, not by the trusted "
            f"{format_fingerprint(expected)}"
        )
    return True, f"PINNED: signed by {format_fingerprint(found)}"


def _check_digests(bundle: Bundle) -> str:
    wrong = []
    for name, expected in sorted(bundle.manifest.files.items()):
        path = bundle.root / name
        if not _is_plain_inside(bundle.root, name):
            wrong.append(f"{name}: missing or not a plain file")
        elif file_sha256(path) != expected:
            wrong.append(f"{name}: changed since the manifest was signed")
    if wrong:
        raise VerificationError(_joined(wrong))
    return f"{len(bundle.manifest.files)} files have the digests of the manifest"


def _check_nothing_else(bundle: Bundle) -> str:
    extra = list_files(bundle.root).keys() - bundle.manifest.files.keys()
    if extra:
        named = [f"{name}: not named by the manifest" for name in sorted(extra)]
        raise VerificationError(_joined(named))
    return "outside private/ there is nothing that the manifest does not name"


def is_directory(path: Path) -> bool:
    """Whether this is a directory and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _is_plain_inside(root: Path, name: str) -> bool:
    # Every step is looked at, so that no linked directory leads out of the run.
    path = root
    *directories, last = name.split("/")
    for part in directories:
        path /= part
        if not is_directory(path):
            return False
    try:
        return stat.S_ISREG((path / last).lstat().st_mode)
    except OSError:
        return False


def _joined(findings: list[str]) -> str:
    more = len(findings) - _MAX_NAMED
    shown = "; ".join(findings[:_MAX_NAMED])
    return f"{shown}; and {more} more" if more > 0 else shown
