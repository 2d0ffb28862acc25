"""Every field of every message changed: the right party is blamed, nothing leaks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from protocols import shamir
from protocols.agreement import AgreementKey
from protocols.errors import (
    FaultyClientError,
    FaultyServerError,
    FaultySharesError,
    MessageError,
    TooFewSurvivorsError,
)
from protocols.prg import Stream
from protocols.secagg import client, masks, messages, server
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.params import PHASES
from protocols.secagg.reconstruction import reconstruct
from protocols.suites import SUITES
from tests.session import (
    CLOSE,
    MODEL,
    RECEIVE,
    SUITE,
    assert_sum,
    healthy,
    identity_of,
    make_inputs,
    make_params,
    randomness,
)

BAD = "site-1"
LOW_ORDER = (1).to_bytes(32, "little")
UP = {
    "advertise-keys": messages.Advertise,
    "share-keys": messages.ShareKeys,
    "masked-input": messages.MaskedInput,
    "confirm-survivors": messages.Confirm,
    "unmask": messages.Unmask,
}
DOWN = {
    "share-keys": messages.Roster,
    "masked-input": messages.Delivery,
    "confirm-survivors": messages.Survivors,
    "unmask": messages.Confirmations,
}


def only(phase, way, change, name=BAD):
    """Change one message: of ``phase``, going ``way``, from or to ``name``."""

    def tamper(at_phase, at_way, at_name, message):
        here = (at_phase, at_way, at_name) == (phase, way, name)
        return change(message) if here else message

    return tamper


def flip(position):
    return lambda m: (
        m[:position] + bytes([m[position] ^ 0x10]) + m[position + 1 :]
        if position < len(m)
        else m + b"\0"
    )


def sum_without(session, phase, name=BAD):
    result = session.play()
    early = PHASES.index(phase) < 3
    names = [m.name for m in session.params.roster if m.name != name or not early]
    assert_sum(session, result, names)
    assert result.dropouts == {name: phase}
    return result


# ---------------------------------------------------- a client's messages


@pytest.mark.parametrize("phase", PHASES)
def test_any_changed_byte_of_a_client_message_costs_only_that_client(phase):
    sizes = []
    healthy(5, tamper=only(phase, "up", lambda m: sizes.append(len(m)) or m)).play()
    ends = {*range(48), *range(sizes[0] - 3, sizes[0])}
    positions = sorted(ends & set(range(sizes[0])) | set(range(0, sizes[0], 19)))
    for position in positions:
        session = healthy(5, tamper=only(phase, "up", flip(position)))
        sum_without(session, phase)
        assert set(session.server_errors) == {BAD}
        assert session.client_errors == {}
        error = session.server_errors[BAD]
        if isinstance(error, FaultyClientError):
            assert error.client == BAD
            assert error.rule in {"SA-011", "SA-012", "SA-014"}
        else:
            assert isinstance(error, MessageError)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "change", [lambda m: m[:-1], lambda m: m + b"\0", lambda m: b"", lambda m: m + m]
)
def test_cut_or_extended_client_messages_are_no_messages(phase, change):
    session = healthy(5, tamper=only(phase, "up", change))
    sum_without(session, phase)
    assert type(session.server_errors[BAD]) is MessageError


def resigned(session, phase, change):
    """A malicious client: change its parsed message, then sign that."""

    def act(message):
        parsed = change(UP[phase].from_bytes(message, SUITE))
        context = session.contexts.get(BAD, parsed.session)
        if phase in {"confirm-survivors", "unmask"}:
            context = confirmed_context(context, session.lists[BAD])
        return parsed.signed(identity_of(BAD), context).to_bytes()

    return act


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


def malicious(phase, change, num_clients=5):
    session = healthy(num_clients)
    session.tamper = only(phase, "up", resigned(session, phase, change))
    return session


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
    session = healthy(5)

    def confirm_other(message):
        state = session.states[BAD]
        parsed = messages.Confirm.from_bytes(message, SUITE)
        context = confirmed_context(state.context, state.survivors[:-1])
        return parsed.signed(identity_of(BAD), context).to_bytes()

    session.tamper = only("confirm-survivors", "up", confirm_other)
    sum_without(session, "confirm-survivors")
    assert session.server_errors[BAD].rule == "SA-014"


def corrupted(box):
    return replace(box, sealed=flip(40)(box.sealed))


def test_a_box_that_does_not_open_names_the_pair_and_keeps_the_sum_right():
    session = malicious(
        "share-keys",
        lambda m: replace(m, boxes=(*m.boxes[:-1], corrupted(m.boxes[-1]))),
    )
    result = session.play()  # site-4 could not open the box of site-1
    assert_sum(session, result, ["site-0", "site-1", "site-2", "site-3"])
    assert result.dropouts == {"site-4": "masked-input"}
    assert result.blamed == (server.Suspicion("SA-304", ("site-4", BAD)),)


def wrong_share(reveal):
    share = bytes([reveal.share[0] ^ 1]) + reveal.share[1:]
    return replace(reveal, share=share)


@pytest.mark.parametrize("victim", range(5))
def test_a_bad_share_among_enough_good_ones_names_dealer_and_holder(victim):
    session = malicious(
        "unmask",
        lambda m: replace(
            m,
            reveals=tuple(wrong_share(r) if r.peer == victim else r for r in m.reveals),
        ),
    )
    result = session.play()
    assert_sum(session, result, [f"site-{i}" for i in range(5)])
    pair = server.Suspicion("SA-506", (f"site-{victim}", BAD))
    assert result.blamed == (pair,)


@pytest.mark.parametrize("late", [True, False])
def test_a_bad_share_without_spare_ones_names_everybody_concerned(late):
    session = malicious(
        "unmask",
        lambda m: replace(m, reveals=(*m.reveals[:3], wrong_share(m.reveals[3]))),
        num_clients=4,
    )
    session.leaves = {"site-3": "confirm-survivors" if late else "masked-input"}
    with pytest.raises(FaultySharesError) as caught:
        session.play()
    assert caught.value.dealer == "site-3"
    assert BAD in caught.value.holders


@pytest.mark.parametrize("field", ["self_secret", "recovery"])
def test_a_dealer_that_shares_another_secret_is_blamed(field):
    params = make_params(6, threshold=4)
    leaves = {BAD: "masked-input"} if field == "recovery" else {}
    session = healthy(params=params, leaves=leaves)

    def cheat(message):
        session.states[BAD] = replace(session.states[BAD], **{field: bytes(32)})
        return message

    session.tamper = only("advertise-keys", "up", cheat)
    with pytest.raises(FaultyClientError) as caught:
        session.play()
    assert (caught.value.client, caught.value.rule) == (BAD, "SA-506")


def opened_until(session, phase):
    """The server's state and its messages at the start of ``phase``."""
    state = server.open_session(session.params, MODEL)
    down = {member.name: b"" for member in session.params.roster}
    for before in PHASES[: PHASES.index(phase)]:
        for name, message in down.items():
            state = session.exchange(before, name, message, state)
        state, down = CLOSE[before](state)
    return state, down


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
        with pytest.raises(FaultyClientError) as caught:
            RECEIVE[phase](state, BAD, second)
        assert (caught.value.client, caught.value.rule) == (BAD, "SA-013")
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
    with pytest.raises(FaultyClientError) as caught:
        RECEIVE[phase](state, BAD, late)
    assert (caught.value.client, caught.value.rule) == (BAD, "SA-015")


