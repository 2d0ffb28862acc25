"""What our own caller may not do: a ``MisuseError`` before anything happens."""

from __future__ import annotations

import numpy as np
import pytest

from protocols import shamir
from protocols.errors import MessageError, MisuseError
from protocols.keys import ExchangeKey, SigningKey
from protocols.prg import Stream
from protocols.ring import RingVector, body_bytes
from protocols.secagg import stored
from protocols.secagg.params import Member
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from tests.session import MODEL, identity_of, make_params


@pytest.mark.parametrize("key", [SigningKey, ExchangeKey])
@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_have_32_bytes(key, size):
    with pytest.raises(MisuseError, match="32 bytes"):
        key(bytes(size))


def test_an_exchange_with_a_point_of_low_order_is_refused_even_unverified():
    with pytest.raises(MessageError, match="low order"):
        ExchangeKey(b"a" * 32).exchange((1).to_bytes(32, "little"))


@pytest.mark.parametrize("offset", [-64, 1, 16, 63, 2**38])
def test_a_stream_is_entered_at_whole_blocks(offset):
    with pytest.raises(MisuseError, match="cannot be entered"):
        Stream(bytes(32), offset_bytes=offset)


def test_a_stream_does_not_show_its_key():
    assert repr(Stream(b"k" * 32)) == "Stream()"


@pytest.mark.parametrize(
    ("body", "lane", "match"),
    [
        (np.zeros((2, 2), "<u4"), np.zeros(1, "<u8"), "one-dimensional"),
        (np.zeros(4, "<u4")[::2], np.zeros(1, "<u8"), "contiguous"),
        (np.zeros(4, "<u4"), np.zeros((1, 1), "<u8"), "one-dimensional"),
        (np.zeros(4, "<i4"), np.zeros(1, "<u8"), "uint16, 32 or 64"),
        (np.zeros(4, "<u1"), np.zeros(1, "<u8"), "uint16, 32 or 64"),
        (np.zeros(4, "<u4"), np.zeros(1, "<u4"), "lane must be uint64"),
    ],
)
def test_a_vector_has_one_shape_and_one_order(body, lane, match):
    with pytest.raises(MisuseError, match=match):
        RingVector(body=body, lane=lane)


@pytest.mark.parametrize("other", [(5, 2, 32), (4, 1, 32), (4, 2, 16), (4, 2, 64)])
def test_vectors_of_different_shapes_are_not_added(other):
    vector = RingVector.zeros(4, 2)
    with pytest.raises(MisuseError, match="different shapes"):
        vector.add_in_place(RingVector.zeros(*other))


@pytest.mark.parametrize("bits", [0, 8, 31, 128])
def test_unknown_rings_are_refused(bits):
    with pytest.raises(MisuseError, match="ring_bits"):
        body_bytes(bits)


def test_identities_have_32_bytes():
    roster = make_params(3).roster
    with pytest.raises(MisuseError, match="32 bytes"):
        make_params(4, roster=(*roster, Member("site-3", bytes(31))))


def test_shares_fit_their_points():
    share = bytes(shamir.SHARE_BYTES)
    for points, shares in (([1, 2], [share]), ([], []), ([1], [share, share])):
        with pytest.raises(MisuseError, match="one share per point"):
            shamir.reconstruct(points, shares)
    with pytest.raises(MisuseError, match="32 bytes"):
        shamir.split([bytes(31)], 2, [1, 2, 3], Stream(bytes(32)))


# ------------------------------------------------------- stored states, damaged


def stored_state():
    params = make_params(4)
    record = stored.start(
        params, "site-1", identity_of("site-1"), MODEL, randomness=bytes(32)
    )
    return params, state_to_bytes(record.state)


def test_a_stored_key_of_the_wrong_size_is_refused():
    params, data = stored_state()
    place = 2 + 32 + 2  # version, phase, session, index; then the size of the key
    for size in (31, 33, 96):
        changed = data[:place] + size.to_bytes(4, "little") + data[place + 4 :]
        with pytest.raises(MessageError, match="stored key has the wrong size"):
            state_from_bytes(params, identity_of("site-1"), MODEL, changed)


def test_a_stored_name_that_is_no_text_is_refused():
    params, _ = stored_state()
    data = bytes((1, 5)) + (1).to_bytes(2, "little") + (2).to_bytes(4, "little")
    with pytest.raises(MessageError, match="not text"):
        state_from_bytes(params, identity_of("site-1"), MODEL, data + b"\xff\xfe")
