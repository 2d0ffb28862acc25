"""What the server sends when it closes a phase, one message per client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from protocols import merkle
from protocols.secagg import messages
from protocols.secagg.params import SessionParams
from protocols.secagg.server_checks import to_each
from protocols.secagg.server_states import (
    CollectingConfirmations,
    CollectingShares,
    Encapsulations,
)

__all__ = ["deliveries", "encapsulations_of", "published", "relayed_confirmations"]


class _Outgoing(Mapping[str, bytes]):
    """Messages that are made when they are asked for: all together are large."""

    def __init__(
        self,
        params: SessionParams,
        indices: Iterable[int],
        make: Callable[[int], bytes],
    ) -> None:
        self._indices = {params.name_of(index): index for index in indices}
        self._make = make

    def __getitem__(self, name: str) -> bytes:
        return self._make(self._indices[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def published(state: CollectingShares, root: bytes) -> Mapping[str, bytes]:
    """Phase 0: the directory, or in a sparse graph each one's part of it."""
    params, directory = state.params, state.directory
    if not params.degree:
        entries = tuple(directory.values())
        roster = messages.Roster(params.primitives, state.session, entries)
        return to_each(params, directory, roster.to_bytes())
    graph = params.graph(state.context)
    tree = merkle.Tree([entry.to_bytes() for entry in directory.values()])
    position = {index: place for place, index in enumerate(directory)}

    def part(index: int) -> bytes:
        listings = tuple(
            messages.Listing(
                directory[near], position[near], tree.inclusion_proof(position[near])
            )
            for near in sorted(graph.closed(index) & directory.keys())
        )
        return messages.Neighbourhood(
            params.primitives, state.session, len(directory), root, listings
        ).to_bytes()

    return _Outgoing(params, directory, part)


def deliveries(state: CollectingShares) -> dict[str, bytes]:
    """Phase 1: to each sender (U2) the boxes and offers addressed to it."""
    boxes: dict[int, list[messages.Box]] = {index: [] for index in state.received}
    offers: dict[int, list[messages.Offer]] = {index: [] for index in state.received}
    for sender in sorted(state.received):
        message = state.received[sender]
        for box in message.boxes:
            if box.peer in boxes:
                boxes[box.peer].append(messages.Box(sender, box.sealed))
        for one in message.offers:
            if one.peer in offers:
                relayed = messages.Offer(sender, one.ciphertext, one.tag)
                offers[one.peer].append(relayed)
    return {
        state.params.name_of(index): messages.Delivery(
            state.params.primitives,
            state.session,
            tuple(boxes[index]),
            tuple(offers[index]),
        ).to_bytes()
        for index in boxes
    }


def encapsulations_of(
    received: Mapping[int, messages.ShareKeys],
) -> dict[int, Encapsulations]:
    """What the server keeps of phase 1 for unmasking."""
    return {
        sender: Encapsulations({one.peer: one for one in shares.offers}, shares.vault)
        for sender, shares in received.items()
        if shares.suite.hybrid
    }


def relayed_confirmations(state: CollectingConfirmations) -> dict[str, bytes]:
    """Phase 3: to each who confirmed (U4) t confirmations of its neighbourhood.

    More would say nothing new, and each costs the client a verification.
    """
    params = state.params
    signers = sorted(state.received)
    if not params.degree:
        return to_each(params, signers, _relay(state, signers))
    graph = params.graph(state.context)
    return {
        params.name_of(index): _relay(
            state, sorted(graph.closed(index) & state.received.keys())
        )
        for index in signers
    }


def _relay(state: CollectingConfirmations, signers: Sequence[int]) -> bytes:
    confirmations = tuple(
        messages.Confirmation(index, state.received[index].signature)
        for index in signers[: state.params.threshold]
    )
    suite = state.params.primitives
    return messages.Confirmations(suite, state.session, confirmations).to_bytes()
