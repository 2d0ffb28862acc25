"""The weights that a study pins: carried as files or in a wheel, found by digest."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secfed.airgap.manifest import WHEELS
from secfed.canonical import file_sha256
from secfed.errors import BundleError, VerificationError
from secfed.model_files import WEIGHTS, find_model
from secfed.study import Study
from secfed.study.sections import ModelSection

__all__ = ["Weights", "carry_weights", "check_weights", "weights_of"]

_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_SUFFIXES: Final = frozenset(
    {"", ".jinja", ".json", ".md", ".model", ".safetensors", ".txt"}
)
"""Of the files that travel with weights. No pickles: they are code."""

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Weights:
    """One file of numbers that the study pins.

    Attributes:
        what: Where it lies in a bundle, where it is carried as files.
        named: What the study says: a path, or ``package/subfolder``.
        package: Whether it is inside a wheel.
        file: Its name.
        sha256: The digest that the study pins.
    """

    what: str
    named: str
    package: bool
    file: str
    sha256: str


def weights_of(study: Study) -> tuple[Weights, ...]:
    """What the study pins: the base model, and a teacher with its public adapter.

    A teacher that a run released is not here: its run directory has a manifest of its
    own and travels by itself.
    """
    found = [_of_section("model", study.model)]
    teacher = study.teacher
    if teacher is not None:
        found.append(_of_section("teacher", teacher))
        if teacher.adapter is not None and teacher.adapter_sha256 is not None:
            where, digest = teacher.adapter, teacher.adapter_sha256
            one = Weights("teacher-adapter", where, False, _ADAPTER_WEIGHTS, digest)
            found.append(one)
    return tuple(found)


def _of_section(what: str, section: ModelSection) -> Weights:
    if section.path is not None:
        return Weights(what, section.path, False, WEIGHTS, section.sha256)
    package = str(section.package).replace(".", "/")
    inside = "/".join(filter(None, (package, section.subfolder)))
    return Weights(what, inside, True, WEIGHTS, section.sha256)


def carry_weights(study: Study, base_dir: Path, root: Path) -> None:
    """Copy what the study names by a path; what is in a wheel is there already.

    Args:
        study: Whose weights.
        base_dir: Where its relative paths start.
        root: The bundle's folder.

    Raises:
        ModelError: The base model's folder has no weights.
        BundleError: Another folder cannot be read.
    """
    for one in weights_of(study):
        if one.package:
            continue
        folder = base_dir / one.named
        if one.what == "model":
            folder = find_model(study.model, base_dir)
        target = root / one.what
        target.mkdir()
        try:
            for path in sorted(folder.iterdir()):
                if path.is_file() and _travels(path.name):
                    shutil.copyfile(path, target / path.name)
        except OSError as error:
            raise BundleError(f"{folder}: {error.strerror}") from error


def _travels(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix in _SUFFIXES


def check_weights(root: Path, study: Study, names: Iterable[str]) -> str:
    """Find every digest that the study pins among a bundle's files.

    Args:
        root: The bundle's folder.
        study: The study in it.
        names: The bundle's files, by relative path.

    Returns:
        In words where each is.

    Raises:
        VerificationError: One is missing, or is another one.
    """
    wheels = [root / name for name in names if name.startswith(f"{WHEELS}/")]
    places = []
    for one in weights_of(study):
        if one.package:
            where, digest = _in_a_wheel(one, wheels)
        else:
            where = f"{one.what}/{one.file}"
            path = root / where
            digest = file_sha256(path) if path.is_file() else None
        if digest != one.sha256:
            wrong = "is missing" if digest is None else f"has SHA-256 {digest}"
            raise VerificationError(
                f"{one.what}: {where} {wrong}; the study pins {one.sha256}"
            )
        places.append(f"{one.what} {one.sha256[:16]} in {where}")
    return ", ".join(places)


def _in_a_wheel(one: Weights, wheels: Iterable[Path]) -> tuple[str, str | None]:
    member = f"{one.named}/{one.file}"
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            if member not in archive.namelist():
                continue
            sha = hashlib.sha256()
            with archive.open(member) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    sha.update(chunk)
            return f"{WHEELS}/{path.name}", sha.hexdigest()
    return f"a wheel with {member}", None
