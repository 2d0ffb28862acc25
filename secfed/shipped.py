"""The lists of versions that a secfed was tested with, wherever it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

import secfed

__all__ = ["CONSTRAINTS", "MODEL_PACKAGES", "pinned_versions", "shipped_file"]

CONSTRAINTS: Final = "constraints.txt"
MODEL_PACKAGES: Final = "model-packages.txt"


def shipped_file(name: str) -> Path | None:
    """One of the lists: in the package, or beside it in a checkout."""
    package = Path(secfed.__file__).parent
    for path in (package / name, package.parent / name):
        if path.is_file():
            return path
    return None


def pinned_versions(path: Path) -> dict[str, str]:
    """The version of every package that a list pins with ``==``."""
    lines = path.read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {
        canonicalize_name(pair[0]): pair[1].strip()
        for pair in pairs
        if len(pair) == 2  # noqa: PLR2004 - a name and a version
    }
