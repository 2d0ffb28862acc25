"""Every event that an operations log can hold, and every field that it can have.

What is not in these two lists is refused when it is written and when it is read. No
field holds a free text or a number of records: texts are digests, names of sites, or
one of a few words; numbers are rounds and the steps of an alarm.

Categories, types and outcomes are values that the Elastic Common Schema allows together
(its page on ``event.category``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "INCIDENTS",
    "KINDS",
    "Fields",
    "Kind",
    "UnknownEventError",
    "checked_fields",
    "sentence",
]

Fields = Mapping[str, str | int | Sequence[str]]
"""The values of an event, by name."""

_NODE: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""How sites and populations are named in studies."""

INCIDENTS: Final = (
    "key-lost",
    "key-stolen",
    "machine-compromised",
    "budget-damaged",
    "evidence-mismatch",
    "unexpected-message",
    "data-exposure-suspected",
    "wrong-data-used",
    "malfunction",
)
"""What can have happened; an incident is one of these and has no free text."""

_PHASES: Final = (
    *("adapter", "advertise", "shares", "training", "masked-input", "confirm"),
    *("unmask", "advertise keys", "share keys", "local training", "masked input"),
    *("confirm survivors", "evaluation on held-back records", "witness"),
)
_MAX_ROUND: Final = 1_000_000
_STEPS: Final = (50, 80, 100)


def _text(*patterns: str) -> Callable[[object], bool]:
    pattern = re.compile("|".join(f"(?:{one})" for one in patterns), re.ASCII)
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def _one_of(*words: str) -> Callable[[object], bool]:
    return _text(*map(re.escape, words))


def _list_of(one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(one, value))


def _number(allowed: Sequence[int]) -> Callable[[object], bool]:
    return lambda value: type(value) is int and value in allowed


_sha256 = _text("[0-9a-f]{64}")

_FIELDS: Final[Mapping[str, Callable[[object], bool]]] = {
    "study": _sha256,
    "run": _text(r"[0-9A-Za-z]{1,32}"),
    "arm": _text(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}"),
    "role": _one_of("site", "coordinator", "simulation"),
    "node": _text(_NODE),
    "site": _text(_NODE),
    "blamed": _list_of(_text(_NODE)),
    "population": _text(_NODE),
    "round": _number(range(1, _MAX_ROUND + 1)),
    "phase": _one_of(*_PHASES),
    "reason": _one_of("policy", "budget", "failed"),
    "rules": _list_of(_text(r"[a-z0-9_.]{1,40}")),
    "error": _text(r"[A-Za-z_][A-Za-z0-9_]{0,59}"),
    "percent": _number(_STEPS),
    "file": _one_of("study", "policy", "site", "roster"),
    "sha256": _sha256,
    "before": _sha256,
    "incident": _one_of(*INCIDENTS),
}

_ANYWHERE: Final = frozenset({"study", "run", "role", "node"})


@dataclass(frozen=True)
class Kind:
    """One kind of event.

    Attributes:
        says: What it means, for people.
        category: ``event.category``.
        type: ``event.type``.
        outcome: ``event.outcome``; None where neither fits.
        level: ``log.level``.
        needs: Fields that it has.
        may: Fields that it can have besides.
        alert: Whether somebody should look (``event.kind``).
    """

    says: str
    category: str
    type: str
    outcome: Literal["success", "failure"] | None = None
    level: Literal["info", "warning", "error"] = "info"
    needs: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()
    alert: bool = False


def _done(says: str, category: str, kind: str, needs: str = "", may: str = "") -> Kind:
    fields = frozenset(needs.split()), frozenset(may.split())
    return Kind(says, category, kind, "success", "info", *fields)


def _bad(says: str, category: str, kind: str, needs: str = "", may: str = "") -> Kind:
    fields = frozenset(needs.split()), frozenset(may.split())
    return Kind(says, category, kind, "failure", "warning", *fields)


def _alert(says: str, category: str, kind: str, needs: str = "", may: str = "") -> Kind:
    fields = frozenset(needs.split()), frozenset(may.split())
    return Kind(says, category, kind, "failure", "error", *fields, alert=True)


