"""Plays a whole secure sum in memory with the real code of both roles.

A test states only what differs from a healthy run: who leaves before which
phase, and which message is replaced on its way. Whoever raises is out, and what
it raised is kept; what a ``close_…`` raises ends the session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protocols.errors import (
    FaultyBoxesError,
    FaultyClientError,
    FaultyServerError,
    MessageError,
)
from protocols.keys import SigningKey, generate_identity
from protocols.ring import RingVector
from protocols.secagg import client, server
from protocols.secagg.params import (
    PHASES,
    Member,
    Phase,
    SessionParams,
    default_threshold,
)
from protocols.suites import SUITES

MODEL = hashlib.sha256(b"model").digest()
SUITE = SUITES[1]

# (phase, "up" or "down", client, message) -> the message that arrives, or None.
Tamper = Callable[[str, str, str, bytes], bytes | None]


def randomness(*labels: object) -> bytes:
    """32 bytes that a test can reproduce."""
    return hashlib.sha256(repr(labels).encode()).digest()


def identity_of(name: str) -> SigningKey:
    return generate_identity(randomness("identity", name))


def make_params(
    num_clients: int = 4, threshold: int = 0, **changes: Any
) -> SessionParams:
    names = sorted(f"site-{i}" for i in range(num_clients))
    colluders = changes.get("max_colluders", 1)
    values: dict[str, Any] = {
        "study_digest": hashlib.sha256(b"study").digest(),
        "round": 1,
        "attempt": 0,
        "purpose": "update",
        "roster": tuple(Member(n, identity_of(n).public_bytes) for n in names),
        "threshold": threshold or default_threshold(num_clients, colluders),
        "max_colluders": 1,
        "body_length": 9,
        "lane_length": 2,
    }
    return SessionParams(**{**values, **changes})


def make_inputs(params: SessionParams, seed: int = 0) -> dict[str, RingVector]:
    source = np.random.default_rng(seed)
    dtype = params.zeros().body.dtype
    top = 2**params.ring_bits
    return {
        member.name: RingVector(
            source.integers(0, top, params.body_length, dtype=dtype, endpoint=False),
            source.integers(0, 2**64, params.lane_length, dtype=np.uint64),
        )
        for member in params.roster
    }


def plain_sum(
    params: SessionParams, inputs: Mapping[str, RingVector], names: Any
) -> RingVector:
    """The slow obvious sum, in Python integers."""
    total = params.zeros()
    for array, part, modulus in (
        (total.body, "body", 2**params.ring_bits),
        (total.lane, "lane", 2**64),
    ):
        for i in range(array.size):
            array[i] = sum(int(getattr(inputs[n], part)[i]) for n in names) % modulus
    return total


@dataclass
class Session:
    """One session; ``play`` runs it and fills the rest in."""

    params: SessionParams
    inputs: Mapping[str, RingVector]
    leaves: Mapping[str, Phase] = field(default_factory=dict)  # silent from here on
    tamper: Tamper | None = None
    models: Mapping[str, bytes] = field(default_factory=dict)  # if not MODEL
    seed: int = 0
    threads: int = 1

    client_errors: dict[str, Exception] = field(default_factory=dict)
    server_errors: dict[str, Exception] = field(default_factory=dict)
    seen_by_server: list[bytes] = field(default_factory=list)
    states: dict[str, Any] = field(default_factory=dict)
    contexts: dict[str, bytes] = field(default_factory=dict)  # what a client signs over
    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)  # its survivors

    def play(self) -> server.SumResult:
        closing: Any = server.open_session(self.params, MODEL)
        downs: dict[str, bytes] = {m.name: b"" for m in self.params.roster}
        for phase in PHASES:
            for name, down in downs.items():
                closing = self.exchange(phase, name, down, closing)
            if phase == "unmask":
                return server.close_reveals(closing, threads=self.threads)
            closing, downs = CLOSE[phase](closing)
        raise AssertionError

    def exchange(self, phase: Phase, name: str, down: bytes, state: Any) -> Any:
        gone = name in self.client_errors or name in self.server_errors
        left = name in self.leaves and PHASES.index(self.leaves[name]) <= PHASES.index(
            phase
        )
        if gone or left:
            return state
        arrived = self._on_the_way(phase, "down", name, down)
        if arrived is None:
            return state
        try:
            self.states[name], message = self._client_step(phase, name, arrived)
        except (FaultyServerError, FaultyBoxesError) as error:
            self.client_errors[name] = error
            return state
        self._remember(name)
        sent = self._on_the_way(phase, "up", name, message)
        if sent is None:
            return state
        self.seen_by_server.append(sent)
        try:
            return RECEIVE[phase](state, name, sent)
        except (FaultyClientError, MessageError) as error:
            self.server_errors[name] = error
            return state

    def _remember(self, name: str) -> None:
        """Keep what a malicious client would sign over; states are used up."""
        state = self.states[name]
        if hasattr(state, "context"):
            self.contexts[name] = state.context
        if isinstance(state, client.SurvivorsConfirmed):
            self.lists[name] = state.survivors

    def _on_the_way(
        self, phase: Phase, way: str, name: str, message: bytes
    ) -> bytes | None:
        return self.tamper(phase, way, name, message) if self.tamper else message

    def _client_step(self, phase: Phase, name: str, down: bytes) -> tuple[Any, bytes]:
        fresh = randomness(self.seed, phase, name)
        state = self.states.get(name)
        if phase == "advertise-keys":
            model = self.models.get(name, MODEL)
            return client.advertise_keys(
                self.params, name, identity_of(name), model, randomness=fresh
            )
        if phase == "share-keys":
            return client.share_keys(state, down, randomness=fresh)
        if phase == "masked-input":
            vector = self.inputs[name]
            return client.mask_input(state, down, vector, threads=self.threads)
        if phase == "confirm-survivors":
            return client.confirm_survivors(state, down)
        return client.unmask(state, down)


RECEIVE: dict[str, Callable[..., Any]] = {
    "advertise-keys": server.receive_keys,
    "share-keys": server.receive_shares,
    "masked-input": server.receive_input,
    "confirm-survivors": server.receive_confirmation,
    "unmask": server.receive_reveal,
}
CLOSE: dict[str, Callable[..., Any]] = {
    "advertise-keys": server.close_keys,
    "share-keys": server.close_shares,
    "masked-input": server.close_inputs,
    "confirm-survivors": server.close_confirmations,
    "unmask": server.close_reveals,
}


def healthy(num_clients: int = 4, **changes: Any) -> Session:
    """A session with random inputs; ``changes`` are fields of ``Session``."""
    params = changes.pop("params", None) or make_params(num_clients)
    inputs = changes.pop("inputs", None) or make_inputs(params)
    return Session(params, inputs, **changes)


def assert_sum(session: Session, result: server.SumResult, names: Any) -> None:
    """The survivors are ``names`` and the total is their plain sum."""
    assert sorted(result.survivors) == sorted(names)
    expected = plain_sum(session.params, session.inputs, names)
    assert np.array_equal(result.total.body, expected.body)
    assert np.array_equal(result.total.lane, expected.lane)
