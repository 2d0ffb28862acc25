"""Python and packages, against what secfed declares and what it was tested with.

Two lists exist. The installed distribution declares ranges, outside of which secfed
does not work; ``constraints.txt`` names the one version of every package that the
tests ran with. Another version inside the range is a warning.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import secfed
from secfed.doctor.findings import Finding, failed, found, unknown, warned
from secfed.shipped import CONSTRAINTS, pinned_versions, shipped_file

__all__ = ["check_packages", "check_python", "known_versions", "required_packages"]

_NAME: Final = "secfed"
_FILE: Final = CONSTRAINTS
_SHOWN: Final = 4


def check_python(version: str = platform.python_version()) -> Finding:
    """The interpreter, against what the distribution asks for."""
    asked, _ = _declared()
    if asked is None:
        return unknown("python", f"{version}; the distribution says nothing of it")
    if Version(version) in SpecifierSet(asked):
        return found("python", f"{version} ({asked} is needed)")
    return failed(
        "python",
        f"{version}, and {asked} is needed",
        "install that Python, and secfed into an environment of it",
    )


def check_packages(
    required: Mapping[str, SpecifierSet] | None = None,
    tested: Mapping[str, str] | None = None,
) -> Finding:
    """Every package that secfed declares: there, in its range, at the tested version.

    Args:
        required: Ranges by name; those of the distribution by default.
        tested: Versions by name; those of ``constraints.txt`` by default.
    """
    ranges = required_packages() if required is None else required
    known = known_versions() if tested is None else tested
    if not ranges:
        return unknown("packages", "the distribution of secfed declares none")
    wrong = [text for name, asked in ranges.items() if (text := _wrong(name, asked))]
    if wrong:
        return failed(
            "packages",
            _listed(wrong),
            f"pip install -c {_FILE} secfed, with the {_FILE} of this version",
        )
    if not known:
        return unknown(
            "packages", f"all in their ranges; no {_FILE} to compare versions with"
        )
    return _compared(ranges, known)


def required_packages() -> dict[str, SpecifierSet]:
    """What the installed distribution declares for this machine, without extras."""
    declared = [Requirement(text) for text in _declared()[1]]
    return {
        canonicalize_name(one.name): one.specifier
        for one in declared
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def known_versions() -> dict[str, str]:
    """The versions of ``constraints.txt``: in the package, or beside it in a checkout.

    Empty where there is no such file.
    """
    path = shipped_file(CONSTRAINTS)
    return {} if path is None else pinned_versions(path)


def _declared() -> tuple[str | None, list[str]]:
    """The Python and the packages that the installed distribution asks for.

    In a checkout that is not installed, those of its ``pyproject.toml``.
    """
    try:
        own = metadata.metadata(_NAME)
    except metadata.PackageNotFoundError:
        return _declared_in(Path(secfed.__file__).parents[1] / "pyproject.toml")
    python = own.get_all("Requires-Python") or [None]
    return python[0], list(own.get_all("Requires-Dist") or [])


def _declared_in(path: Path) -> tuple[str | None, list[str]]:
    if not path.is_file():
        return None, []
    project = tomllib.loads(path.read_text("utf-8")).get("project", {})
    if project.get("name") != _NAME:
        return None, []
    return project.get("requires-python"), list(project.get("dependencies", []))


def _compared(ranges: Mapping[str, SpecifierSet], known: Mapping[str, str]) -> Finding:
    others = [
        f"{name} {_installed(name)} (tested with {known[name]})"
        for name in ranges
        if name in known and not _same(_installed(name), known[name])
    ]
    if others:
        return warned(
            "packages",
            f"all in their ranges, {_listed(others)}",
            f"pip install -c {_FILE} secfed takes the tested ones",
        )
    return found("packages", f"{len(ranges)} packages at the versions of {_FILE}")


def _wrong(name: str, asked: SpecifierSet) -> str:
    version = _installed(name)
    if version is None:
        return f"{name} is not installed"
    if not asked.contains(version, prereleases=True):
        return f"{name} {version} is not {asked}"
    return ""


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _same(one: str | None, other: str) -> bool:
    """Equal but for a local part: ``2.9.0+cpu`` is 2.9.0."""
    try:
        return one is not None and Version(one).public == Version(other).public
    except InvalidVersion:
        return one == other


def _listed(texts: list[str]) -> str:
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