KINDS: Final[Mapping[str, Kind]] = {
    # The process and its files.
    "started": _done("secfed started", "process", "start"),
    "interrupted": _bad("ended from outside", "process", "end"),
    "failed": _bad("ended by an error", "process", "end", "error"),
    "configuration-loaded": _done(
        "a file was read", "configuration", "info", "file sha256"
    ),
    "configuration-changed": Kind(
        "a file is not what it was at the last start",
        "configuration",
        "change",
        level="warning",
        needs=frozenset({"file", "sha256", "before"}),
    ),
    "line-removed": _bad(
        "an unfinished last line was removed, which a crash had left", "file", "change"
    ),
    # A study.
    "study-opened": _done("takes part in a study", "api", "allowed"),
    "study-refused": _bad("refuses a study", "api", "denied", "error", "rules"),
    "study-resumed": _done("continues a study", "api", "start"),
    "study-finished": _done("the study is finished", "api", "end"),
    "approval-used": _done(
        "an operator's approval was used", "api", "allowed", "sha256"
    ),
    # Rounds.
    "round-started": _done("a round began", "api", "start", "round", "arm"),
    "round-completed": _done("a round is complete", "api", "end", "round", "arm"),
    "round-answered": _done("answered all of a round", "api", "end", "round"),
    "round-aborted": _bad(
        "a round ended without a sum", "api", "end", "phase", "round blamed"
    ),
    "round-interrupted": _bad(
        "a round that had begun is not repeated", "api", "end", "round", "arm"
    ),
    "round-not-begun": _bad("too few sites for a round", "api", "end"),
    "deadline-missed": _bad(
        "gave no answer in time", "network", "info", "site phase round"
    ),
    "site-declined": _bad(
        "declines a phase", "api", "denied", "site phase round reason"
    ),
    "site-left": _bad("left a round", "api", "end", "site phase round error", "rules"),
    "order-declined": _bad(
        "this site declines a phase",
        "api",
        "denied",
        "phase round reason error",
        "rules",
    ),
    "message-refused": _alert(
        "a message was refused", "intrusion_detection", "denied", "error", "site round"
    ),
    # Budgets.
    "budget-reserved": _done("a round is paid for", "api", "change", "round", "site"),
    "budget-alarm": _alert(
        "a budget reached a step", "api", "info", "population percent", "site"
    ),
    "budget-refused": _bad("a budget does not hold a round", "api", "denied", "site"),
    # What people do.
    "stop-held": _alert(
        "the stop file is there: no part in anything", "api", "denied", "", "site"
    ),
    "key-revoked": Kind(
        "the keys of a site are revoked",
        "iam",
        "change",
        level="warning",
        needs=frozenset({"site"}),
    ),
    "withdrawn": Kind(
        "the site withdrew from the study",
        "configuration",
        "change",
        level="warning",
        needs=frozenset({"sha256"}),
        may=frozenset({"site"}),
    ),
    "incident-recorded": _alert(
        "an incident was recorded", "api", "info", "incident sha256"
    ),
}


class UnknownEventError(ValueError):
    """An event, or a field of it, that an operations log does not hold."""


def checked_fields(kind: str, fields: Fields) -> Kind:
    """The kind of an event whose fields are all allowed and well formed.

    Raises:
        UnknownEventError: They are not; the message names no value.
    """
    known = KINDS.get(kind)
    if known is None:
        raise UnknownEventError("an operations log has no such kind of event")
    if missing := known.needs - fields.keys():
        raise UnknownEventError(f"{kind}: without {', '.join(sorted(missing))}")
    if fields.keys() - known.needs - known.may - _ANYWHERE:
        raise UnknownEventError(f"{kind}: a field that this event does not have")
    for name, value in fields.items():
        if not _FIELDS[name](value):
            raise UnknownEventError(f"{kind}: {name} has another form")
    return known


def sentence(kind: Kind, fields: Fields) -> str:
    """An event in one line for people; everything in it is in its fields."""
    shown = [name for name in fields if name not in {*_ANYWHERE, "sha256", "before"}]
    said = ", ".join(f"{name} {_shown(fields[name])}" for name in sorted(shown))
    return f"{kind.says}: {said}" if said else kind.says


def _shown(value: str | int | Sequence[str]) -> str:
    return str(value) if isinstance(value, str | int) else "+".join(value)