# ---------------------------------------------------- the server's messages


def victims_error(session):
    """Play; the honest client must have blamed the server."""
    with suppress(TooFewSurvivorsError):
        session.play()
    error = session.client_errors[BAD]
    assert isinstance(error, FaultyServerError)
    return error


def parsed_down(phase, change):
    return only(
        phase, "down", lambda m: change(DOWN[phase].from_bytes(m, SUITE)).to_bytes()
    )


def without(items, *positions):
    return tuple(item for i, item in enumerate(items) if i not in positions)


def with_item(items, position, item):
    return (*items[:position], item, *items[position + 1 :])


SERVER_FAULTS = [
    ("share-keys", lambda m: replace(m, entries=without(m.entries, 1)), "SA-104"),
    ("share-keys", lambda m: replace(m, entries=without(m.entries, 0, 2)), "SA-105"),
    ("share-keys", lambda m: replace(m, entries=()), "SA-104"),
    ("share-keys", lambda m: replace(m, session=bytes(32)), "SA-011"),
    *(
        (
            "share-keys",
            lambda m, f=field: replace(
                m,
                entries=with_item(
                    m.entries, 2, replace(m.entries[2], **{f: b"\x11" * 32})
                ),
            ),
            rule,
        )
        for field, rule in [
            ("session", "SA-011"),
            ("channel_key", "SA-014"),
            ("mask_key", "SA-014"),
            ("commitment", "SA-014"),
            ("nonce", "SA-014"),
        ]
    ),
    (
        "share-keys",
        lambda m: replace(
            m, entries=with_item(m.entries, 4, replace(m.entries[3], sender=4))
        ),
        "SA-014",
    ),
    (
        "share-keys",
        lambda m: replace(m, entries=(*m.entries, replace(m.entries[4], sender=5))),
        "SA-103",
    ),
    ("masked-input", lambda m: replace(m, boxes=m.boxes[2:]), "SA-206"),
    ("masked-input", lambda m: replace(m, boxes=()), "SA-206"),
    ("masked-input", lambda m: replace(m, session=bytes(32)), "SA-011"),
    (
        "masked-input",
        lambda m: replace(m, boxes=(m.boxes[0], replace(m.boxes[1], peer=1))),
        "SA-204",
    ),
    (
        "masked-input",
        lambda m: replace(m, boxes=(*m.boxes, replace(m.boxes[0], peer=9))),
        "SA-204",
    ),
    (
        "masked-input",  # two swapped pairs: all four do not open
        lambda m: replace(
            m,
            boxes=tuple(
                replace(box, sealed=other.sealed)
                for box, other in zip(m.boxes, m.boxes[::-1], strict=True)
            ),
        ),
        "SA-206",
    ),
    ("confirm-survivors", lambda m: replace(m, survivors=(0, 2, 3, 4)), "SA-401"),
    ("confirm-survivors", lambda m: replace(m, survivors=(0, 1, 2, 3, 9)), "SA-402"),
    ("confirm-survivors", lambda m: replace(m, survivors=(0, 1, 2)), "SA-403"),
    ("confirm-survivors", lambda m: replace(m, survivors=(1,)), "SA-403"),
    ("confirm-survivors", lambda m: replace(m, session=bytes(32)), "SA-011"),
    ("unmask", lambda m: replace(m, confirmations=m.confirmations[2:]), "SA-501"),
    ("unmask", lambda m: replace(m, confirmations=()), "SA-501"),
    ("unmask", lambda m: replace(m, session=bytes(32)), "SA-011"),
    (
        "unmask",
        lambda m: replace(
            m,
            confirmations=with_item(
                m.confirmations,
                0,
                replace(m.confirmations[0], signature=m.confirmations[2].signature),
            ),
        ),
        "SA-014",
    ),
    (
        "unmask",
        lambda m: replace(
            m,
            confirmations=with_item(
                m.confirmations, 4, replace(m.confirmations[4], signer=99)
            ),
        ),
        "SA-501",
    ),
]


