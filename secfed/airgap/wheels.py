"""Wheels as files: what they are, what they need, and the list that pins them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import (
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)

from secfed.canonical import file_sha256
from secfed.errors import BundleError, VerificationError

__all__ = [
    "OWN",
    "Wheel",
    "WheelFacts",
    "facts_of",
    "named_wheel",
    "read_requirements",
    "requirements_text",
    "wheels_in",
]

OWN: Final = "secfed"
_HEAD: Final = "# Written by `secfed bundle`; installed with pip's --require-hashes.\n"
_LINE: Final = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>[A-Za-z0-9.+!]+)"
    r" --hash=sha256:(?P<sha256>[0-9a-f]{64})$"
)
_MAX_METADATA_BYTES: Final = 4 << 20


@dataclass(frozen=True, order=True)
class Wheel:
    """A wheel by its file name and digest; the name is normalised (PEP 503)."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class WheelFacts:
    """What a wheel says of itself: its licence, and whom it needs here."""

    licence: str
    needs: tuple[str, ...]


def wheels_in(folder: Path) -> dict[Wheel, Path]:
    """The wheels of a folder, sorted by name, secfed's among them.

    Raises:
        BundleError: A file is no wheel, one package is there twice, or secfed is not.
    """
    found = {
        named_wheel(path.name, file_sha256(path)): path for path in folder.iterdir()
    }
    names = [wheel.name for wheel in found]
    for name in names:
        if names.count(name) > 1:
            raise BundleError(f"{name}: more than one wheel")
    if OWN not in names:
        raise BundleError(f"no wheel of {OWN} among the others")
    return dict(sorted(found.items()))


def named_wheel(name: str, sha256: str) -> Wheel:
    """The wheel that a file's name tells of.

    Raises:
        BundleError: It is no name of a wheel.
    """
    try:
        package, version, _, _ = parse_wheel_filename(name)
    except InvalidWheelFilename as error:
        raise BundleError(f"{name}: not a wheel") from error
    return Wheel(package, str(version), sha256)


def facts_of(path: Path) -> WheelFacts:
    """What a wheel's metadata says, for this interpreter and without extras.

    Raises:
        BundleError: The wheel has no readable metadata.
    """
    raw = _metadata(path)
    needs = []
    for text in raw.get("requires_dist", []):
        try:
            one = Requirement(text)
        except InvalidRequirement:
            continue  # Pip would have refused it where it matters.
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            needs.append(canonicalize_name(one.name))
    return WheelFacts(_licence(raw), tuple(sorted(set(needs))))


def requirements_text(wheels: Iterable[Wheel]) -> str:
    """The list that pip installs from: name, version and digest of every wheel."""
    lines = (
        f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        for wheel in sorted(wheels)
    )
    return _HEAD + "".join(lines)


def read_requirements(text: str) -> set[Wheel]:
    """Read what ``requirements_text`` wrote, and nothing else that pip would obey.

    Raises:
        VerificationError: A line is anything but a package with its digest.
    """
    if not text.startswith(_HEAD):
        raise VerificationError("a requirements file that secfed did not write")
    found = set()
    for line in text.removeprefix(_HEAD).splitlines():
        match = _LINE.match(line)
        if match is None:
            raise VerificationError(f"{line!r}: not one package with its SHA-256")
        found.add(Wheel(match["name"], match["version"], match["sha256"]))
    return found


def _metadata(path: Path) -> RawMetadata:
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (
                entry
                for entry in archive.namelist()
                if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry)
            )
            with archive.open(name) as file:
                return parse_email(file.read(_MAX_METADATA_BYTES))[0]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BundleError(f"{path.name}: no readable metadata: {error}") from error


def _licence(raw: RawMetadata) -> str:
    """In one line: the expression, what stands as its licence, or the classifiers."""
    text = (raw.get("license_expression") or raw.get("license") or "").strip()
    if text and "\n" not in text:
        return text
    classifiers = raw.get("classifiers", [])
    named = (one for one in classifiers if one.startswith("License :: "))
    return " / ".join(one.rpartition(" :: ")[2] for one in named)
