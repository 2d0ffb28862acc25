"""Every step of whole sessions, kept so that it can be taken again and again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from protocols.secagg import server, stored
from protocols.secagg.params import PHASES, SessionParams
from protocols.secagg.server_states import RunningSum
from tests.session import (
    CLOSE,
    MODEL,
    RECEIVE,
    identity_of,
    make_inputs,
    make_params,
    randomness,
)


@dataclass(frozen=True)
class ClientStep:
    """A stored client, and the message that it answered."""

    name: str
    record: bytes
    message: bytes


@dataclass(frozen=True)
class ServerStep:
    """A state of the server, and the message that it took."""

    phase: str
    name: str
    state: Any
    message: bytes


@dataclass
class Tape:
    """One session in which the last client leaves before its masked input."""

    params: SessionParams
    client_steps: list[ClientStep] = field(default_factory=list)
    server_steps: list[ServerStep] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = make_inputs(self.params)
        self._records: dict[str, bytes] = {}
        self._play()

    def _play(self) -> None:
        leaver = self.params.roster[-1].name
        state: Any = server.open_session(self.params, MODEL)
        downs = {member.name: b"" for member in self.params.roster}
        for phase in PHASES:
            for name, down in downs.items():
                sent = self._answer(name, down)
                if name == leaver and phase == "masked-input":
                    continue
                self.server_steps.append(ServerStep(phase, name, copied(state), sent))
                state = RECEIVE[phase](state, name, sent)
            if phase != "unmask":
                state, downs = CLOSE[phase](state)

    def _answer(self, name: str, message: bytes) -> bytes:
        if name not in self._records:
            record = stored.start(
                self.params,
                name,
                identity_of(name),
                MODEL,
                randomness=randomness("start", name),
            )
        else:
            before = self._records[name]
            self.client_steps.append(ClientStep(name, before, message))
            record = self.answered(self.restored(name, before), name, message)
        self._records[name] = record.to_bytes()
        self.records.append(self._records[name])
        return record.outbound

    def restored(self, name: str, record: bytes) -> stored.Record:
        return stored.Record.from_bytes(self.params, identity_of(name), MODEL, record)

    def answered(
        self, record: stored.Record, name: str, message: bytes
    ) -> stored.Record:
        return stored.answer(
            record,
            message,
            randomness=randomness("answer", name),
            vector=self.inputs[name],
        )


def copied(state: Any) -> Any:
    """A state of the server that shares no memory that can change."""
    if isinstance(state, server.CollectingInputs):
        running = RunningSum(state.running.total.copy(), state.running.added)
        return replace(state, running=running)
    return state


def complete(suite: int) -> Tape:
    return Tape(make_params(4, suite=suite))


def sparse(suite: int) -> Tape:
    """Eight clients with four neighbours each."""
    return Tape(
        make_params(8, 2, suite=suite, degree=4, max_dropouts=1, mode="semi-honest")
    )
