"""One encoding for every value that is hashed or signed.

Canonical JSON here: object keys are strings and sorted by code point, no spaces,
UTF-8 without escapes beyond what JSON requires, integers as digits, floats as
the shortest decimal that reads back to the same number, no NaN and no infinity.
A value has one encoding; ``parse_canonical`` refuses every other one, so that a
signed text cannot be rewritten without its digest changing.

What others read is in JCS (RFC 8785), by the package of that name: ``jcs`` and
``parse_jcs``. The two differ in numbers (``1.0`` is ``1`` in JCS, and an integer is
exact up to 2^53 only) and in the order of keys outside the basic plane. Digests of
studies were fixed before JCS was needed, and stay.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import rfc8785

__all__ = [
    "canonical_json",
    "digest",
    "file_sha256",
    "jcs",
    "parse_canonical",
    "parse_jcs",
    "parse_json",
    "sha256_hex",
]

_CHUNK_BYTES = 1 << 20


def canonical_json(value: object) -> bytes:
    """Encode a JSON-able value in its one canonical form.

    Args:
        value: Nested dicts with string keys, lists, tuples, strings, integers,
            finite floats, booleans and None. Tuples are written as lists.

    Returns:
        UTF-8 bytes without a trailing newline.

    Raises:
        ValueError: NaN, an infinity, a key that is not a string, a type that
            JSON does not have, text with a lone surrogate, or nesting too deep.

    >>> canonical_json({"b": 1, "a": [0.1, None, "é"]}).decode()
    '{"a":[0.1,null,"é"],"b":1}'
    """
    try:
        _require_string_keys(value)
        text = json.dumps(
            value,
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no canonical JSON exists for this value: {error}") from error


def parse_json(data: bytes) -> Any:
    """Read JSON strictly: UTF-8, no repeated key, no NaN, no infinity.

    Raises:
        ValueError: The bytes are not such a text.
    """
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError as error:
        raise ValueError("the JSON text is nested too deeply") from error


def parse_canonical(data: bytes) -> Any:
    """Read bytes that ``canonical_json`` wrote, and no others.

    Raises:
        ValueError: The bytes are not JSON, or not the canonical encoding of
            what they say.
    """
    value = parse_json(data)
    if canonical_json(value) != data:
        raise ValueError("the JSON text is not in canonical form")
    return value


def jcs(value: object) -> bytes:
    """Encode a JSON-able value as RFC 8785 asks.

    Raises:
        ValueError: NaN, an infinity, an integer beyond 2^53, a key that is not a
            string, a type that JSON does not have, or nesting too deep.

    >>> jcs({"b": 1.0, "a": [1e-7, None, "é"]}).decode()
    '{"a":[1e-7,null,"é"],"b":1}'
    """
    try:
        _require_string_keys(value)
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no JCS text exists for this value: {error}") from error


def parse_jcs(data: bytes) -> Any:
    """Read bytes that ``jcs`` wrote, and no others.

    Raises:
        ValueError: The bytes are not JSON, or not the JCS encoding of what they say.
    """
    value = parse_json(data)
    if jcs(value) != data:
        raise ValueError("the JSON text is not in canonical form")
    return value


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of some bytes, as 64 lowercase hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's contents, read in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    state = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON.

    Raises:
        ValueError: As ``canonical_json``.
    """
    return sha256_hex(canonical_json(value))


def _require_string_keys(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            # json.dumps would turn 1 and "1" into the same key.
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not a string")
            _require_string_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_string_keys(item)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    merged = dict(pairs)
    if len(merged) != len(pairs):
        raise ValueError("a JSON object repeats a key")
    return merged


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a JSON number")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
