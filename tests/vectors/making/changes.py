"""What deviating parties do to messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from protocols.secagg import messages
from protocols.suites import SUITES
from tests.vectors.making.play import Change, Game

TYPES = {
    kind.tag: kind
    for kind in (
        messages.Advertise,
        messages.Roster,
        messages.ShareKeys,
        messages.Delivery,
        messages.MaskedInput,
        messages.Survivors,
        messages.Confirm,
        messages.Confirmations,
        messages.Unmask,
        messages.Neighbourhood,
    )
}

Edit = Callable[[Any], Any]  # of a parsed message


def parsed(message: bytes) -> Any:
    """A message of whatever type it says."""
    kind: Any = TYPES[message[0]]
    return kind.from_bytes(message, SUITES[message[2]])


def edited(edit: Edit) -> Change:
    """A message of the server, changed."""
    return lambda _, message: edit(parsed(message)).to_bytes()


def resigned(edit: Edit) -> Change:
    """A message of a client that signs what it should not say."""

    def change(game: Game, message: bytes) -> bytes:
        before = parsed(message)
        return signed(game, game.spec.names[before.sender], edit(before)).to_bytes()

    return change


def signed(game: Game, name: str, message: Any, context: bytes = b"") -> Any:
    """``message`` as a client would sign it now."""
    return message.signed(game.spec.identity(name), context or game.context)


def raw(edit: Callable[[bytes], bytes]) -> Change:
    """Bytes, changed."""
    return lambda _, message: edit(message)


def with_item(items: tuple[Any, ...], position: int, item: Any) -> tuple[Any, ...]:
    """``items`` with another one at ``position``."""
    changed = list(items)
    changed[position] = item
    return tuple(changed)


def without(items: tuple[Any, ...], *positions: int) -> tuple[Any, ...]:
    return tuple(item for i, item in enumerate(items) if i not in positions)


def flipped(data: bytes, position: int) -> bytes:
    """One bit of one byte changed."""
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def wrong_share(reveal: messages.Reveal) -> messages.Reveal:
    """Still canonical, and not the share that was dealt."""
    return replace(reveal, share=flipped(reveal.share, 0))
