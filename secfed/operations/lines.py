"""One line of an operations log: from an event to its bytes and back.

A line is canonical JSON. Names with dots are written flat, as Elastic's libraries for
logging do. ``labels`` holds what the schema has no name for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import secfed
from secfed.canonical import canonical_json, parse_canonical, sha256_hex
from secfed.operations.kinds import Fields, checked_fields, sentence

__all__ = ["FIRST", "Line", "parse_line", "written"]

FIRST: Final = "0" * 64
"""What the very first line names as the line before it."""

_ECS_VERSION: Final = "8.11.0"
_OWN_NAMES: Final = {
    "error": "error.type",
    "node": "service.node.name",
    "rules": "rule.name",
}


@dataclass(frozen=True)
class Line:
    """One event as it was written.

    Attributes:
        sequence: Its number, from 0, through all files of the log.
        action: Its kind.
        time: When, in UTC.
        fields: Its values, by our names.
        previous: SHA-256 of the line before.
        data: The line without its newline.
    """

    sequence: int
    action: str
    time: str
    fields: Mapping[str, Any]
    previous: str
    data: bytes

    @property
    def sha256(self) -> str:
        """What the next line names."""
        return sha256_hex(self.data)

    @property
    def value(self) -> dict[str, Any]:
        """The line's JSON object."""
        parsed: dict[str, Any] = parse_canonical(self.data)
        return parsed


def written(
    sequence: int, previous: str, kind: str, fields: Fields, now: datetime
) -> Line:
    """A new line.

    Raises:
        UnknownEventError: It is not an event of the closed list.
    """
    known = checked_fields(kind, fields)
    time = now.astimezone(UTC).isoformat(timespec="milliseconds")
    own = {_OWN_NAMES[n]: v for n, v in fields.items() if n in _OWN_NAMES}
    labels = {n: v for n, v in fields.items() if n not in _OWN_NAMES}
    value = {
        "@timestamp": time.replace("+00:00", "Z"),
        "ecs.version": _ECS_VERSION,
        "event.action": kind,
        "event.category": [known.category],
        "event.dataset": "secfed",
        "event.kind": "alert" if known.alert else "event",
        "event.sequence": sequence,
        "event.type": [known.type],
        "labels": labels | {"previous_sha256": previous},
        "log.level": known.level,
        "message": sentence(known, fields),
        "service.name": "secfed",
        "service.version": secfed.__version__,
        **own,
        **({"event.outcome": known.outcome} if known.outcome else {}),
    }
    at = str(value["@timestamp"])
    return Line(sequence, kind, at, dict(fields), previous, canonical_json(value))


def parse_line(data: bytes) -> Line:
    """Read a line back; it says what its kind says, and nothing else.

    Raises:
        ValueError: It is not a line of an operations log.
    """
    value = parse_canonical(data)
    try:
        labels = dict(value["labels"])
        previous = labels.pop("previous_sha256")
        ours = {name: value[own] for name, own in _OWN_NAMES.items() if own in value}
        fields = labels | ours
        time = value["@timestamp"]
        again = written(
            value["event.sequence"],
            previous,
            value["event.action"],
            fields,
            datetime.fromisoformat(time),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a line of an operations log: {error}") from error
    if type(again.sequence) is not int or not isinstance(previous, str):
        raise ValueError("its number or the line before is malformed")
    # An older or newer secfed writes the same events.
    same = again.value | {"service.version": value.get("service.version")}
    if same != value:
        raise ValueError("it does not say what its kind says")
    return Line(again.sequence, again.action, time, fields, previous, data)
