"""What a verification found: numbered checks, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from secfed.errors import SecfedError

__all__ = ["Check", "Checklist", "VerificationReport"]

BAD_CONTENT = (
    SecfedError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What reading a file that somebody else wrote can end in."""

_MAX_REASON = 600
_T = TypeVar("_T")


@dataclass(frozen=True)
class Check:
    """One question about a run directory and its answer."""

    number: int
    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class VerificationReport:
    """Everything that was checked in one directory.

    Attributes:
        path: The directory as given.
        kind: ``run``, ``comparison``, ``grid``, ``bundle``, ``release``,
            ``candidate`` (for a release), or ``unknown`` where that cannot be told.
        fingerprint: Of the key that signed the manifest; None without one.
        pinned: The signer's fingerprint was given and is this one. Without it
            the directory only agrees with itself, and anybody could have
            written it.
        checks: In the order in which they were made, numbered from 1.
        arms: The reports on a comparison's arms, or on a grid's cells.
    """

    path: str
    kind: str
    fingerprint: str | None
    pinned: bool
    checks: tuple[Check, ...]
    arms: tuple[VerificationReport, ...] = ()

    @property
    def passed(self) -> bool:
        """Every check of this directory and of its arms passed."""
        return all(check.passed for check in self.checks) and all(
            arm.passed for arm in self.arms
        )

    @property
    def pin_label(self) -> str:
        """``PINNED`` or ``UNPINNED``, as it is printed."""
        return "PINNED" if self.pinned else "UNPINNED"

    def failures(self) -> tuple[Check, ...]:
        """The failed checks of this directory and then of its arms."""
        own = tuple(check for check in self.checks if not check.passed)
        return own + tuple(failed for arm in self.arms for failed in arm.failures())

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "path": self.path,
            "kind": self.kind,
            "passed": self.passed,
            "pinned": self.pin_label,
            "fingerprint": self.fingerprint,
            "checks": [
                {
                    "number": check.number,
                    "name": check.name,
                    "passed": check.passed,
                    "reason": check.reason,
                }
                for check in self.checks
            ],
            "arms": [arm.to_json() for arm in self.arms],
        }


@dataclass
class Checklist:
    """Runs checks one after the other and keeps their answers."""

    done: list[Check] = field(default_factory=list)

    def ask(self, name: str, check: Callable[[], str], needs: str = "") -> bool:
        """Make a check and record its answer.

        Args:
            name: What is asked.
            check: Returns the reason why it passes; raises one of
                ``BAD_CONTENT`` where it does not.
            needs: What is missing to make this check at all; it then fails.
        """
        return self.read(name, lambda: (True, check()), needs) is not None

    def read(
        self, name: str, check: Callable[[], tuple[_T, str]], needs: str = ""
    ) -> _T | None:
        """As ``ask``, for a check that also returns what it read.

        Returns:
            The value, None where the check failed.
        """
        if needs:
            self._record(name, passed=False, reason=f"not checked: {needs}")
            return None
        try:
            value, reason = check()
        except BAD_CONTENT as error:
            self._record(name, passed=False, reason=_explained(error))
            return None
        self._record(name, passed=True, reason=reason)
        return value

    def _record(self, name: str, *, passed: bool, reason: str) -> None:
        # What a file says may be shown, but neither at length nor raw.
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in reason)
        if len(text) > _MAX_REASON:
            text = text[:_MAX_REASON] + "…"
        self.done.append(Check(len(self.done) + 1, name, passed, text))


def _explained(error: Exception) -> str:
    if isinstance(error, SecfedError | ValueError):
        return str(error)
    if isinstance(error, LookupError):
        return f"a value is missing: {error}"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or 'cannot be read'}"
    return f"a value has the wrong type: {error}"
