"""Messages that are changed on their way, and clients that sign what they should not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from protocols.errors import (
    FaultyBoxesError,
    FaultyClientError,
    FaultyServerError,
    TooFewSurvivorsError,
)
from protocols.secagg import messages, server
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.params import PHASES
from tests.session import CLOSE, MODEL, Session, assert_sum, healthy, identity_of

BAD = "site-1"
UP: dict[str, Any] = {
    "advertise-keys": messages.Advertise,
    "share-keys": messages.ShareKeys,
    "masked-input": messages.MaskedInput,
    "confirm-survivors": messages.Confirm,
    "unmask": messages.Unmask,
}
DOWN: dict[str, Any] = {
    "share-keys": messages.Roster,
    "masked-input": messages.Delivery,
    "confirm-survivors": messages.Survivors,
    "unmask": messages.Confirmations,
}

Change = Callable[[Any], Any]


# ------------------------------------------------------------------ small changes


def flip(position: int) -> Callable[[bytes], bytes]:
    """Change one bit at ``position``."""
    return lambda m: (
        m[:position] + bytes([m[position] ^ 0x10]) + m[position + 1 :]
        if position < len(m)
        else m + b"\0"
    )


def without(items: tuple[Any, ...], *positions: int) -> tuple[Any, ...]:
    return tuple(item for i, item in enumerate(items) if i not in positions)


def with_item(items: tuple[Any, ...], position: int, item: Any) -> tuple[Any, ...]:
    return (*items[:position], item, *items[position + 1 :])


def corrupted(box: messages.Box) -> messages.Box:
    return replace(box, sealed=flip(40)(box.sealed))


def wrong_share(reveal: messages.Reveal) -> messages.Reveal:
    share = bytes([reveal.share[0] ^ 1]) + reveal.share[1:]
    return replace(reveal, share=share)


# ------------------------------------------------------------- where they happen


def only(phase: str, way: str, change: Change, name: str = BAD) -> Any:
    """Change one message: of ``phase``, going ``way``, from or to ``name``."""

    def tamper(at_phase: str, at_way: str, at_name: str, message: bytes) -> Any:
        here = (at_phase, at_way, at_name) == (phase, way, name)
        return change(message) if here else message

    return tamper


def parsed_down(session: Session, phase: str, change: Change) -> Any:
    """A malicious server changes what one client gets in ``phase``."""
    suite = session.params.primitives
    return only(
        phase, "down", lambda m: change(DOWN[phase].from_bytes(m, suite)).to_bytes()
    )


def resigned(session: Session, phase: str, change: Change) -> Change:
    """A malicious client: change its parsed message, then sign that."""

    def act(message: bytes) -> bytes:
        parsed = change(UP[phase].from_bytes(message, session.params.primitives))
        context = session.contexts.get(BAD, parsed.session)
        if phase in {"confirm-survivors", "unmask"}:
            context = confirmed_context(context, session.lists[BAD])
        return parsed.signed(identity_of(BAD), context).to_bytes()

    return act


def malicious(phase: str, change: Change, num_clients: int = 5, **more: Any) -> Session:
    """A session in which ``BAD`` signs a changed message."""
    session = healthy(num_clients, **more)
    session.tamper = only(phase, "up", resigned(session, phase, change))
    return session


def opened_until(session: Session, phase: str) -> tuple[Any, dict[str, bytes]]:
    """The server's state and its messages at the start of ``phase``."""
    state: Any = server.open_session(session.params, MODEL)
    down = {member.name: b"" for member in session.params.roster}
    for before in PHASES[: PHASES.index(phase)]:
        for name, message in down.items():
            state = session.exchange(before, name, message, state)
        state, down = CLOSE[before](state)
    return state, down


def finished(
    session: Session,
    phase: str,
    state: Any,
    down: dict[str, bytes],
    silent: Collection[str] = (),
) -> server.SumResult:
    """Everybody but ``silent`` goes on from ``phase`` to the end."""
    for later in PHASES[PHASES.index(phase) :]:
        for name, message in down.items():
            if name not in silent:
                state = session.exchange(later, name, message, state)
        if later == "unmask":
            break
        state, down = CLOSE[later](state)
    return server.close_reveals(state)


# ------------------------------------------------------------------ who is blamed


@contextmanager
def blames_server(rule: str) -> Iterator[None]:
    """The client refuses and cites ``rule``."""
    with pytest.raises(FaultyServerError) as caught:
        yield
    assert caught.value.rule == rule


@contextmanager
def blames_boxes_of(*dealers: str) -> Iterator[None]:
    """The client refuses: these boxes do not open, their dealers or the server did it."""
    with pytest.raises(FaultyBoxesError) as caught:
        yield
    assert (caught.value.dealers, caught.value.rule) == (dealers, "SA-206")


@contextmanager
def blames_client(name: str, rule: str) -> Iterator[None]:
    """The server refuses, names the client and cites ``rule``."""
    with pytest.raises(FaultyClientError) as caught:
        yield
    assert (caught.value.client, caught.value.rule) == (name, rule)


def victims_error(session: Session) -> Exception:
    """Play; what the honest client raised."""
    with suppress(TooFewSurvivorsError):
        session.play()
    return session.client_errors[BAD]


def sum_without(session: Session, phase: str, name: str = BAD) -> server.SumResult:
    """Play; the sum is right, and only ``name`` is missing from ``phase`` on."""
    result = session.play()
    early = PHASES.index(phase) < 3
    names = [m.name for m in session.params.roster if m.name != name or not early]
    assert_sum(session, result, names)
    assert result.dropouts == {name: phase}
    return result
