"""Every message of every suite, a bit flipped, cut or extended: who is blamed."""

from __future__ import annotations

import pytest

from protocols.errors import FaultyClientError, FaultyServerError, MessageError
from protocols.secagg import messages
from protocols.secagg.params import PHASES
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from protocols.suites import SUITES
from tests.protocols.tampering import BAD, finished, flip, opened_until
from tests.session import (
    MODEL,
    RECEIVE,
    assert_sum,
    healthy,
    identity_of,
    make_params,
)

CUTS = [lambda m: m[:-1], lambda m: m + b"\0", lambda m: b"", lambda m: m + m]
HEADER_BYTES = 35
SUITE_NUMBERS = sorted(SUITES)

RULES = {
    phase: {"SA-010", "SA-011", *more}
    for phase, more in {
        "share-keys": {"SA-014", "SA-103"},
        "masked-input": {"SA-204"},
        "confirm-survivors": {"SA-401", "SA-402"},
        "unmask": {"SA-014", "SA-501"},
    }.items()
}
"""What a flipped bit of the server's message can be refused for."""


def positions(message):
    """All of the header, the last bytes, and about a hundred between."""
    ends = {*range(HEADER_BYTES + 13), *range(len(message) - 3, len(message) + 1)}
    step = max(1, len(message) // 100)
    return sorted((ends | set(range(0, len(message), step))) & set(range(len(message))))


def suited(suite, **changes):
    return healthy(params=make_params(5, suite=suite), **changes)


def sent_by(session, phase, name=BAD):
    """The server before ``phase`` is over, and what one client sent in it."""
    state, down = opened_until(session, phase)
    session.states[name], sent = session._client_step(phase, name, down[name])
    return state, down, sent


# ---------------------------------------------------- a client's messages


@pytest.mark.parametrize("suite", SUITE_NUMBERS)
@pytest.mark.parametrize("phase", PHASES)
def test_any_changed_byte_of_a_client_message_costs_only_that_client(phase, suite):
    session = suited(suite)
    state, down, sent = sent_by(session, phase)
    for change in [flip(position) for position in positions(sent)]:
        with pytest.raises((FaultyClientError, MessageError)) as caught:
            RECEIVE[phase](state, BAD, change(sent))
        if isinstance(caught.value, FaultyClientError):
            assert caught.value.client == BAD
            assert caught.value.rule in {"SA-011", "SA-012", "SA-014"}
    # The others go on without it as if it had been silent.
    assert_sum_without_bad(session, phase, state, down)


@pytest.mark.parametrize("suite", SUITE_NUMBERS)
@pytest.mark.parametrize("phase", PHASES)
def test_cut_or_extended_client_messages_are_no_messages(phase, suite):
    state, _, sent = sent_by(suited(suite), phase)
    for change in CUTS:
        with pytest.raises(MessageError):
            RECEIVE[phase](state, BAD, change(sent))


def assert_sum_without_bad(session, phase, state, down):
    result = finished(session, phase, state, down, silent={BAD})
    early = PHASES.index(phase) < 3
    names = [m.name for m in session.params.roster if m.name != BAD or not early]
    assert_sum(session, result, names)
    assert result.dropouts == {BAD: phase}
    assert result.blamed == ()


# ---------------------------------------------------- the server's messages


def reader_of(session, phase):
    """A fresh copy of one client's state for each message it is shown."""
    _, down = opened_until(session, phase)
    saved = state_to_bytes(session.states[BAD])

    def read(message):
        key = identity_of(BAD)
        session.states[BAD] = state_from_bytes(session.params, key, MODEL, saved)
        return session._client_step(phase, BAD, message)

    return read, down[BAD]


@pytest.mark.parametrize("suite", SUITE_NUMBERS)
@pytest.mark.parametrize("phase", PHASES[1:])
def test_any_changed_byte_of_a_server_message(phase, suite):
    session = suited(suite)
    read, message = reader_of(session, phase)
    silent, rules = 0, set()
    for position in positions(message):
        try:
            state, _ = read(flip(position)(message))
        except FaultyServerError as error:
            rules.add(error.rule)
            continue
        # The one change that is not fatal by itself: a box (or its offer) that
        # is not as its dealer sealed it costs the dealer its place.
        assert phase == "masked-input"
        assert position >= HEADER_BYTES + 2
        assert len(state.cohort) == 4
        silent += 1
    assert (silent > 0) == (phase == "masked-input")
    assert {"SA-010", "SA-011"} <= rules <= RULES[phase]


@pytest.mark.parametrize("suite", SUITE_NUMBERS)
@pytest.mark.parametrize("phase", PHASES[1:])
@pytest.mark.parametrize("change", CUTS)
def test_server_messages_of_wrong_length(phase, suite, change):
    read, message = reader_of(suited(suite), phase)
    with pytest.raises(FaultyServerError) as caught:
        read(change(message))
    assert caught.value.rule == "SA-010"


@pytest.mark.parametrize(
    ("suite", "other"),
    [(s, o) for s in SUITE_NUMBERS for o in (*SUITE_NUMBERS, 0, 4, 255) if s != o],
)
def test_a_message_of_another_suite_is_no_message_of_this_one(suite, other):
    session = suited(suite)
    state, down = opened_until(session, "share-keys")
    relabelled = down[BAD][:2] + bytes([other]) + down[BAD][3:]
    with pytest.raises(FaultyServerError) as caught:
        session._client_step("share-keys", BAD, relabelled)
    assert caught.value.rule == "SA-010"
    with pytest.raises(MessageError):
        RECEIVE["share-keys"](state, BAD, relabelled)
    if other in SUITES:  # and its parameters are another session
        params = make_params(5, suite=other)
        assert params.session_id(MODEL) != session.params.session_id(MODEL)


def test_sizes_are_as_stated():
    assert messages.box_bytes(SUITES[1]) == 100
    assert messages.advertise_bytes(SUITES[1]) == 3 + 32 + 2 + 128 + 64
    assert messages.box_bytes(SUITES[2]) == 1188
    assert messages.advertise_bytes(SUITES[2]) == 229 + 2 * 1184
    assert messages.vault_bytes(3) == 28 + 3 * 32
