"""Masks: uniform, bound to their context, the same for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from protocols.agreement import AgreementKey, KemSecret, encapsulate
from protocols.prg import CHUNK_BYTES, Stream
from protocols.ring import RingVector
from protocols.secagg import masks, messages
from protocols.suites import SUITES
from tests.session import (
    SUITE,
    assert_sum,
    healthy,
    make_inputs,
    make_params,
    randomness,
)


def test_masked_inputs_of_one_client_are_uniform_and_need_every_mask():
    # Whatever subset of masked vectors a server adds, short of the whole set with
    # its masks removed, it does not get a partial sum of inputs.
    params = make_params(3, body_length=256)
    session = healthy(params=params)
    session.play()
    sent = [
        messages.MaskedInput.from_bytes(m, SUITE)
        for m in session.seen_by_server
        if m[0] == 5
    ]
    vectors = [np.frombuffer(m.vector, dtype="<u4")[4:] for m in sent]
    inputs = [session.inputs[m.name].body for m in params.roster]
    for chosen in [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]:
        masked = np.sum([vectors[i] for i in chosen], axis=0, dtype=np.uint32)
        plain = np.sum([inputs[i] for i in chosen], axis=0, dtype=np.uint32)
        assert not np.any(masked == plain)


def test_masks_depend_on_the_directory_and_not_only_on_the_session():
    key, peer = AgreementKey(b"a" * 32), AgreementKey(b"b" * 32).public_bytes
    session = randomness("session")
    found = set()
    for directory in (b"x" * 32, b"y" * 32):
        for mask in (
            masks.pair_mask(0, key, 1, peer, session + directory),
            masks.self_mask(b"s" * 32, session + directory),
        ):
            found.add(mask.key)
    assert len(found) == 4


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_a_mask_belongs_to_both_ends_and_to_the_whole_secret(suite):
    """Either end derives it; each input changes it."""
    chosen = SUITES[suite]
    low, high, third = (
        AgreementKey.derive(b"test", bytes([i]) * 32, bytes(32), chosen)
        for i in range(3)
    )
    kem = encapsulate(high.public_bytes) if chosen.hybrid else None
    context = randomness("context")
    own = masks.pair_mask(3, low, 7, high.public_bytes, context, kem)
    theirs = kem and high.decapsulate(kem.ciphertext)
    other = masks.pair_mask(7, high, 3, low.public_bytes, context, theirs)
    assert own.key == other.key
    assert (own.negative, other.negative) == (False, True)
    changed = [
        masks.pair_mask(3, third, 7, high.public_bytes, context, kem),
        masks.pair_mask(4, low, 7, high.public_bytes, context, kem),
        masks.pair_mask(3, low, 8, high.public_bytes, context, kem),
        masks.pair_mask(3, low, 7, third.public_bytes, context, kem),
        masks.pair_mask(3, low, 7, high.public_bytes, randomness("other"), kem),
    ]
    if kem:
        changed += [
            masks.pair_mask(3, low, 7, high.public_bytes, context, one)
            for one in (
                KemSecret(kem.ciphertext, randomness("other secret")),
                KemSecret(bytes(len(kem.ciphertext)), kem.secret),
            )
        ]
    keys = [own.key, *(mask.key for mask in changed)]
    assert len(set(keys)) == len(keys)


# ------------------------------------------------------------------- threads

PER_CHUNK = {bits: CHUNK_BYTES * 8 // bits for bits in (16, 32, 64)}


def lengths(bits):
    """Around the borders of one, two and three chunks, and of a mask's 64 bytes."""
    chunk = PER_CHUNK[bits]
    borders = [chunk, 2 * chunk, 3 * chunk]
    return [0, 1, *(b + d for b in borders for d in (-1, 0, 1)), 3 * chunk + 12345]


def slow_masked(vector, applied, suite):
    """The obvious way: one read of the whole stream per mask."""
    total = vector.copy()
    lane_bytes = -(-vector.lane.nbytes // 64) * 64
    for mask in applied:
        stream = Stream(mask.key, suite.mask_cipher)
        lane = stream.read(lane_bytes)[: vector.lane.nbytes]
        body = stream.read(vector.body.nbytes)
        for part, data in ((total.lane, lane), (total.body, body)):
            values = np.frombuffer(data, dtype=part.dtype)
            change = np.subtract if mask.negative else np.add
            change(part, values, out=part)
    return total.to_bytes()


@pytest.mark.parametrize("suite", sorted(SUITES))
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("lane", [0, 9])
def test_masks_are_the_same_for_any_number_of_threads(suite, bits, lane):
    """SA-302: one stream per key, read in whatever pieces."""
    applied = [masks.Mask(bytes([i]) * 32, negative=bool(i % 2)) for i in range(3)]
    for length in lengths(bits):
        plain = RingVector.zeros(length, lane, bits)
        expected = slow_masked(plain, applied, SUITES[suite])
        for threads in (1, 2, 3, 8):
            vector = plain.copy()
            masks.add_masks(vector, applied, SUITES[suite], threads=threads)
            assert vector.to_bytes() == expected
        inverses = [mask.inverse() for mask in applied]
        masks.add_masks(vector, inverses, SUITES[suite], threads=2)
        assert vector.to_bytes() == plain.to_bytes()


def test_more_masks_than_streams_are_open_at_a_time():
    applied = [masks.Mask(i.to_bytes(32, "little")) for i in range(masks._BATCH + 2)]
    plain = RingVector.zeros(70_000, 3)
    expected = slow_masked(plain, applied, SUITE)
    for threads in (1, 2):
        vector = plain.copy()
        masks.add_masks(vector, applied, SUITE, threads=threads)
        assert vector.to_bytes() == expected


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_a_whole_session_is_the_same_for_any_number_of_threads(suite):
    params = make_params(4, suite=suite, body_length=2 * PER_CHUNK[32] + 77)
    inputs = make_inputs(params)
    sent = {}
    for threads in (1, 2, 3):
        leaves = {"site-2": "masked-input"}
        session = healthy(params=params, inputs=inputs, leaves=leaves, threads=threads)
        assert_sum(session, session.play(), ["site-0", "site-1", "site-3"])
        sent[threads] = [
            messages.MaskedInput.from_bytes(m, params.primitives).vector
            for m in session.seen_by_server
            if m[0] == messages.MaskedInput.tag
        ]
    if suite != 2:  # ML-KEM draws its own randomness
        assert sent[1] == sent[2] == sent[3]
