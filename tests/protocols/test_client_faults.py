"""A client that signs a fault is named by the server, and only it loses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.errors import FaultyClientError, TooFewSurvivorsError
from protocols.secagg import messages, server
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.params import PHASES
from tests.protocols.tampering import (
    BAD,
    blames_client,
    corrupted,
    malicious,
    only,
    opened_until,
    resigned,
    sum_without,
    wrong_share,
)
from tests.session import (
    CLOSE,
    RECEIVE,
    SUITE,
    assert_sum,
    healthy,
    identity_of,
    make_params,
)

LOW_ORDER = (1).to_bytes(32, "little")


def other_key(message):
    return replace(message, mask_key=message.channel_key)


SIGNED_FAULTS = [
    ("advertise-keys", lambda m: replace(m, channel_key=LOW_ORDER), "SA-101"),
    ("advertise-keys", lambda m: replace(m, mask_key=LOW_ORDER), "SA-101"),
    ("advertise-keys", lambda m: replace(m, mask_key=b"\xff" * 32), "SA-101"),
    ("advertise-keys", other_key, "SA-102"),
    ("advertise-keys", lambda m: replace(m, session=bytes(32)), "SA-011"),
    ("advertise-keys", lambda m: replace(m, sender=0), "SA-012"),
    ("advertise-keys", lambda m: replace(m, sender=999), "SA-012"),
    ("share-keys", lambda m: replace(m, boxes=m.boxes[1:]), "SA-203"),
    ("share-keys", lambda m: replace(m, boxes=()), "SA-203"),
    (
        "share-keys",
        lambda m: replace(m, boxes=(*m.boxes, replace(m.boxes[0], peer=77))),
        "SA-203",
    ),
    ("masked-input", lambda m: replace(m, cohort=(0, 2, 3, 4)), "SA-303"),
    ("masked-input", lambda m: replace(m, cohort=(0, 1, 2)), "SA-303"),
    ("masked-input", lambda m: replace(m, cohort=(0, 1, 2, 3, 4, 5)), "SA-303"),
    ("masked-input", lambda m: replace(m, vector=m.vector[:-4]), "SA-301"),
    ("masked-input", lambda m: replace(m, vector=b""), "SA-301"),
    ("unmask", lambda m: replace(m, reveals=m.reveals[1:]), "SA-504"),
    (
        "unmask",
        lambda m: replace(m, reveals=(replace(m.reveals[0], kind=2), *m.reveals[1:])),
        "SA-504",
    ),
]


@pytest.mark.parametrize(("phase", "change", "rule"), SIGNED_FAULTS)
def test_a_client_that_signs_a_fault_is_blamed(phase, change, rule):
    session = malicious(phase, change)
    sum_without(session, phase)
    error = session.server_errors[BAD]
    assert isinstance(error, FaultyClientError)
    assert (error.client, error.rule) == (BAD, rule)


def test_a_repeated_key_is_refused():
    taken = []
    session = malicious(
        "advertise-keys", lambda m: replace(m, mask_key=taken[0].channel_key)
    )
    change = session.tamper

    def tamper(phase, way, name, message):
        if (phase, way, name) == ("advertise-keys", "up", "site-0"):
            taken.append(messages.Advertise.from_bytes(message, SUITE))
        return change(phase, way, name, message)

    session.tamper = tamper
    sum_without(session, "advertise-keys")
    assert session.server_errors[BAD].rule == "SA-102"


def test_a_confirmation_of_another_list_is_refused():
    """SA-404: it covers the list, although the message does not hold it."""
    session = healthy(5)

    def confirm_other(message):
        state = session.states[BAD]
        parsed = messages.Confirm.from_bytes(message, SUITE)
        context = confirmed_context(state.context, state.survivors[:-1])
        return parsed.signed(identity_of(BAD), context).to_bytes()

    session.tamper = only("confirm-survivors", "up", confirm_other)
    sum_without(session, "confirm-survivors")
    assert session.server_errors[BAD].rule == "SA-014"


def test_a_box_that_does_not_open_names_the_pair_and_keeps_the_sum_right():
    """SA-205: it counts as not sent; SA-304: the two are not both in the sum."""
    session = malicious(
        "share-keys",
        lambda m: replace(m, boxes=(*m.boxes[:-1], corrupted(m.boxes[-1]))),
    )
    result = session.play()  # site-4 could not open the box of site-1
    assert_sum(session, result, ["site-0", "site-1", "site-2", "site-3"])
    assert result.dropouts == {"site-4": "masked-input"}
    assert result.blamed == (server.Suspicion("SA-304", ("site-4", BAD)),)


def test_a_member_whose_boxes_open_nowhere_is_in_every_noted_pair():
    # It can stop a session if its input comes first; it is named, not prevented.
    session = malicious(
        "share-keys",
        lambda m: replace(m, boxes=tuple(map(corrupted, m.boxes))),
        params=make_params(6, threshold=4),
    )
    state, down = opened_until(session, "masked-input")
    for name in (BAD, *(other for other in down if other != BAD)):
        state = session.exchange("masked-input", name, down[name], state)
    assert set(state.received) == {1}
    others = [name for name in down if name != BAD]
    pairs = tuple(server.Suspicion("SA-304", (name, BAD)) for name in others)
    assert state.suspicions == pairs
    with pytest.raises(TooFewSurvivorsError):
        server.close_inputs(state)


SECOND_MESSAGES = {
    "share-keys": lambda m: replace(m, boxes=tuple(map(corrupted, m.boxes))),
    "masked-input": lambda m: replace(m, vector=bytes(len(m.vector))),
    "unmask": lambda m: replace(m, reveals=tuple(map(wrong_share, m.reveals))),
    "advertise-keys": lambda m: replace(m, nonce=bytes(32)),
    # No second valid confirmation of one list exists: Ed25519 is deterministic.
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_repetition_is_ignored_and_a_second_message_is_a_fault(phase):
    session = healthy(5)
    state, down = opened_until(session, phase)
    state = session.exchange(phase, BAD, down[BAD], state)
    sent = session.seen_by_server[-1]
    assert RECEIVE[phase](state, BAD, sent) is state
    if phase in SECOND_MESSAGES:
        second = resigned(session, phase, SECOND_MESSAGES[phase])(sent)
        with blames_client(BAD, "SA-013"):
            RECEIVE[phase](state, BAD, second)
    for other in down:  # the rest of the session is as if nothing had happened
        if other != BAD:
            state = session.exchange(phase, other, down[other], state)
    CLOSE[phase](state)


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_client_that_left_before_is_not_part_of_a_later_phase(phase):
    session = healthy(5, leaves={BAD: PHASES[PHASES.index(phase) - 1]})
    state, _ = opened_until(session, phase)
    fields = {
        "share-keys": messages.ShareKeys(SUITE, state.session, 1, b"", ()),
        "masked-input": messages.MaskedInput(SUITE, state.session, 1, b"", (1,), b""),
        "confirm-survivors": messages.Confirm(SUITE, state.session, 1, b""),
        "unmask": messages.Unmask(SUITE, state.session, 1, b"", ()),
    }
    context = state.context
    if phase in {"confirm-survivors", "unmask"}:
        context = confirmed_context(context, sorted(state.cohorts))
    late = fields[phase].signed(identity_of(BAD), context).to_bytes()
    with blames_client(BAD, "SA-015"):
        RECEIVE[phase](state, BAD, late)
