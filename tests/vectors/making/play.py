"""Plays one round for the vectors, with the real code of both roles.

Everything that happens is fixed: identities, randomness and inputs come from
SHA-256 of the round's name, and encapsulations are replayed. Each message goes
into ``Game.sent``; the round ends with a sum or with the first refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from protocols.errors import (
    FaultyBoxesError,
    FaultyClientError,
    FaultyServerError,
    FaultySharesError,
    MessageError,
    TooFewSurvivorsError,
)
from protocols.keys import SigningKey
from protocols.ring import RingVector
from protocols.secagg import server, stored
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.params import PHASES, Member, Phase, SessionParams
from tests.vectors.making.encapsulations import Encapsulations, Hook

MODEL = hashlib.sha256(b"model").digest()
SERVER = "server"

RECEIVE: Mapping[Phase, Callable[..., Any]] = {
    "advertise-keys": server.receive_keys,
    "share-keys": server.receive_shares,
    "masked-input": server.receive_input,
    "confirm-survivors": server.receive_confirmation,
    "unmask": server.receive_reveal,
}
CLOSE: Mapping[Phase, Callable[..., Any]] = {
    "advertise-keys": server.close_keys,
    "share-keys": server.close_shares,
    "masked-input": server.close_inputs,
    "confirm-survivors": server.close_confirmations,
    "unmask": server.close_reveals,
}


class Place(NamedTuple):
    """One message of a round."""

    phase: Phase
    way: str  # up: from the client; down: to it
    client: str
    second: bool = False  # it comes in addition to the first one


Change = Callable[["Game", bytes], bytes]


@dataclass(frozen=True)
class Script:
    """What the deviating parties do."""

    changes: Mapping[Place, Change] = field(default_factory=dict)
    states: Mapping[tuple[Phase, str], Callable[[Any], Any]] = field(
        default_factory=dict
    )
    encapsulations: Mapping[tuple[str, str, str], Hook] = field(default_factory=dict)


HONEST = Script()


@dataclass(frozen=True)
class Round:
    """A round, before it is played."""

    name: str
    about: str
    num_clients: int
    threshold: int
    leaves: Mapping[str, Phase] = field(default_factory=dict)  # silent from here on
    parameters: Mapping[str, Any] = field(default_factory=dict)
    deviates: Mapping[str, str] = field(default_factory=dict)  # who, and how
    script: Script = HONEST

    def fresh(self, *labels: str) -> bytes:
        """32 bytes for one purpose of this round."""
        return hashlib.sha256("|".join((self.name, *labels)).encode()).digest()

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(f"site-{index}" for index in range(self.num_clients))

    def identity(self, name: str) -> SigningKey:
        return SigningKey(self.fresh("identity", name))

    @cached_property
    def params(self) -> SessionParams:
        identities = [self.identity(name).public_bytes for name in self.names]
        values: dict[str, Any] = {
            "study_digest": self.fresh("study"),
            "round": 1,
            "attempt": 0,
            "purpose": "update",
            "roster": tuple(map(Member, self.names, identities)),
            "threshold": self.threshold,
            "max_colluders": 0,
            "body_length": 5,
            "lane_length": 1,
        }
        return SessionParams(**{**values, **self.parameters})

    def input(self, name: str) -> RingVector:
        """Bytes of SHA-256 in counter mode, over the whole ring."""
        params = self.params
        size = len(params.zeros().to_bytes())
        blocks = (self.fresh("input", name, str(i)) for i in range(-(-size // 32)))
        shape = (params.body_length, params.lane_length, params.ring_bits)
        return RingVector.from_bytes(b"".join(blocks)[:size], *shape)


class UnexpectedEndError(Exception):
    """A round ended with a refusal where a sum was meant, or the other way round."""


class RefusedError(Exception):
    """The round has ended: one party does not go on."""


class Game:
    """One round while it is played."""

    def __init__(self, spec: Round, encapsulations: Encapsulations) -> None:
        self.spec, self.script = spec, spec.script
        self.encapsulations = encapsulations
        self.acting = ("everybody", "before")  # party and phase, for those who look on
        self.params = spec.params
        self.session = self.params.session_id(MODEL)
        self.sent: dict[Place, bytes] = {}
        self.records: dict[str, stored.Record] = {}
        self.refusal: dict[str, Any] | None = None
        self.result: server.SumResult | None = None

    def play(self) -> Game:
        self.server: Any = server.open_session(self.params, MODEL)
        downs = dict.fromkeys(self.spec.names, b"")
        try:
            for phase in PHASES:
                downs = self._phase(phase, downs)
        except RefusedError:
            pass
        return self

    @property
    def context(self) -> bytes:
        """What messages of this moment are signed over."""
        if isinstance(self.server, server.CollectingKeys):
            return self.session
        context: bytes = self.server.context
        if hasattr(self.server, "cohorts"):
            return confirmed_context(context, sorted(self.server.cohorts))
        return context

    def _phase(self, phase: Phase, downs: Mapping[str, bytes]) -> dict[str, bytes]:
        for name, message in downs.items():
            self._client(phase, name, message)
        for place, message in list(self.sent.items()):
            if (place.phase, place.way) == (phase, "up"):
                self._receive(place, message)
        for place in self.script.changes:
            if (place.phase, place.way, place.second) == (phase, "up", True):
                first = self.sent.get(place._replace(second=False), b"")
                self._receive(place, self._passed(place, first))
        self.acting = (SERVER, phase)
        with self._refusing(phase, "close"):
            closed = CLOSE[phase](self.server)
        if phase == "unmask":
            self.result = closed
            return {}
        self.server, answers = closed
        return dict(answers)

    def _client(self, phase: Phase, name: str, message: bytes) -> None:
        down = Place(phase, "down", name)
        if phase != "advertise-keys":
            message = self._passed(down, message)
        if name in self.spec.leaves and (
            PHASES.index(phase) >= PHASES.index(self.spec.leaves[name])
        ):
            return
        self.acting = (name, phase)
        with self._refusing(phase, "answer"):
            answer = self._answer(phase, name, message)
            self._passed(Place(phase, "up", name), answer)
            again = down._replace(second=True)
            if again in self.script.changes:
                self._answer(phase, name, self._passed(again, message))

    def _passed(self, place: Place, message: bytes) -> bytes:
        """The message that arrives."""
        if place in self.script.changes:
            message = self.script.changes[place](self, message)
        self.sent[place] = message
        return message

    def _answer(self, phase: Phase, name: str, message: bytes) -> bytes:
        fresh = self.spec.fresh("randomness", phase, name)
        if phase == "advertise-keys":
            identity = self.spec.identity(name)
            record = stored.start(self.params, name, identity, MODEL, randomness=fresh)
        else:
            before = self.records[name]
            change = self.script.states.get((phase, name), lambda state: state)
            with self.encapsulations.replayed(name, self.server, self.script):
                record = stored.answer(
                    replace(before, state=change(before.state)),
                    message,
                    randomness=fresh,
                    vector=self.spec.input(name),
                )
        self.records[name] = record
        return record.outbound

    def _receive(self, place: Place, message: bytes) -> None:
        self.acting = (SERVER, place.phase)
        with self._refusing(place.phase, "receive", place.client):
            self.server = RECEIVE[place.phase](self.server, place.client, message)

    @contextmanager
    def _refusing(self, phase: Phase, step: str, sender: str = "") -> Iterator[None]:
        try:
            yield
        except (
            FaultyBoxesError,
            FaultyClientError,
            FaultyServerError,
            FaultySharesError,
            MessageError,
            TooFewSurvivorsError,
        ) as error:
            party = self.acting[0]
            self.refusal = {
                "party": party,
                "phase": phase,
                "step": step,
                "error": type(error).__name__,
                **named(error, sender),
            }
            raise RefusedError from error


def named(error: Exception, sender: str) -> dict[str, Any]:
    """The rule, and whom the error names."""
    if isinstance(error, FaultyServerError):
        return {"rule": error.rule}
    if isinstance(error, FaultyBoxesError):
        return {"rule": error.rule, "dealers": list(error.dealers)}
    if isinstance(error, FaultyClientError):
        return {"rule": error.rule, "client": error.client}
    if isinstance(error, FaultySharesError):
        return {
            "rule": "SA-506",
            "dealer": error.dealer,
            "holders": list(error.holders),
        }
    if isinstance(error, TooFewSurvivorsError):
        return {"rule": "SA-016", "have": error.have, "need": error.need}
    return {"rule": "SA-010", "client": sender}
