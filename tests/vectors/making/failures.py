"""The rounds that end with a refusal, one mutation each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from protocols.secagg.params import Phase
from tests.vectors.making.play import (
    SERVER,
    Change,
    Game,
    Place,
    Round,
    Script,
    UnexpectedEndError,
)

__all__ = ["Failure", "as_json", "by_client", "by_server", "spec_of"]

VICTIM = "site-1"


@dataclass(frozen=True)
class Failure:
    """A base round and what is different."""

    name: str
    about: str
    base: str
    deviates: tuple[str, ...]
    script: Script = field(default_factory=Script)
    because: tuple[str, ...] = ()  # rules that led there, besides the one cited
    leaves: Mapping[str, Phase] = field(default_factory=dict)


def by_server(
    name: str, base: str, phase: Phase, change: Change, about: str, **more: Any
) -> Failure:
    """The server changes one message to the victim."""
    place = Place(phase, "down", more.pop("to", VICTIM), more.pop("second", False))
    deviates = (SERVER, *more.pop("with_", ()))
    script = Script({place: change})
    return Failure(name, about, base, deviates, script, **more)


def by_client(
    name: str, base: str, phase: Phase, change: Change, about: str, **more: Any
) -> Failure:
    """One client changes one message of its own."""
    client = more.pop("client", VICTIM)
    place = Place(phase, "up", client, more.pop("second", False))
    return Failure(name, about, base, (client,), Script({place: change}), **more)


def spec_of(failure: Failure, base: Round) -> Round:
    """The base round, as it is played with the mutation."""
    leaves = {**base.leaves, **failure.leaves}
    return replace(base, script=failure.script, leaves=leaves)


def as_json(failure: Failure, game: Game, base: Game) -> dict[str, Any]:
    """What differs from the base round, up to the refusal."""
    if game.refusal is None:
        raise UnexpectedEndError(f"{failure.name}: nobody refuses")
    because = list(failure.because)
    return {
        "about": failure.about,
        "base": failure.base,
        "deviates": list(failure.deviates),
        "leaves": dict(failure.leaves),
        "messages": [
            {**place._asdict(), "bytes": message.hex()}
            for place, message in game.sent.items()
            if base.sent.get(place) != message
        ],
        "refusal": {**game.refusal, "because": because},
    }
