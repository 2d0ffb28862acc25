"""Plays one session of secfed's secure sum and measures every step.

Vectors are made, masked, delivered and dropped one client at a time. Dropout
rates share the phases before the masked vectors: each rate is a branch with its
own server state, and clients' states are copied where a branch begins. A real
client never does that (one answer per session); here it saves masking the same
vectors again for every rate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.cases import MODEL, Case, fresh, identity_of, params_of
from benchmarks.inputs import dropped, ring_vector
from benchmarks.measure import Timing, timed
from protocols.ring import RingVector
from protocols.secagg import client, server

__all__ = ["Branch", "Played", "Session", "play"]

Vectors = Callable[[int, RingVector], RingVector]


@dataclass
class Branch:
    """What one dropout rate costs the server, in CPU seconds."""

    percent: int
    receive_input: list[float] = field(default_factory=list)
    close_inputs: float = 0.0
    confirm: float = 0.0
    receive_reveals: float = 0.0
    close_reveals: list[float] = field(default_factory=list)
    survivors: int = 0
    dropouts: int = 0
    exact: bool = False

    @property
    def sum_seconds(self) -> float:
        """All masked inputs checked and added."""
        return sum(self.receive_input) + self.close_inputs

    @property
    def unmask(self) -> Timing:
        """All shares checked, secrets rebuilt and masks taken off."""
        return Timing.of([self.receive_reveals + one for one in self.close_reveals])


@dataclass
class Played:
    """One session: CPU seconds and bytes of the clients, branches of the server."""

    case: Case
    client: dict[str, list[float]] = field(default_factory=dict)
    up: dict[str, list[int]] = field(default_factory=dict)
    down: dict[str, list[int]] = field(default_factory=dict)
    keys_seconds: float = 0.0  # the server in phases 0 and 1
    branches: dict[int, Branch] = field(default_factory=dict)

    @property
    def client_total(self) -> Timing:
        """CPU seconds per client of all five phases (survivors, no dropouts)."""
        return Timing.of([sum(steps) for steps in zip(*self.client.values())])  # noqa: B905

    def steps(self, *names: str) -> Timing:
        """CPU seconds per client of some steps together."""
        columns = [self.client[name] for name in names]
        return Timing.of([sum(steps) for steps in zip(*columns)])  # noqa: B905

    @property
    def up_bytes(self) -> int:
        """What the median client sends in all phases."""
        return int(sum(np.median(sizes) for sizes in self.up.values()))

    @property
    def down_bytes(self) -> int:
        """What the median client receives in all phases."""
        return int(sum(np.median(sizes) for sizes in self.down.values()))

    def session_seconds(self, percent: int = 0) -> float:
        """All clients (counted as if none dropped out) and the server."""
        clients = sum(sum(seconds) for seconds in self.client.values())
        return clients + self.server_seconds(percent)

    def server_seconds(self, percent: int = 0) -> float:
        """The server in all phases, at one dropout rate."""
        branch = self.branches[percent]
        ends = branch.confirm + branch.unmask.median
        return self.keys_seconds + branch.sum_seconds + ends

    @property
    def exact(self) -> bool:
        """Every branch gave the plain sum of its survivors, bit for bit."""
        return all(branch.exact for branch in self.branches.values())


def play(
    case: Case,
    percents: Sequence[int] = (0,),
    *,
    repetitions: int = 1,
    tick: Callable[[], None] = lambda: None,
    vectors: Vectors = ring_vector,
) -> Played:
    """Play ``case`` once, with a branch per dropout rate; the first must be 0.

    Raises:
        RuntimeError: A sum was wrong.
    """
    session = Session(case, tick, vectors)
    session.advertise_and_share(percents)
    session.mask(percents)
    for percent in percents:
        session.unmask(percent, repetitions)
    if not session.played.exact:
        raise RuntimeError(f"wrong sum in {case}")
    return session.played


class Session:
    """The parties of one session between two phases."""

    def __init__(
        self,
        case: Case,
        tick: Callable[[], None] = lambda: None,
        vectors: Vectors = ring_vector,
    ) -> None:
        self.params = params_of(case)
        self.names = [member.name for member in self.params.roster]
        self.played = Played(case)
        self.clients: dict[str, Any] = {}
        self.downs: Mapping[str, bytes] = {}  # what the server sent last
        self._servers: dict[int, Any] = {}  # by percent of dropouts
        self._expected: dict[int, RingVector] = {}
        self._tick = tick
        self._vectors = vectors

    def advertise_and_share(self, percents: Sequence[int]) -> None:
        """Phases 0 and 1, which are the same whoever drops out later."""
        state: Any = server.open_session(self.params, MODEL)
        for name in self.names:
            identity, keys = identity_of(name), fresh("keys", name)
            args = (self.params, name, identity, MODEL)
            message = self._advance(name, client.advertise_keys, *args, randomness=keys)
            state = self._shared(server.receive_keys, state, name, message)
        state, self.downs = self._shared(server.close_keys, state)
        for name in self.names:
            coins = fresh("shares", name)
            message = self._answer(name, client.share_keys, randomness=coins)
            state = self._shared(server.receive_shares, state, name, message)
        for percent in percents:
            # Each call makes a running sum of its own.
            closed, seconds = timed(server.close_shares, state)
            self._servers[percent], self.downs = closed
        self.played.keys_seconds += seconds

    def mask(self, percents: Sequence[int]) -> None:
        """Phase 2: one vector at a time, into every branch whose client stays."""
        gone = {percent: dropped(self.names, percent) for percent in percents}
        for percent in percents:
            self.played.branches[percent] = Branch(percent)
            self._expected[percent] = self.params.zeros()
        for number, name in enumerate(self.names):
            vector = self._vectors(number, self.params.zeros())
            message = self._answer(name, client.mask_input, vector)
            for percent in percents:
                if name in gone[percent]:
                    continue
                state = self._servers[percent]
                args = (server.receive_input, state, name, message)
                self._servers[percent], seconds = timed(*args)
                self.played.branches[percent].receive_input.append(seconds)
                self._expected[percent].add_in_place(vector)

    def collect_reveals(self, percent: int) -> Any:
        """Phases 3 and 4 of one branch up to the last step, on copied states."""
        branch = self.played.branches[percent]
        masked = dict(self.clients)
        closed, branch.close_inputs = timed(server.close_inputs, self._servers[percent])
        state, self.downs = closed
        self.clients = {name: copy.copy(masked[name]) for name in self.downs}
        for name in list(self.downs):
            message = self._answer(name, client.confirm_survivors)
            state, seconds = timed(server.receive_confirmation, state, name, message)
            branch.confirm += seconds
        (state, self.downs), seconds = timed(server.close_confirmations, state)
        branch.confirm += seconds
        for name in list(self.downs):
            message = self._answer(name, client.unmask)
            state, seconds = timed(server.receive_reveal, state, name, message)
            branch.receive_reveals += seconds
        self.clients = masked
        return state

    def unmask(self, percent: int, repetitions: int) -> None:
        """The end of one branch; masks come off a copy, so it can be repeated."""
        branch = self.played.branches[percent]
        state = self.collect_reveals(percent)
        for _ in range(repetitions):
            result, seconds = timed(server.close_reveals, state)
            branch.close_reveals.append(seconds)
        self._check(branch, result)

    def _check(self, branch: Branch, result: server.SumResult) -> None:
        expected = self._expected.pop(branch.percent)
        branch.survivors = len(result.survivors)
        branch.dropouts = len(result.dropouts)
        branch.exact = bool(
            np.array_equal(result.total.body, expected.body)
            and np.array_equal(result.total.lane, expected.lane)
        )

    def _shared(self, step: Callable[..., Any], *args: Any) -> Any:
        """A step of the server that all branches have in common."""
        result, seconds = timed(step, *args)
        self.played.keys_seconds += seconds
        return result

    def _answer(
        self, name: str, step: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> bytes:
        """A client's step on what the server sent it last."""
        down = self.downs[name]
        state = self.clients[name]
        self._note(self.played.down, step, len(down))
        return self._advance(name, step, state, down, *args, **kwargs)

    def _advance(
        self, name: str, step: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> bytes:
        """Run and measure a client's step; keep its state, return its message."""
        (self.clients[name], message), seconds = timed(step, *args, **kwargs)
        self._note(self.played.client, step, seconds)
        self._note(self.played.up, step, len(message))
        self._tick()
        return message

    def _note(self, kept: dict[str, list[Any]], step: Any, value: float) -> None:
        """Only healthy clients count: the first branch has no dropouts."""
        values = kept.setdefault(step.__name__, [])
        if len(values) < len(self.names):
            values.append(value)
