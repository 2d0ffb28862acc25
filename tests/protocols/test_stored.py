"""A client that runs one message per process: same bytes, one answer, no rollback."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import FaultyServerError, MessageError, MisuseError
from protocols.secagg import client, messages, server, stored
from protocols.secagg.params import PHASES
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from tests.session import (
    CLOSE,
    MODEL,
    RECEIVE,
    SUITE,
    identity_of,
    make_inputs,
    make_params,
    plain_sum,
    randomness,
)

NAME = "site-1"


def restored(params, name, data):
    return stored.Record.from_bytes(params, identity_of(name), MODEL, data)


class Disk:
    """One record per client; every step reads it, writes it, and only then sends."""

    def __init__(self, params, inputs):
        self.params, self.inputs, self.records = params, inputs, {}
        self.history = []

    def start(self, name):
        record = stored.start(
            self.params,
            name,
            identity_of(name),
            MODEL,
            randomness=randomness("start", name),
        )
        self.records[name] = record.to_bytes()
        return restored(self.params, name, self.records[name]).outbound

    def answer(self, name, message, salt=""):
        record = stored.answer(
            restored(self.params, name, self.records[name]),
            message,
            randomness=randomness(salt, name, message),
            vector=self.inputs[name],
        )
        self.records[name] = record.to_bytes()
        self.history.append((name, message, record.outbound))
        return record.outbound


def played(params):
    inputs = make_inputs(params)
    disk = Disk(params, inputs)
    state = server.open_session(params, MODEL)
    answers = {member.name: disk.start(member.name) for member in params.roster}
    for phase in PHASES:
        for name, message in answers.items():
            state = RECEIVE[phase](state, name, message)
        closed = CLOSE[phase](state)
        if phase == "unmask":
            return disk, closed
        state, downs = closed
        answers = {name: disk.answer(name, down) for name, down in downs.items()}
    raise AssertionError


@pytest.mark.parametrize("suite", [1, 2, 3])
def test_a_session_of_processes_that_keep_nothing_in_memory(suite):
    params = make_params(4, suite=suite)
    disk, result = played(params)
    expected = plain_sum(params, disk.inputs, disk.inputs)
    assert np.array_equal(result.total.body, expected.body)
    assert np.array_equal(result.total.lane, expected.lane)


def test_a_message_asked_again_after_a_restart_gets_the_same_bytes():
    params = make_params(4)
    disk = Disk(params, make_inputs(params))
    adverts = {m.name: disk.start(m.name) for m in params.roster}
    state = server.open_session(params, MODEL)
    for name, message in adverts.items():
        state = server.receive_keys(state, name, message)
    state, downs = server.close_keys(state)
    first = disk.answer(NAME, downs[NAME])
    assert disk.answer(NAME, downs[NAME], salt="after a crash") == first


def test_no_second_unmask_request_is_answered_after_a_restart():
    params = make_params(4)
    disk, _ = played(params)
    asked = [m for n, m, _ in disk.history if n == NAME]
    last = messages.Confirmations.from_bytes(asked[-1], SUITE)
    fewer = messages.Confirmations(SUITE, last.session, last.confirmations[:2])
    before = disk.records[NAME]
    with pytest.raises(FaultyServerError, match="SA-009"):
        disk.answer(NAME, fewer.to_bytes())
    assert disk.records[NAME] == before
    revealed = disk.history[-1][2]
    assert disk.answer(disk.history[-1][0], disk.history[-1][1]) == revealed


@pytest.mark.parametrize("step", range(1, 4))
def test_a_phase_that_is_over_answers_no_other_message(step):
    params = make_params(4)
    disk, _ = played(params)
    # Every record of this client, as it was on disk after each step.
    replay = Disk(params, disk.inputs)
    replay.start(NAME)
    asked = [m for n, m, _ in disk.history if n == NAME]
    for message in asked[:step]:
        replay.answer(NAME, message)
    old = asked[step - 1]
    other = old[:-1] + bytes([old[-1] ^ 1])
    with pytest.raises(FaultyServerError):
        replay.answer(NAME, other, salt="again")


def records_of(params):
    """The record of one client after each step of a session."""
    disk, _ = played(params)
    again = Disk(params, disk.inputs)
    again.start(NAME)
    found = [again.records[NAME]]
    for message in (m for n, m, _ in disk.history if n == NAME):
        again.answer(NAME, message)
        found.append(again.records[NAME])
    return found


@pytest.mark.parametrize("suite", [1, 2])
def test_every_state_survives_bytes(suite):
    params = make_params(4, suite=suite)
    kinds = []
    for data in records_of(params):
        record = restored(params, NAME, data)
        kinds.append(type(record.state))
        assert record.to_bytes() == data
    assert kinds == [
        client.Advertised,
        client.KeysShared,
        client.InputMasked,
        client.SurvivorsConfirmed,
        client.Finished,
    ]


RECORDS = records_of(make_params(4))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4), st.data())
def test_damaged_records_are_refused_or_read_back_as_they_are(number, data):
    record = bytearray(RECORDS[number])
    position = data.draw(st.integers(0, len(record) - 1))
    record[position] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(record)))
    params = make_params(4)
    for damaged in (bytes(record), bytes(RECORDS[number][:cut])):
        try:
            found = restored(params, NAME, damaged)
        except (MessageError, MisuseError):
            continue
        assert found.to_bytes() == damaged


def test_a_record_of_another_session_or_identity_is_refused():
    params = make_params(4)
    data = RECORDS[0]
    with pytest.raises(MisuseError, match="another session"):
        restored(make_params(4, round=2), NAME, data)
    with pytest.raises(MisuseError, match="another identity"):
        stored.Record.from_bytes(params, identity_of("site-2"), MODEL, data)
    for garbage in (b"", b"\0" * 40, data[:36] + b"\1\7" + data[38:]):
        with pytest.raises(MessageError):
            restored(params, NAME, garbage)


def test_a_used_state_cannot_be_stored_and_an_input_is_needed():
    params = make_params(4)
    record = stored.start(params, NAME, identity_of(NAME), MODEL, randomness=b"r" * 32)
    shared = restored(params, NAME, RECORDS[1])
    with pytest.raises(MisuseError, match="encoded input is needed"):
        stored.answer(shared, b"a delivery")
    vars(record.state).clear()
    with pytest.raises(MisuseError, match="has been used"):
        record.to_bytes()
    with pytest.raises(MessageError, match="must be bytes"):
        stored.answer(shared, "text")


def test_stored_secrets_do_not_show():
    record = restored(make_params(4), NAME, RECORDS[1])
    assert repr(record) == "<Record>"
    assert repr(record.state) == "<KeysShared>"
    with pytest.raises(MessageError):
        state_from_bytes(
            make_params(4), identity_of(NAME), MODEL, state_to_bytes(record.state)[:-1]
        )
