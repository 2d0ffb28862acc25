"""The ServerApp of a coordinator, and how its orders travel over Flower's grid.

``send_and_receive`` of Flower sleeps three seconds between two looks; here a look is
cheap and frequent, ends when everybody has answered, and gives up at the deadline or
as soon as a node is known to be away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from secfed.errors import VerificationError
from secfed.runtime.envelope import Post, Sealed
from secfed.runtime.flower.pauses import Pauses
from secfed.runtime.flower.records import from_record, to_record, type_of

__all__ = ["FlowerPost", "public_der", "server_app"]

_LOOK_SECONDS: Final = (0.1, 0.5)  # Between two looks for answers.
_NODES_SECONDS: Final = 2.0  # Between two questions who is connected.
_ONLINE: Final = "online"


def server_app(run: Callable[[Post], None], nodes: Mapping[str, str]) -> ServerApp:
    """A ServerApp that hands its grid, as a ``Post``, to the coordinator's loop.

    Args:
        run: What the coordinator does.
        nodes: The pinned node key (PEM) of every site.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        run(FlowerPost(grid, nodes))

    return app


def public_der(pem: str | bytes) -> bytes:
    """One encoding of a public key, to compare keys by.

    Raises:
        VerificationError: It is not a public key in PEM.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        key = load_pem_public_key(data)
    except ValueError as error:
        raise VerificationError(f"not a public key: {error}") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Node:
    """A connection of a node: its process changes, and with it ``since``."""

    node_id: int
    since: str


class FlowerPost:
    """Carries orders over a grid to the nodes whose keys are pinned.

    At the first exchange sites that are not connected yet are waited for; later one
    that is away is not. A node that connected anew in the meantime gets its order once
    more: the process before may have taken it with it. To the same process the same
    order brings the same bytes, and another declines at once.
    """

    def __init__(self, grid: Grid, nodes: Mapping[str, str]) -> None:
        self._grid = grid
        self._sites = {public_der(pem): site for site, pem in nodes.items()}
        self._first = True

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        """As ``Post.exchange``."""
        end = time.monotonic() + seconds
        waits, self._first = self._first, False
        unsent, pending = dict(orders), dict[str, tuple[str, Node]]()
        asked_nodes, looks = -_NODES_SECONDS, Pauses(*_LOOK_SECONDS)
        while time.monotonic() < end:
            if time.monotonic() - asked_nodes >= _NODES_SECONDS:
                asked_nodes = time.monotonic()
                online = self._online()
                anew = _connected_anew(pending, online)
                unsent |= {site: orders[site] for site in anew}
                pending = {
                    message_id: (site, node)
                    for message_id, (site, node) in pending.items()
                    if online.get(site) == node
                }
                pending |= self._send(phase, unsent, online, end)
                unsent = {s: o for s, o in unsent.items() if s not in online}
            if not pending and not (waits and unsent):
                return
            for message_id, sealed in self._look(pending):
                site, _ = pending.pop(message_id)
                looks.came()
                if sealed is not None:
                    yield site, sealed
            if pending or unsent:
                looks.wait()

    def _online(self) -> dict[str, Node]:
        """The node of every site of the roster that is connected now."""
        return {
            self._sites[key]: Node(int(node.node_id), str(node.last_activated_at))
            for node in self._grid.get_nodes()
            if node.status == _ONLINE
            and (key := public_der(node.public_key)) in self._sites
        }

    def _send(
        self,
        phase: str,
        orders: Mapping[str, Sealed],
        online: Mapping[str, Node],
        end: float,
    ) -> dict[str, tuple[str, Node]]:
        """Push the orders of connected sites; message ids, and whose they are."""
        sites = [site for site in orders if site in online]
        if not sites:
            return {}
        messages = [
            Message(
                to_record(orders[site]),
                online[site].node_id,
                type_of(phase),
                ttl=max(1.0, end - time.monotonic()),
            )
            for site in sites
        ]
        ids: Sequence[str | None] = list(self._grid.push_messages(messages))
        return {
            message_id: (site, online[site])
            for message_id, site in zip(ids, sites, strict=True)
            if message_id
        }

    def _look(self, pending: Collection[str]) -> list[tuple[str, Sealed | None]]:
        """Answers that are here; None for one that is an error or not a message."""
        if not pending:
            return []
        found: list[tuple[str, Sealed | None]] = []
        for message in self._grid.pull_messages(list(pending)):
            message_id = message.metadata.reply_to_message_id
            if message_id in pending and message_id not in dict(found):
                found.append((message_id, _sealed(message)))
        return found


def _connected_anew(
    pending: Mapping[str, tuple[str, Node]], online: Mapping[str, Node]
) -> set[str]:
    """Sites that are connected, but not as they were when they were asked."""
    return {
        site
        for site, node in pending.values()
        if site in online and online[site] != node
    }


def _sealed(message: Message) -> Sealed | None:
    if message.has_error():
        return None
    try:
        return from_record(message.content)
    except VerificationError:
        return None
