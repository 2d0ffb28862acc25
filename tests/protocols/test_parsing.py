"""Any bytes give a value or ``MessageError``; both round trips hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import wire
from protocols.errors import FaultyServerError, MessageError, MisuseError
from protocols.keys import SigningKey, verify_signature
from protocols.ring import RingVector
from protocols.secagg import client, messages, server
from tests.session import MODEL, SUITE, healthy, identity_of, make_params, randomness

TYPES = [
    messages.Advertise,
    messages.Roster,
    messages.ShareKeys,
    messages.Delivery,
    messages.MaskedInput,
    messages.Survivors,
    messages.Confirm,
    messages.Confirmations,
    messages.Unmask,
]


def real_messages():
    """One real message of every type."""
    seen = {}

    def record(phase, way, name, message):
        if message:
            seen[message[0]] = message
        return message

    healthy(4, tamper=record, leaves={"site-3": "masked-input"}).play()
    return seen


REAL = real_messages()


@pytest.mark.parametrize("kind", TYPES)
def test_round_trip_of_real_messages(kind):
    data = REAL[kind.tag]
    parsed = kind.from_bytes(data, SUITE)
    assert parsed.to_bytes() == data
    assert kind.from_bytes(parsed.to_bytes(), SUITE) == parsed
    for other in TYPES:
        if other is not kind:
            with pytest.raises(MessageError):
                other.from_bytes(data, SUITE)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(TYPES), st.binary(max_size=400), st.booleans(), st.integers(0, 3)
)
def test_any_bytes_parse_canonically_or_not_at_all(kind, tail, with_header, count):
    header = bytes((kind.tag, 1, 1)) + bytes(32)
    data = header + wire.u16(count) + tail if with_header else tail
    try:
        parsed = kind.from_bytes(data, SUITE)
    except MessageError:
        return
    assert parsed.to_bytes() == data


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(TYPES), st.data())
def test_mutated_messages_parse_canonically_or_not_at_all(kind, data):
    original = REAL[kind.tag]
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(len(original), start + 4)))
    changed = original[:start] + data.draw(st.binary(max_size=4)) + original[end:]
    try:
        parsed = kind.from_bytes(changed, SUITE)
    except MessageError:
        return
    assert parsed.to_bytes() == changed


@pytest.mark.parametrize("garbage", ["text", None, bytearray(b"\1\1\1"), 7])
def test_what_is_not_bytes_is_no_message(garbage):
    with pytest.raises(MessageError):
        messages.Confirm.from_bytes(garbage, SUITE)


def test_sets_have_one_order():
    for indices in [(1, 0), (1, 1)]:
        data = messages.Survivors(SUITE, bytes(32), indices).to_bytes()
        with pytest.raises(MessageError):
            messages.Survivors.from_bytes(data, SUITE)


@pytest.mark.parametrize("bits", [16, 32])
@given(
    body=st.lists(st.integers(0, 2**16 - 1)), lane=st.lists(st.integers(0, 2**64 - 1))
)
@settings(deadline=None, max_examples=20)
def test_ring_vectors_round_trip(bits, body, lane):
    vector = RingVector.zeros(len(body), len(lane), bits)
    vector.body[:] = body
    vector.lane[:] = lane
    data = vector.to_bytes()
    back = RingVector.from_bytes(data, len(body), len(lane), bits)
    assert back.to_bytes() == data
    assert back.body.tolist() == body
    assert back.lane.tolist() == lane
    assert data[: 8 * len(lane)] == b"".join(n.to_bytes(8, "little") for n in lane)
    with pytest.raises(MessageError):
        RingVector.from_bytes(data + b"\0", len(body), len(lane), bits)


# ------------------------------------------------------------ misuse


def advertised(params, name="site-0"):
    return client.advertise_keys(
        params, name, identity_of(name), MODEL, randomness=randomness(name)
    )


def test_a_step_refuses_the_state_of_another_phase():
    params = make_params(4)
    state, _ = advertised(params)
    for step in (
        lambda: client.mask_input(state, b"", params.zeros()),
        lambda: client.confirm_survivors(state, b""),
        lambda: client.unmask(state, b""),
    ):
        with pytest.raises(MisuseError):
            step()
    opened = server.open_session(params, MODEL)
    for wrong in (server.close_shares, server.close_inputs, server.close_reveals):
        with pytest.raises(MisuseError):
            wrong(opened)


def test_a_failed_step_leaves_the_state_and_a_good_one_uses_it_up():
    """SA-006, SA-507: an answered state leads on once and refers to nothing."""
    used = {}

    def keep(phase, way, name, message):
        if way == "down" and name == "site-0" and phase != "advertise-keys":
            state = session.states[name]
            with pytest.raises(FaultyServerError):
                session._client_step(phase, name, message + b"\0")
            used[phase] = (state, message)
        return message

    session = healthy(4, tamper=keep)
    session.play()
    steps = {
        "share-keys": lambda s, m: client.share_keys(s, m, randomness=bytes(32)),
        "masked-input": lambda s, m: client.mask_input(s, m, session.params.zeros()),
        "confirm-survivors": client.confirm_survivors,
        "unmask": client.unmask,
    }
    assert set(used) == set(steps)
    for phase, (state, message) in used.items():
        assert vars(state) == {}
        with pytest.raises(MisuseError, match="has been used"):
            steps[phase](state, message)


def test_an_older_server_state_cannot_count_an_input_twice():
    held = {}

    def keep(phase, way, name, message):
        if phase == "masked-input" and way == "up":
            held[name] = message
        return message

    session = healthy(4, tamper=keep)
    state = server.open_session(session.params, MODEL)
    down = {member.name: b"" for member in session.params.roster}
    for phase, close in [
        ("advertise-keys", server.close_keys),
        ("share-keys", server.close_shares),
    ]:
        for name, message in down.items():
            state = session.exchange(phase, name, message, state)
        state, down = close(state)
    session.exchange("masked-input", "site-0", down["site-0"], state)
    with pytest.raises(MisuseError):
        server.receive_input(state, "site-0", held["site-0"])


def test_arguments_of_our_own_caller():
    """SA-005: fresh randomness; pinned identity, known name, whole digest."""
    params = make_params(4)
    stranger = SigningKey(bytes(32))
    for name, identity, model, fresh in [
        ("nobody", stranger, MODEL, bytes(32)),
        ("site-0", stranger, MODEL, bytes(32)),
        ("site-0", identity_of("site-0"), b"short", bytes(32)),
        ("site-0", identity_of("site-0"), MODEL, bytes(31)),
    ]:
        with pytest.raises(MisuseError):
            client.advertise_keys(params, name, identity, model, randomness=fresh)
    with pytest.raises(MisuseError):
        server.receive_keys(server.open_session(params, MODEL), "nobody", REAL[1])


def test_a_vector_of_another_shape_is_refused_and_nothing_is_spent():
    wrong = [RingVector.zeros(8, 2), RingVector.zeros(9, 1), RingVector.zeros(9, 2, 16)]

    def attempt(phase, way, name, message):
        if (phase, way, name) == ("masked-input", "down", "site-0"):
            for vector in wrong:
                with pytest.raises(MisuseError):
                    client.mask_input(session.states[name], message, vector)
        return message

    session = healthy(4, tamper=attempt)
    assert len(session.play().survivors) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 2},
        {"max_dropouts": 1},
        {"degree": 2},
        {"threshold": 5},
        {"max_colluders": 3},
        # 2 t = n + |C|: the server could collect t shares of both secrets.
        {"roster": make_params(7).roster, "threshold": 4},
        {"roster": make_params(8).roster, "threshold": 5, "max_colluders": 2},
        {"max_colluders": -1},
        {"suite": 4},
        {"mode": "trusting"},
        {"ring_bits": 31},
        {"round": -1},
        {"attempt": 2**32},
        {"body_length": -1},
        {"lane_length": -1},
        {"study_digest": b"short"},
        {"roster": ()},
        {"roster": make_params(3).roster[:2]},
        {"roster": make_params(4).roster[::-1]},
        {"roster": (*make_params(3).roster, make_params(3).roster[2])},
    ],
)
def test_parameters_that_contradict_each_other_are_refused(changes):
    """SA-001 (the roster), SA-002 (the threshold), SA-003 (names), SA-004 (widths)."""
    with pytest.raises(MisuseError):
        make_params(4, **changes)


# ------------------------------------------------------------ secrets


def test_secrets_never_show():
    shown = []

    def show(phase, way, name, message):
        if name in session.states:
            state = session.states[name]
            shown.append((state, repr(state), str(state), f"{state!r}"))
        return message

    session = healthy(4, tamper=show)
    secrets = [identity_of(m.name).to_bytes() for m in session.params.roster]
    session.play()
    assert len(shown) > 20
    for state, *texts in shown:
        for text in texts:
            name = type(state).__name__
            assert text == f"<{name}>" or (
                name == "Finished" and text.startswith("Finished(survivors=")
            )
    key = identity_of("site-0")
    assert repr(key) == "<SigningKey>"
    assert all(secret.hex() not in repr(key) for secret in secrets)
    vector = RingVector.zeros(3)
    vector.body[:] = 12345
    assert "12345" not in repr(vector)
    verify_signature(key.public_bytes, b"x", key.sign(b"x"))