@pytest.mark.parametrize(("phase", "change", "rule"), SERVER_FAULTS)
def test_a_server_that_breaks_a_rule_is_blamed(phase, change, rule):
    session = healthy(5, tamper=parsed_down(phase, change))
    assert victims_error(session).rule == rule
    assert set(session.client_errors) == {BAD}


@pytest.mark.parametrize("phase", DOWN)
def test_any_changed_byte_of_a_server_message(phase):
    sizes = []
    healthy(5, tamper=only(phase, "down", lambda m: sizes.append(len(m)) or m)).play()
    for position in sorted({*range(40), *range(0, sizes[0], 23), sizes[0]}):
        if position >= sizes[0] + 1:
            continue
        session = healthy(5, tamper=only(phase, "down", flip(position)))
        with suppress(TooFewSurvivorsError):
            session.play()
        error = session.client_errors.get(BAD)
        if error is not None:
            assert isinstance(error, FaultyServerError)
            continue
        # The one change that is not fatal by itself: a box that does not open.
        assert phase == "masked-input"
        assert position >= 39


@pytest.mark.parametrize("phase", DOWN)
@pytest.mark.parametrize(
    "change", [lambda m: m[:-1], lambda m: m + b"\0", lambda m: b""]
)
def test_server_messages_of_wrong_length(phase, change):
    session = healthy(5, tamper=only(phase, "down", change))
    assert victims_error(session).rule == "SA-010"


def test_a_server_that_loses_one_box_sees_it_in_the_signed_cohort():
    lose = parsed_down("masked-input", lambda m: replace(m, boxes=m.boxes[:-1]))
    session = healthy(7, tamper=lose)  # t = 5; site-1 shares no mask with site-6
    result = session.play()
    assert_sum(session, result, [f"site-{i}" for i in range(6)])
    assert result.dropouts == {"site-6": "masked-input"}
    assert result.blamed == (server.Suspicion("SA-304", ("site-6", BAD)),)


