"""Mutated messages against the steps of both roles.

A client may only blame the server (and the dealers of boxes), the server only a client or the bytes, and a
refused message changes nothing. Some inputs are signed again after the mutation,
as a malicious member would, to get behind the signature checks.
"""

# ruff: noqa: S311

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from random import Random
from typing import Any

from numpy import ndarray

from protocols.errors import (
    FaultyBoxesError,
    FaultyClientError,
    FaultyServerError,
    FaultySharesError,
    MessageError,
    TooFewSurvivorsError,
)
from protocols.secagg import messages
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.params import SessionParams
from tests.protocols.mutations import Seed, mutated
from tests.protocols.tape import ClientStep, ServerStep, Tape, complete, copied, sparse
from tests.session import CLOSE, RECEIVE, identity_of

SIGNED = {
    kind.tag: kind
    for kind in (
        messages.Advertise,
        messages.ShareKeys,
        messages.MaskedInput,
        messages.Confirm,
        messages.Unmask,
    )
}
FROM_SERVER = {
    kind.tag: kind
    for kind in (
        messages.Roster,
        messages.Delivery,
        messages.Survivors,
        messages.Confirmations,
        messages.Neighbourhood,
    )
}
_BLAME = (FaultyClientError, FaultySharesError, TooFewSurvivorsError)


def fuzz_steps(seed: object, count: int) -> Counter[str]:
    """Take ``count`` steps with mutated messages; count how they end."""
    random = Random(f"steps {seed}")
    outcome: Counter[str] = Counter()
    for _ in range(count):
        tape, seeds = random.choice(_tapes())
        if random.random() < 0.5:
            client_step = random.choice(tape.client_steps)
            message = mutated(random, seeds[client_step.message], tuple(seeds.values()))
            if client_step.message[0] == messages.Roster.tag and random.random() < 0.5:
                message = _resigned_entries(random, tape.params, client_step.message)
            outcome[_client(tape, client_step, message)] += 1
        else:
            step = random.choice(tape.server_steps)
            message = mutated(random, seeds[step.message], tuple(seeds.values()))
            if random.random() < 0.7:
                message = _resigned(step, message)
            outcome[_server(step, message)] += 1
    return outcome


@cache
def _tapes() -> tuple[tuple[Tape, dict[bytes, Seed]], ...]:
    tapes = [complete(1), complete(2), complete(3), sparse(1), sparse(2)]
    return tuple((tape, _seeds(tape)) for tape in tapes)


def _seeds(tape: Tape) -> dict[bytes, Seed]:
    kinds: Mapping[int, Any] = SIGNED | FROM_SERVER
    suite = tape.params.primitives
    return {
        step.message: Seed.traced(
            step.message,
            lambda data: kinds[data[0]].from_bytes(data, suite),
        )
        for step in (*tape.client_steps, *tape.server_steps)
    }


# ------------------------------------------------------------------- the client


def _client(tape: Tape, step: ClientStep, message: bytes) -> str:
    record = tape.restored(step.name, step.record)
    try:
        following = tape.answered(record, step.name, message)
    except (FaultyBoxesError, FaultyServerError):
        assert record.to_bytes() == step.record, f"changed by {message.hex()}"
        return "client refuses"
    except Exception as error:
        raise AssertionError(f"{step.name}: {error!r} from {message.hex()}") from error
    if following is record:
        return "client repeats its answer"  # to nothing: its advertisement
    tag = 3 if message[0] == messages.Neighbourhood.tag else message[0] + 1
    assert following.outbound[0] == tag, f"wrong answer to {message.hex()}"
    return "client answers"


def _resigned_entries(random: Random, params: SessionParams, roster: bytes) -> bytes:
    """A roster with one mutated advertisement, signed by its owner."""
    suite = params.primitives
    parsed = messages.Roster.from_bytes(roster, suite)
    place = random.randrange(len(parsed.entries))
    old = parsed.entries[place]
    seed = Seed.traced(
        old.to_bytes(), lambda data: messages.Advertise.from_bytes(data, suite)
    )
    size = messages.advertise_bytes(suite)
    changed = mutated(random, seed, (seed,))[:size].ljust(size, b"\0")
    try:
        entry = messages.Advertise.from_bytes(changed, suite)
    except MessageError:
        return roster[:-1]
    owner = identity_of(params.name_of(old.sender))
    entries = list(parsed.entries)
    entries[place] = entry.signed(owner, entry.session)
    return replace(parsed, entries=tuple(entries)).to_bytes()


# ------------------------------------------------------------------- the server


def _server(step: ServerStep, message: bytes) -> str:
    state = copied(step.state)
    before = _frozen(state)
    try:
        following = RECEIVE[step.phase](state, step.name, message)
    except (FaultyClientError, MessageError):
        assert _frozen(state) == before, f"changed by {message.hex()}"
        return "server refuses"
    except Exception as error:
        raise AssertionError(f"{step.phase}: {error!r} from {message.hex()}") from error
    before = _frozen(following)
    try:
        CLOSE[step.phase](following)
    except _BLAME:
        assert _frozen(following) == before, f"changed by closing {message.hex()}"
        return "server takes it and cannot close"
    except Exception as error:
        raise AssertionError(
            f"{step.phase}: {error!r} after {message.hex()}"
        ) from error
    return "server takes it"


def _resigned(step: ServerStep, message: bytes) -> bytes:
    """A mutated message with a signature of the client that sends it."""
    params, kind = step.state.params, SIGNED.get(message[0] if message else 0)
    try:
        parsed = kind.from_bytes(message, params.primitives) if kind else None
    except MessageError:
        return message
    if parsed is None:
        return message
    return parsed.signed(identity_of(step.name), _context(step)).to_bytes()


def _context(step: ServerStep) -> bytes:
    state = step.state
    if step.phase == "advertise-keys":
        return state.session
    if step.phase in {"share-keys", "masked-input"}:
        return state.context
    return confirmed_context(state.context, sorted(state.cohorts))


def _frozen(value: Any) -> Any:
    """A copy that compares all there is in a state."""
    if isinstance(value, SessionParams):
        return id(value)
    if is_dataclass(value):
        return tuple(_frozen(getattr(value, one.name)) for one in fields(value))
    if isinstance(value, Mapping):
        return tuple((key, _frozen(one)) for key, one in value.items())
    if isinstance(value, ndarray):
        return value.tobytes()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(map(_frozen, value))
    return value
