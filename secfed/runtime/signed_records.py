"""Withdrawals and incidents: small records that a site or a coordinator signs.

A record is one canonical JSON object with the public key of who signed it. Every field
has a fixed form; none is a free text. Whether the key is the right one is the reader's
question: compare its fingerprint with the roster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from secfed.canonical import canonical_json, parse_canonical
from secfed.errors import VerificationError
from secfed.operations import INCIDENTS
from secfed.signing import RECORD, verify_signature

__all__ = ["EFFECT", "read_record", "signed"]

EFFECT: Final = "future rounds only; nothing that was learned is unlearned"
"""What a withdrawal does, in the record itself."""

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_RUN: Final = re.compile(r"[0-9A-Za-z]{1,32}(/[A-Za-z0-9_.+-]{1,100})?")


def signed(
    public: bytes, sign: Callable[[bytes], bytes], fields: Mapping[str, Any]
) -> bytes:
    """A record as the text of a file.

    Args:
        public: The public key, 32 bytes.
        sign: Signs a message under the label ``RECORD``.
        fields: What the record says.

    Raises:
        VerificationError: A field does not have its form.
    """
    whole = {"format": 1, **fields, "key": public.hex()}
    signature = sign(canonical_json(whole))
    data = canonical_json(whole | {"signature": signature.hex()}) + b"\n"
    read_record(data, "a new record")
    return data


def read_record(data: bytes, where: str | Path) -> dict[str, Any]:
    """Parse a record; check every field and the signature by the key in it.

    Raises:
        VerificationError: It is malformed or wrongly signed.
    """
    try:
        value = _formed(parse_canonical(data.removesuffix(b"\n")))
    except (ValueError, TypeError) as error:
        raise VerificationError(f"{where}: {error}") from error
    unsigned = {name: item for name, item in value.items() if name != "signature"}
    try:
        verify_signature(
            bytes.fromhex(value["key"]),
            RECORD,
            canonical_json(unsigned),
            bytes.fromhex(value["signature"]),
        )
    except VerificationError as error:
        raise VerificationError(f"{where}: {error}") from error
    return value


def _formed(value: Any) -> dict[str, Any]:
    """A record whose fields are all there, and all of their form.

    Raises:
        ValueError: They are not.
    """
    if not isinstance(value, dict) or value.get("format") != 1:
        raise ValueError("not a record of a format that this version reads")
    forms = _KINDS.get(value.get("kind", ""))
    if forms is None or value.keys() != forms.keys():
        raise ValueError("the fields are not those of a withdrawal or an incident")
    for name, has_form in forms.items():
        if not has_form(value[name]):
            raise ValueError(f"{name!r} has another form")
    return value


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def _in(*allowed: object) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(a) and value == a for a in allowed)


def _optional(form: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or form(value)


def _time(value: Any) -> bool:
    return isinstance(value, str) and (
        datetime.fromisoformat(value).isoformat(timespec="seconds") == value
    )


def _round_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n > 0 for n in value)


def _runs(value: Any) -> bool:
    forms = {"run": _matches(_RUN), "rounds": _round_numbers}
    last = {"final_adapter_sha256": _optional(_matches(_HEX))}
    return isinstance(value, list) and all(
        isinstance(one, dict)
        and one.keys() == (forms | last).keys()
        and all(form(one[name]) for name, form in (forms | last).items())
        for one in value
    )


def _bound(value: Any) -> bool:
    return value is None or (type(value) is float and value >= 0)


_ANY: Final[Mapping[str, Callable[[Any], bool]]] = {
    "format": _in(1),
    "by": _matches(_NAME),
    "at": _time,
    "key": _matches(_HEX),
    "signature": _matches(re.compile(r"[0-9a-f]{128}")),
}

_KINDS: Final[Mapping[str, Mapping[str, Callable[[Any], bool]]]] = {
    "withdrawal": {
        **_ANY,
        "kind": _in("withdrawal"),
        "study": _matches(_HEX),
        "effect": _in(EFFECT),
        "runs": _runs,
        "unit": _in("record", "person", "site"),
        "epsilon": _bound,
        "delta": _bound,
    },
    "incident": {
        **_ANY,
        "kind": _in("incident"),
        "study": _optional(_matches(_HEX)),
        "incident": _in(*INCIDENTS),
        "noticed_at": _time,
    },
}