def test_selective_delivery_cannot_put_a_victim_in_a_wider_sum():
    # The victim gets boxes of t - 1 others only; the list names all five.
    def attack(phase, way, name, message):
        if way == "down" and name == BAD and phase == "masked-input":
            parsed = messages.Delivery.from_bytes(message, SUITE)
            return replace(parsed, boxes=parsed.boxes[:3]).to_bytes()
        if way == "down" and phase == "confirm-survivors":
            parsed = messages.Survivors.from_bytes(message, SUITE)
            return replace(parsed, survivors=(0, 1, 2, 3, 4)).to_bytes()
        return message

    session = healthy(5, tamper=attack)
    assert victims_error(session).rule == "SA-402"


def test_different_survivor_lists_never_get_enough_confirmations():
    def equivocate(phase, way, name, message):
        if way == "down" and phase == "confirm-survivors":
            left_out = 5 if name in {"site-0", "site-1", "site-2"} else 0
            listed = tuple(i for i in range(6) if i != left_out)
            parsed = messages.Survivors.from_bytes(message, SUITE)
            return replace(parsed, survivors=listed).to_bytes()
        return message

    session = healthy(6, tamper=equivocate)
    with pytest.raises(TooFewSurvivorsError):
        session.play()
    finished = [n for n, s in session.states.items() if isinstance(s, client.Finished)]
    assert finished == []


def test_no_client_ever_reveals_both_shares_or_one_of_its_own_recovery_key():
    session = healthy(6, leaves={"site-5": "masked-input"})
    session.play()
    reveals = [
        messages.Unmask.from_bytes(m, SUITE)
        for m in session.seen_by_server
        if m[0] == 9
    ]
    assert len(reveals) == 5
    for unmask in reveals:
        kinds = {one.peer: one.kind for one in unmask.reveals}
        assert len(kinds) == len(unmask.reveals)
        assert kinds[unmask.sender] == messages.REVEAL_SELF
        assert kinds[5] == messages.REVEAL_RECOVERY


# ---------------------------------------------------- different models


def test_a_client_with_another_model_is_in_another_session():
    session = healthy(5, models={BAD: bytes(32)})
    sum_without(session, "advertise-keys")
    error = session.server_errors[BAD]
    assert (error.client, error.rule) == (BAD, "SA-011")


def test_a_server_cannot_mix_clients_with_different_models():
    params = make_params(5)
    states, entries = {}, []
    for index, member in enumerate(params.roster):
        states[member.name], sent = client.advertise_keys(
            params,
            member.name,
            identity_of(member.name),
            bytes(32) if member.name == BAD else MODEL,
            randomness=randomness(index),
        )
        entries.append(messages.Advertise.from_bytes(sent, SUITE))
    for name, state in states.items():
        session = state.seat.session
        # Even when the server rewrites the session id of every foreign entry.
        rewritten = tuple(replace(entry, session=session) for entry in entries)
        for listed, rule in [(tuple(entries), "SA-011"), (rewritten, "SA-014")]:
            roster = messages.Roster(SUITE, session, listed).to_bytes()
            with pytest.raises(FaultyServerError) as caught:
                client.share_keys(state, roster, randomness=randomness(name))
            assert caught.value.rule == rule


def test_the_session_id_covers_every_parameter():
    base = make_params(6, threshold=4)
    roster = base.roster
    changes = [
        {"study_digest": bytes(32)},
        {"round": 2},
        {"attempt": 1},
        {"purpose": "other"},
        {"roster": roster[1:]},
        {"roster": with_item(roster, 0, replace(roster[0], name="aaa"))},
        {"roster": with_item(roster, 0, replace(roster[0], identity=b"\1" * 32))},
        {"threshold": 5},
        {"max_colluders": 0},
        {"body_length": 10},
        {"lane_length": 3},
        {"ring_bits": 16},
        {"mode": "semi-honest"},
    ]
    ids = {replace(base, **change).session_id(MODEL) for change in changes}
    ids |= {base.session_id(MODEL), base.session_id(bytes(32))}
    assert len(ids) == len(changes) + 2


