"""Encapsulations are recorded and replayed: the library draws its own randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from protocols import agreement
from protocols.agreement import KemSecret
from protocols.secagg.messages import Advertise
from protocols.secagg.server_states import ServerState

if TYPE_CHECKING:
    from tests.vectors.making.play import Script

CHANNEL, MASK = "channel key", "mask key"


class Link(NamedTuple):
    """Who encapsulated for which key of whom."""

    client: str
    peer: str
    key: str


Hook = Callable[[KemSecret], KemSecret]


class MissingError(Exception):
    """The files hold no encapsulation for this key."""


class Encapsulations:
    """The encapsulations of one round.

    Those that are not known are made, if that is allowed, and kept.
    """

    def __init__(self, known: Mapping[Link, KemSecret], *, may_make: bool) -> None:
        self.pairs = dict(known)
        self._may_make = may_make

    @contextmanager
    def replayed(self, name: str, state: ServerState, script: Script) -> Iterator[None]:
        """While this lasts, ``agreement.encapsulate`` answers from the records."""
        links = {}
        directory: Mapping[int, Advertise] = getattr(state, "directory", {})
        for entry in directory.values():
            peer = f"site-{entry.sender}"
            links[entry.channel_key] = Link(name, peer, CHANNEL)
            links[entry.mask_key] = Link(name, peer, MASK)
        fresh = agreement.encapsulate

        def encapsulate(public: bytes) -> KemSecret:
            link = links[public]
            if link not in self.pairs and not self._may_make:
                raise MissingError(f"no encapsulation is recorded for {link}")
            if link not in self.pairs:
                self.pairs[link] = fresh(public)
            return script.encapsulations.get(link, lambda pair: pair)(self.pairs[link])

        with mock.patch.object(agreement, "encapsulate", encapsulate):
            yield
