"""Our protocol and the second implementation, mixed in one session.

Each session is played by ours alone and by a mix, with the same randomness: every
message of both must be the same, byte by byte, and the sum the plain one.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.ring import RingVector
from protocols.secagg import client, server
from protocols.secagg.params import PHASES, min_threshold
from tests.protocols.reference import secagg, transcript
from tests.session import (
    CLOSE,
    MODEL,
    RECEIVE,
    identity_of,
    make_inputs,
    make_params,
    plain_sum,
    randomness,
)

FIRST = {phase: place for place, phase in enumerate(PHASES)}


def study_of(params):
    """The same parameters in the words of the second implementation."""
    members = tuple((member.name, member.identity) for member in params.roster)
    names = set(transcript.Study.__dataclass_fields__) - {"roster"}
    values = {name: getattr(params, name) for name in names}
    return transcript.Study(roster=members, **values)


# ------------------------------------- both implementations behind one interface


class OurClient:
    def __init__(self, params, name, vector):
        self.params, self.name, self.vector = params, name, vector

    def answer(self, phase, received):
        fresh = randomness("mixed", phase, self.name)
        if phase == "advertise-keys":
            identity = identity_of(self.name)
            self.state, message = client.advertise_keys(
                self.params, self.name, identity, MODEL, randomness=fresh
            )
            return message
        step, extra = {
            "share-keys": (client.share_keys, {"randomness": fresh}),
            "masked-input": (client.mask_input, {"vector": self.vector}),
            "confirm-survivors": (client.confirm_survivors, {}),
            "unmask": (client.unmask, {}),
        }[phase]
        self.state, message = step(self.state, received, **extra)
        return message


class ReferenceClient:
    def __init__(self, params, name, vector):
        self.name = name
        seed = identity_of(name).to_bytes()
        self.client = secagg.Client(study_of(params), name, seed, MODEL)
        self.vector = vector.lane.tolist(), vector.body.tolist()

    def answer(self, phase, received):
        fresh = randomness("mixed", phase, self.name)
        if phase == "advertise-keys":
            return self.client.advertise(fresh)
        if phase == "share-keys":
            return self.client.share(received, fresh)
        if phase == "masked-input":
            return self.client.mask(received, self.vector)
        if phase == "confirm-survivors":
            return self.client.confirm(received)
        return self.client.reveal(received)


class OurServer:
    def __init__(self, params):
        self.state = server.open_session(params, MODEL)

    def close(self, phase, messages):
        for name, message in messages.items():
            self.state = RECEIVE[phase](self.state, name, message)
        if phase == "unmask":
            return CLOSE[phase](self.state).total
        self.state, answers = CLOSE[phase](self.state)
        return answers


class ReferenceServer:
    def __init__(self, params):
        self.params = params
        self.server = secagg.Server(study_of(params), MODEL)

    def close(self, phase, messages):
        step = {
            "advertise-keys": self.server.publish,
            "share-keys": self.server.deliver,
            "masked-input": self.server.survive,
            "confirm-survivors": self.server.relay,
            "unmask": self.server.finish,
        }[phase]
        result = step(list(messages.values()))
        if phase == "unmask":
            total, (lane, body) = self.params.zeros(), result
            return RingVector(
                np.array(body, total.body.dtype), np.array(lane, total.lane.dtype)
            )
        if phase == "share-keys":
            return {self.params.name_of(i): answer for i, answer in result.items()}
        return dict.fromkeys(messages, result)


def play(params, inputs, leaves, reference, *, reference_server):
    """The sum and every message; ``reference`` names the other clients."""
    clients = {
        name: (ReferenceClient if name in reference else OurClient)(
            params, name, inputs[name]
        )
        for name in inputs
    }
    closing = (ReferenceServer if reference_server else OurServer)(params)
    answers, transcript_ = dict.fromkeys(inputs, b""), []
    for phase in PHASES:
        sent = {
            name: clients[name].answer(phase, received)
            for name, received in answers.items()
            if FIRST[phase] < FIRST.get(leaves.get(name), len(PHASES))
        }
        answers = closing.close(phase, sent)
        transcript_.append((phase, sent, answers if phase != "unmask" else None))
    return answers, transcript_


def survivors_of(params, leaves):
    after = {"confirm-survivors", "unmask", None}
    return [m.name for m in params.roster if leaves.get(m.name) in after]


def assert_agree(params, leaves, reference, *, reference_server):
    inputs = make_inputs(params, seed=7)
    ours, our_messages = play(params, inputs, leaves, (), reference_server=False)
    mixed, mixed_messages = play(
        params, inputs, leaves, reference, reference_server=reference_server
    )
    assert mixed_messages == our_messages
    expected = plain_sum(params, inputs, survivors_of(params, leaves))
    for total in (ours, mixed):
        assert total.to_bytes() == expected.to_bytes()


# ------------------------------------------------------------------- the tests


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("reference_server", [False, True])
def test_mixed_clients_with_one_dropout(phase, reference_server):
    params = make_params(5, threshold=4)
    reference = {"site-0", "site-2"}
    for name in ("site-2", "site-3"):  # of either kind
        leaves = {name: phase}
        assert_agree(params, leaves, reference, reference_server=reference_server)


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@pytest.mark.parametrize(
    ("body_length", "lane_length"), [(0, 1), (9, 0), (33, 8), (5, 9)]
)
def test_every_shape_of_vector(ring_bits, body_length, lane_length):
    shape = {"body_length": body_length, "lane_length": lane_length}
    params = make_params(3, threshold=3, ring_bits=ring_bits, **shape)
    assert_agree(params, {}, {"site-1"}, reference_server=True)


@st.composite
def scenarios(draw):
    """Parameters, who leaves when, and who is of the second implementation."""
    num_clients = draw(st.integers(3, 6))
    colluders = draw(st.integers(0, min(1, num_clients - 3)))
    threshold = draw(st.integers(min_threshold(num_clients, colluders), num_clients))
    params = make_params(
        num_clients,
        threshold=threshold,
        max_colluders=colluders,
        mode=draw(st.sampled_from(["malicious", "semi-honest"])),
        round=draw(st.integers(0, 2**32 - 1)),
    )
    names = [member.name for member in params.roster]
    spare = num_clients - max(threshold, params.min_cohort)
    leavers = draw(st.lists(st.sampled_from(names), unique=True, max_size=spare))
    leaves = {name: draw(st.sampled_from(PHASES)) for name in leavers}
    return params, leaves, draw(st.sets(st.sampled_from(names)))


@settings(max_examples=15, deadline=None)
@given(scenarios(), st.booleans())
def test_any_mix_agrees(scenario, reference_server):
    params, leaves, reference = scenario
    assert_agree(params, leaves, reference, reference_server=reference_server)


def test_another_model_is_another_session_for_both():
    params = make_params(3, threshold=3)
    study = study_of(params)
    other = bytes(32)
    for model in (MODEL, other):
        assert study.session_id(model) == params.session_id(model)
    assert study.session_id(MODEL) != study.session_id(other)


def test_the_second_implementation_stands_alone():
    folder = Path(secagg.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in {"protocols", "secfed", "numpy"}
