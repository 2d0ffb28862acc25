"""Which event an error is; its class and names of rules, never its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RoundAbortedError,
    TooFewSitesError,
)

__all__ = ["ended", "left"]

_STOP: Final = "stop_file"


def left(error: BaseException, **where: str | int) -> dict[str, Any]:
    """Why a site left a round, as the arguments of an event.

    Args:
        error: What its step raised.
        where: ``site``, ``phase`` and ``round``.
    """
    if _STOP in _rules(error):
        return {"kind": "stop-held", "site": where["site"]}
    return {
        "kind": "site-left",
        "error": type(error).__name__,
        **where,
        **_named(error),
    }


def ended(error: BaseException) -> dict[str, Any]:
    """What ended a study here, as the arguments of an event."""
    if isinstance(error, KeyboardInterrupt):
        return {"kind": "interrupted"}
    if isinstance(error, RoundAbortedError):
        blamed = {"blamed": error.blamed} if error.blamed else {}
        return {"kind": "round-aborted", "phase": error.phase, **blamed}
    if isinstance(error, TooFewSitesError):
        return {"kind": "round-not-begun"}
    if isinstance(error, BudgetExceededError):
        return {"kind": "budget-refused", "site": error.site}
    if _STOP in _rules(error):
        return {"kind": "stop-held"}
    kind = "study-refused" if isinstance(error, PolicyError) else "failed"
    return {"kind": kind, "error": type(error).__name__, **_named(error)}


def _rules(error: BaseException) -> Sequence[str]:
    return error.rules if isinstance(error, PolicyError) else ()


def _named(error: BaseException) -> dict[str, Any]:
    rules = _rules(error)
    return {"rules": rules} if rules else {}
