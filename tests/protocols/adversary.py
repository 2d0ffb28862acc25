"""A malicious server with colluding clients against real honest clients.

It asks any client anything, in any order, with any bytes, and puts all it gets
into its ``Knowledge``. Honest clients are the real step functions; a colluder is
one too, but its secrets are known and its identity signs whatever is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from protocols.ring import RingVector
from protocols.secagg import client, messages
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.params import SessionParams
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from tests.protocols.knowledge import Knowledge
from tests.session import MODEL, Session, identity_of, make_inputs, randomness


class Adversary:
    """One session under attack; give several of them the same ``knowledge``."""

    def __init__(
        self,
        params: SessionParams,
        knowledge: Knowledge,
        *,
        model: bytes = MODEL,
        seed: int = 0,
    ) -> None:
        self.params, self.suite = params, params.primitives
        self.model, self.seed = model, seed
        self.session = params.session_id(model)
        self.knowledge = knowledge
        self.inputs: Mapping[str, RingVector] = make_inputs(params, seed)
        self.states: dict[str, Any] = {}
        self.contexts: dict[str, bytes] = {}
        self.entries: dict[int, messages.Advertise] = {}
        self.shared: dict[str, messages.ShareKeys] = {}
        # By confirmed context and signer.
        self.signatures: dict[tuple[bytes, int], bytes] = {}
        knowledge.joins(params, self.session)

    @property
    def everybody(self) -> list[str]:
        return [member.name for member in self.params.roster]

    @property
    def honest(self) -> list[str]:
        return [n for n in self.everybody if n not in self.knowledge.colluders]

    def indices(self, names: Iterable[str]) -> tuple[int, ...]:
        return tuple(sorted(map(self.params.index_of, names)))

    # ------------------------------------------------- one question to one client

    def advertise(self, name: str) -> None:
        fresh = randomness(self.seed, "advertise", name)
        state, sent = client.advertise_keys(
            self.params, name, identity_of(name), self.model, randomness=fresh
        )
        if name in self.knowledge.colluders:
            self.knowledge.corrupts(state)
        self.states[name] = state
        entry = messages.Advertise.from_bytes(sent, self.suite)
        self.entries[entry.sender] = entry

    def share(self, name: str, roster: bytes, *, salt: str = "") -> None:
        self.knowledge.says(roster, self.params)
        fresh = randomness(self.seed, "share", name, salt)
        state, sent = client.share_keys(self.states[name], roster, randomness=fresh)
        self._took(name, state, sent)
        self.contexts[name] = state.context
        self.shared[name] = messages.ShareKeys.from_bytes(sent, self.suite)

    def mask(
        self, name: str, delivery: bytes, vector: RingVector | None = None
    ) -> bytes:
        truth = vector or self.inputs[name]
        self.knowledge.delivers(self.states[name], delivery)
        state, sent = client.mask_input(self.states[name], delivery, truth)
        self.states[name] = state
        self.knowledge.hears(sent, truth)
        return sent

    def confirm(self, name: str, survivors: bytes) -> None:
        state, sent = client.confirm_survivors(self.states[name], survivors)
        self._took(name, state, sent)
        signature = messages.Confirm.from_bytes(sent, self.suite).signature
        confirmed = confirmed_context(self.contexts[name], state.survivors)
        self.signatures[confirmed, self.params.index_of(name)] = signature

    def unmask(self, name: str, confirmations: bytes) -> None:
        self._took(name, *client.unmask(self.states[name], confirmations))

    def _took(self, name: str, state: Any, sent: bytes) -> None:
        self.states[name] = state
        self.knowledge.hears(sent)

    # ------------------------------------------------------ what it can send

    def roster(self, names: Iterable[str]) -> bytes:
        return self.roster_of(self.entries[i] for i in self.indices(names))

    def roster_of(self, entries: Iterable[messages.Advertise]) -> bytes:
        return messages.Roster(self.suite, self.session, tuple(entries)).to_bytes()

    def delivery(self, name: str, senders: Iterable[str]) -> bytes:
        """The boxes and offers for ``name`` of these senders."""
        own = self.params.index_of(name)
        boxes, offers = [], []
        for sender in sorted(set(senders) - {name}, key=self.params.index_of):
            index = self.params.index_of(sender)
            boxes += [
                messages.Box(index, box.sealed)
                for box in self.shared[sender].boxes
                if box.peer == own
            ]
            offers += [
                messages.Offer(index, offer.ciphertext, offer.tag)
                for offer in self.shared[sender].offers
                if offer.peer == own
            ]
        delivery = messages.Delivery(
            self.suite, self.session, tuple(boxes), tuple(offers)
        )
        return delivery.to_bytes()

    def survivors(self, names: Iterable[str]) -> bytes:
        listed = self.indices(names)
        return messages.Survivors(self.suite, self.session, listed).to_bytes()

    def confirmations(self, name: str, listed: Iterable[str]) -> bytes:
        """All confirmations of a list in the context of ``name``.

        Colluders sign every list.
        """
        listed = tuple(listed)
        confirmed = confirmed_context(self.contexts[name], self.indices(listed))
        found = {
            signer: signature
            for (context, signer), signature in self.signatures.items()
            if context == confirmed
        }
        for colluder in set(self.knowledge.colluders) & set(listed):
            index = self.params.index_of(colluder)
            unsigned = messages.Confirm(self.suite, self.session, index, b"")
            signed = unsigned.signed(identity_of(colluder), confirmed)
            found[index] = signed.signature
        return self.confirmations_of(sorted(found.items()))

    def confirmations_of(self, signed: Sequence[tuple[int, bytes]]) -> bytes:
        entries = tuple(messages.Confirmation(*one) for one in signed)
        relayed = messages.Confirmations(self.suite, self.session, entries)
        return relayed.to_bytes()

    # ------------------------------------------------ a whole phase as it should be

    def all_share(self, names: Iterable[str] | None = None) -> None:
        """Phases 0 and 1 of these clients, honestly."""
        names = list(names or self.everybody)
        for name in names:
            self.advertise(name)
        for name in names:
            self.share(name, self.roster(names))

    def all_mask(self, names: Iterable[str] | None = None) -> None:
        """Phases 0 to 2 of these clients, honestly."""
        names = list(names or self.everybody)
        self.all_share(names)
        for name in names:
            self.mask(name, self.delivery(name, names))

    def finish(self, listed: Iterable[str]) -> None:
        """Phases 3 and 4 of all listed clients, honestly."""
        listed = list(listed)
        for name in listed:
            self.confirm(name, self.survivors(listed))
        for name in listed:
            self.unmask(name, self.confirmations(name, listed))

    # --------------------------------------------------------- time machine

    def save(self, name: str) -> bytes:
        """A backup of a client's state."""
        return state_to_bytes(self.states[name])

    def restore(self, name: str, saved: bytes) -> None:
        """The client goes on from a backup, against SA-008."""
        self.states[name] = state_from_bytes(
            self.params, identity_of(name), self.model, saved
        )


def watched(
    session: Session,
    colluders: tuple[str, ...] = (),
    knowledge: Knowledge | None = None,
) -> Knowledge:
    """What a server learns from a ``Session``, with its ``tamper`` applied."""
    known = knowledge or Knowledge(colluders)
    change = session.tamper
    params = session.params
    for model in {MODEL, *session.models.values()}:
        known.joins(params, params.session_id(model))

    def tamper(phase: str, way: str, name: str, message: bytes) -> bytes | None:
        changed = change(phase, way, name, message) if change else message
        if way == "down" and phase == "share-keys" and changed:
            known.says(changed, params)
        if way == "down" and phase == "masked-input" and changed:
            known.delivers(session.states[name], changed)
        if way == "up" and phase == "advertise-keys" and name in colluders:
            known.corrupts(session.states[name])
        if way == "up":
            truth = session.inputs[name] if phase == "masked-input" else None
            known.hears(message, truth)
        return changed

    session.tamper = tamper
    return known
