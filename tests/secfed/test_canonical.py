from __future__ import annotations

import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfed.canonical import (
    canonical_json,
    digest,
    file_sha256,
    parse_canonical,
    parse_json,
    sha256_hex,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def test_known_form() -> None:
    value = {"b": [1, 2.5, "ä\n"], "a": None, "é": True}
    assert canonical_json(value) == '{"a":null,"b":[1,2.5,"ä\\n"],"é":true}'.encode()


def test_tuples_are_lists_and_order_does_not_matter() -> None:
    assert canonical_json({"a": (1, 2), "b": 0}) == canonical_json(
        {"b": 0, "a": [1, 2]}
    )


@given(VALUES)
def test_round_trip(value: object) -> None:
    data = canonical_json(value)
    again = parse_canonical(data)
    assert again == json.loads(data)
    assert canonical_json(again) == data


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        [-math.inf],
        {1: 2},
        {"a": {None: 1}},
        b"bytes",
        {1, 2},
        "\ud800",
    ],
)
def test_values_without_canonical_form(value: object) -> None:
    with pytest.raises(ValueError, match="no canonical JSON"):
        canonical_json(value)


def test_nesting_too_deep_is_a_value_error() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="no canonical JSON"):
        canonical_json(value)
    with pytest.raises(ValueError, match="nested"):
        parse_json(b"[" * 100_000)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1 }',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b"1.0e0",
        b'"\\u00e9"',
        b"[NaN]",
        b"[Infinity]",
        b"[1e999]",
        b"\xff",
        b"\xef\xbb\xbf1",
        b"",
        b"1\n",
    ],
)
def test_only_the_canonical_encoding_is_read(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_canonical(data)


def test_digests(tmp_path) -> None:
    expected = hashlib.sha256(b'{"a":1}').hexdigest()
    (tmp_path / "f").write_bytes(b'{"a":1}')
    assert digest({"a": 1}) == sha256_hex(b'{"a":1}') == expected
    assert file_sha256(tmp_path / "f") == expected
    large = b"x" * (3 << 20)
    (tmp_path / "g").write_bytes(large)
    assert file_sha256(tmp_path / "g") == hashlib.sha256(large).hexdigest()