def test_different_directories_give_nothing_in_common():
    # Honest rosters that differ in one member: contexts differ, no box opens.
    params = make_params(5)
    states, entries = {}, {}
    for member in params.roster:
        states[member.name], sent = client.advertise_keys(
            params,
            member.name,
            identity_of(member.name),
            MODEL,
            randomness=randomness(member.name),
        )
        entries[member.name] = messages.Advertise.from_bytes(sent, SUITE)
    session = params.session_id(MODEL)
    boxes = {}
    for name in ["site-0", "site-1", "site-2", "site-3"]:
        listed = [e for n, e in entries.items() if n != "site-4" or name != "site-0"]
        roster = messages.Roster(SUITE, session, tuple(listed)).to_bytes()
        states[name], sent = client.share_keys(
            states[name], roster, randomness=randomness(name)
        )
        boxes[name] = {
            b.peer: b.sealed for b in messages.ShareKeys.from_bytes(sent, SUITE).boxes
        }
    delivered = [messages.Box(i, boxes[f"site-{i}"][0]) for i in (1, 2, 3)]
    delivery = messages.Delivery(SUITE, session, tuple(delivered)).to_bytes()
    with pytest.raises(FaultyServerError) as caught:
        client.mask_input(states["site-0"], delivery, make_inputs(params)["site-0"])
    assert caught.value.rule == "SA-206"


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


def dealt_shares(secret, params):
    points = range(1, len(params.roster) + 1)
    dealt = shamir.split([secret], params.threshold, points, Stream(b"k" * 32))
    return {holder: share for holder, (share,) in enumerate(dealt)}


def test_bad_holders_cannot_get_an_honest_dealer_blamed_alone():
    params, secret = make_params(6, threshold=4), b"s" * 32
    good = dealt_shares(secret, params)
    bad = {h: Stream(bytes([h]) * 32).read(36) for h in (0, 2, 5)}
    bad = {h: shamir.interpolate([1], [_small(share)], 1) for h, share in bad.items()}
    with pytest.raises(FaultySharesError) as caught:  # three good ones are too few
        reconstruct(params, 1, {**good, **bad}, secret.__eq__)
    assert caught.value.dealer == "site-1"
    shares = {**good, 2: bad[2], 5: bad[5]}  # four good ones: found, the others named
    assert reconstruct(params, 1, shares, secret.__eq__) == (secret, ((1, 2), (1, 5)))


def _small(share):
    """Random bytes as a canonical share: every limb below 2^22."""
    return b"".join(
        share[i : i + 2] + bytes([share[i + 2] & 0x3F]) for i in range(0, 36, 3)
    )


def test_colluding_holders_cannot_frame_honest_ones():
    # Errors of holders 2 and 3 that cancel at zero for the subset 2..7: it gives the
    # right secret, and the honest holders 0 and 1 do not fit its polynomial.
    params, secret = make_params(8, threshold=6, max_colluders=2), b"s" * 32
    shares = dealt_shares(secret, params)

    def weight(own, points):
        value = 1
        for other in points:
            if other != own:
                value = (
                    value * other * pow(other - own, -1, shamir.PRIME) % shamir.PRIME
                )
        return value

    points = range(3, 9)
    ratio = weight(3, points) * pow(-weight(4, points), -1, shamir.PRIME)
    for holder, error in ((2, 1), (3, ratio)):
        limb = (int.from_bytes(shares[holder][:3], "little") + error) % shamir.PRIME
        shares[holder] = limb.to_bytes(3, "little") + shares[holder][3:]
    found, groups = reconstruct(params, 1, shares, secret.__eq__)
    assert found == secret
    assert groups == ((1, 0, 2, 3, 4, 5, 6, 7),)


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


def test_a_box_sent_back_to_its_sender_does_not_open():
    sent = {}

    def reflect(phase, way, name, message):
        if (phase, way, name) == ("share-keys", "up", BAD):
            parsed = messages.ShareKeys.from_bytes(message, SUITE)
            sent.update({box.peer: box.sealed for box in parsed.boxes})
        if (phase, way, name) == ("masked-input", "down", BAD):
            parsed = messages.Delivery.from_bytes(message, SUITE)
            boxes = tuple(replace(b, sealed=sent[b.peer]) for b in parsed.boxes)
            return replace(parsed, boxes=boxes).to_bytes()
        return message

    assert victims_error(healthy(5, tamper=reflect)).rule == "SA-206"


def test_share_size_is_as_stated():
    assert shamir.SHARE_BYTES == 36
    assert messages.box_bytes(SUITES[1]) == 100
    assert messages.advertise_bytes(SUITES[1]) == 3 + 32 + 2 + 128 + 64
    assert messages.box_bytes(SUITES[2]) == 1188
    assert messages.advertise_bytes(SUITES[2]) == 229 + 2 * 1184
