"""What a check found: one line, with the mend where there is something to mend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Finding", "Status", "failed", "found", "one_line", "unknown", "warned"]

Status = Literal["ok", "warning", "failed", "unknown"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: Its name.
        status: ``failed`` is what stops a run; ``unknown`` is what could not be
            checked, and is not passed.
        text: What was found, in one line.
        mend: What to do; never empty where the check failed.
    """

    check: str
    status: Status
    text: str
    mend: str = ""

    def __post_init__(self) -> None:
        if self.status == "failed" and not self.mend:
            raise ValueError(f"{self.check}: what failed has a mend")

    @property
    def stops(self) -> bool:
        """Whether a run would not begin, or would not end well."""
        return self.status == "failed"

    def to_json(self) -> dict[str, str]:
        """The fields by name."""
        return asdict(self)


def found(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", one_line(text))


def warned(check: str, text: str, mend: str) -> Finding:
    """A run is possible, and something should be better."""
    return Finding(check, "warning", one_line(text), one_line(mend))


def failed(check: str, text: str, mend: str) -> Finding:
    """No run is possible."""
    return Finding(check, "failed", one_line(text), one_line(mend))


def unknown(check: str, text: str, mend: str = "") -> Finding:
    """It could not be checked."""
    return Finding(check, "unknown", one_line(text), one_line(mend))


def one_line(text: object) -> str:
    """An error's words without its line breaks, and without control characters."""
    joined = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "?" for c in joined)
