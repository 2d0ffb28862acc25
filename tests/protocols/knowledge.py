"""What a server and the clients that work for it can compute from all they saw.

``Knowledge`` is filled with every message of every session, as bytes. It then
does what such an adversary would do:

1. open each box for which it has the key, and collect all shares of each secret,
   from boxes and from reveals, over all answers of all victims;
2. rebuild b and R of each honest client from any subset of these shares;
3. list which masks it can compute, from secrets that it rebuilt or made itself;
4. find every linear combination of masked inputs whose other masks cancel.

Masks that it cannot compute count as independent and uniform: HKDF, the streams
and the boxes are taken as good, and what a multiple of a mask says by losing its
upper bits is not counted. What it finds is computed from the bytes and compared
with the truth, so the list of masks in each input is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from protocols import shamir
from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import MessageError, RuleBrokenError
from protocols.ring import RingVector
from protocols.secagg import messages
from protocols.secagg.boxes import Channels
from protocols.secagg.client_states import Advertised, KeysShared
from protocols.secagg.directory import bind, directory_root
from protocols.secagg.hybrid import open_vault
from protocols.secagg.masks import (
    Mask,
    add_masks,
    commitment_of,
    mask_key_of,
    pair_mask,
    self_mask,
)
from protocols.secagg.params import SessionParams
from tests.protocols.elimination import independent, is_inside, kernel

# Context, the two ends (twice one: a self mask) and, if hybrid, the ciphertext.
MaskName = tuple[bytes, int, int, bytes]


@dataclass(frozen=True)
class Input:
    """One masked input of an honest client, with what only the test knows."""

    message: messages.MaskedInput
    context: bytes
    client: str
    truth: RingVector
    ciphertexts: Mapping[int, bytes]  # in a hybrid suite, by peer

    @property
    def label(self) -> tuple[str, bytes]:
        """The unknown in it; the same vector masked twice is one unknown."""
        return self.client, self.truth.to_bytes()


@dataclass
class Knowledge:
    """All that was seen; ``colluders`` are the same clients in every session."""

    colluders: tuple[str, ...] = ()

    params: dict[bytes, SessionParams] = field(default_factory=dict)
    directories: dict[bytes, dict[int, messages.Advertise]] = field(
        default_factory=dict
    )  # by context
    keys: dict[bytes, AgreementKey] = field(default_factory=dict)  # by public key
    recoveries: dict[bytes, bytes] = field(default_factory=dict)  # R by mask key
    shared: list[tuple[bytes, messages.ShareKeys]] = field(default_factory=list)
    reveals: list[messages.Unmask] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    delivered: dict[tuple[bytes, int], dict[int, bytes]] = field(default_factory=dict)
    offered: dict[bytes, KemSecret] = field(default_factory=dict)  # by colluders

    # ------------------------------------------------------------ what it saw

    def joins(self, params: SessionParams, session: bytes) -> None:
        """A session begins."""
        self.params[session] = params

    def corrupts(self, state: Advertised) -> None:
        """A colluder hands over the secrets it made."""
        session, suite = state.seat.session, state.seat.params.primitives
        self.keys[state.entry.channel_key] = state.channel
        self.keys[state.entry.mask_key] = mask_key_of(state.recovery, session, suite)
        self.recoveries[state.entry.mask_key] = state.recovery

    def says(self, directory: bytes, params: SessionParams) -> None:
        """The server sent this to somebody as directory."""
        sparse = params.degree > 0
        kind: Any = messages.Neighbourhood if sparse else messages.Roster
        try:
            parsed = kind.from_bytes(directory, params.primitives)
        except MessageError:
            return  # nobody takes it for a directory
        if sparse:
            context = bind(parsed.session, parsed.size, parsed.root)
            listed = [one.entry for one in parsed.listings]
        else:
            listed = parsed.entries
            root = directory_root({entry.sender: entry for entry in listed})
            context = bind(parsed.session, len(listed), root)
        known = self.directories.setdefault(context, {})
        known.update({entry.sender: entry for entry in listed})

    def delivers(self, state: Any, delivery: bytes) -> None:
        """A client is about to mask with what it offered and what was delivered."""
        if not isinstance(state, KeysShared):
            return
        try:
            suite = state.seat.params.primitives
            parsed = messages.Delivery.from_bytes(delivery, suite)
        except MessageError:
            return
        if state.seat.params.name_of(state.seat.index) in self.colluders:
            self.offered.update({o.ciphertext: o for o in state.offered.values()})
        self.delivered[state.seat.session, state.seat.index] = {
            **{offer.peer: offer.ciphertext for offer in parsed.offers},
            **{peer: one.ciphertext for peer, one in state.offered.items()},
        }

    def hears(self, message: bytes, truth: RingVector | None = None) -> None:
        """A client sent this; ``truth`` is the input in a ``MaskedInput``."""
        params = self.params[message[3:35]]
        suite = params.primitives
        if message[0] == messages.ShareKeys.tag:
            parsed = messages.ShareKeys.from_bytes(message, suite)
            self.shared.append((self._context_of(parsed), parsed))
        if message[0] == messages.Unmask.tag:
            self.reveals.append(messages.Unmask.from_bytes(message, suite))
        if message[0] == messages.MaskedInput.tag and truth is not None:
            masked = messages.MaskedInput.from_bytes(message, suite)
            context, name = self._context_of(masked), params.name_of(masked.sender)
            used = self.delivered.get((masked.session, masked.sender), {})
            self.inputs.append(Input(masked, context, name, truth, used))

    def _context_of(self, message: messages.SignedMessage) -> bytes:
        """The context that was signed over tells which directory a client has."""
        member = self.params[message.session].roster[message.sender]
        for context in self.directories:
            try:
                message.verify(member.identity, context)
            except RuleBrokenError:
                continue
            return context
        raise AssertionError("a client signed over a directory nobody sent")

    # ------------------------------------------------- 1. boxes and their shares

    def _shares(self) -> Mapping[tuple[bytes, int, int], set[tuple[int, bytes]]]:
        """(holder, share) pairs by session, dealer and kind."""
        found: dict[tuple[bytes, int, int], set[tuple[int, bytes]]] = {}
        for unmask in self.reveals:
            for one in unmask.reveals:
                found.setdefault((unmask.session, one.peer, one.kind), set()).add(
                    (unmask.sender, one.share)
                )
        for context, message in self.shared:
            for holder, pair in self._opened(context, message):
                for kind, share in zip((1, 2), pair, strict=True):
                    found.setdefault(
                        (message.session, message.sender, kind), set()
                    ).add((holder, share))
        return found

    def _opened(
        self, context: bytes, message: messages.ShareKeys
    ) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
        directory = self.directories[context]
        offers = {offer.peer: offer for offer in message.offers}
        for box in message.boxes:
            key = self.keys.get(directory[box.peer].channel_key)
            if key is None:
                continue
            channels = Channels(box.peer, key, directory, context, message.suite)
            offer = offers.get(box.peer)
            relayed = (
                (messages.Offer(message.sender, offer.ciphertext, offer.tag),)
                if offer
                else ()
            )
            delivery = messages.Delivery(
                message.suite,
                message.session,
                (messages.Box(message.sender, box.sealed),),
                relayed,
            )
            for pair in channels.open(delivery).values():
                yield box.peer, pair

    # ------------------------------------------------------------- 2. secrets

    def secrets(self) -> Mapping[tuple[bytes, int, int], bytes]:
        """b (kind 1) and R (kind 2) that can be rebuilt, by session and dealer."""
        found = {}
        for (session, dealer, kind), shares in self._shares().items():
            secret = self._rebuilt(session, dealer, kind, sorted(shares))
            if secret is not None:
                found[session, dealer, kind] = secret
        return found

    def _rebuilt(
        self, session: bytes, dealer: int, kind: int, shares: list[tuple[int, bytes]]
    ) -> bytes | None:
        params = self.params[session]
        for size in range(params.threshold, 0, -1):
            for subset in combinations(shares, size):
                points = [holder + 1 for holder, _ in subset]
                if len(set(points)) < size:
                    continue
                try:
                    secret = shamir.reconstruct(points, [share for _, share in subset])
                except MessageError:
                    continue
                if self._published(session, dealer, kind, secret):
                    return secret
        return None

    def _published(self, session: bytes, dealer: int, kind: int, secret: bytes) -> bool:
        """Whether it is the secret that the dealer published something of."""
        suite = self.params[session].primitives
        entries = [
            directory[dealer]
            for directory in self.directories.values()
            if dealer in directory and directory[dealer].session == session
        ]
        if kind == messages.REVEAL_SELF:
            found = commitment_of(secret, session)
            return any(entry.commitment == found for entry in entries)
        public = mask_key_of(secret, session, suite).public_bytes
        return any(entry.mask_key == public for entry in entries)

    # --------------------------------------------------------------- 3. masks

    def _masks(self, one: Input) -> dict[MaskName, Mask | None]:
        """Every mask in an input: itself if it can be computed, else None."""
        own, context = one.message.sender, one.context
        secret = self._secrets.get((one.message.session, own, messages.REVEAL_SELF))
        found: dict[MaskName, Mask | None] = {
            (context, own, own, b""): self_mask(secret, context) if secret else None
        }
        for peer in one.message.cohort:
            if peer != own:
                ciphertext = one.ciphertexts.get(peer, b"")
                name = (context, min(own, peer), max(own, peer), ciphertext)
                mask = self._pair_mask(name)
                found[name] = mask.inverse() if mask and own > peer else mask
        return found

    def _pair_mask(self, name: MaskName) -> Mask | None:
        """As the lower end adds it, from the private key of either end."""
        context, low, high, _ = name
        directory = self.directories[context]
        for end, other in ((low, high), (high, low)):
            public = directory[end].mask_key
            key = self._all_keys.get(public)
            if key is not None:
                secret = self._encapsulated(name, end, key)
                peer_key = directory[other].mask_key
                mask = pair_mask(end, key, other, peer_key, context, secret)
                return mask if end == low else mask.inverse()
        return None

    def _encapsulated(
        self, name: MaskName, end: int, key: AgreementKey
    ) -> KemSecret | None:
        """What the ends encapsulated, as ``end`` has it: from its vault or its key."""
        context, low, high, ciphertext = name
        if not ciphertext:
            return None
        if ciphertext in self.offered:
            return self.offered[ciphertext]
        if end == high:
            return key.decapsulate(ciphertext)
        for where, message in self.shared:
            if (where, message.sender) != (context, low):
                continue
            offers = {offer.peer: offer for offer in message.offers}
            if offers[high].ciphertext == ciphertext:
                recovery = self._all_recoveries[key.public_bytes]
                return open_vault(recovery, low, offers, message.vault, context)[high]
        raise AssertionError("a client masked with what it never offered")

    # ----------------------------------------------------- 4. what comes out of it

    def _prepare(self) -> None:
        self._secrets = self.secrets()
        self._all_keys, self._all_recoveries = dict(self.keys), dict(self.recoveries)
        for (session, _, kind), secret in self._secrets.items():
            if kind == messages.REVEAL_RECOVERY:
                key = mask_key_of(secret, session, self.params[session].primitives)
                self._all_keys[key.public_bytes] = key
                self._all_recoveries[key.public_bytes] = secret

    def sums(self) -> list[dict[tuple[str, bytes], int]]:
        """A basis of the combinations of honest inputs that come out free of masks.

        Each is checked: it is computed from the bytes and compared with the truth.
        """
        self._prepare()
        inputs = [one for one in self.inputs if one.client not in self.colluders]
        masks = [self._masks(one) for one in inputs]
        unknown = [
            {
                name: self._sign(one, name)
                for name, mask in found.items()
                if mask is None
            }
            for one, found in zip(inputs, masks, strict=True)
        ]
        found = []
        for weights in kernel(unknown):
            combined = _combined(weights, inputs)
            self._check(weights, inputs, masks, combined)
            if combined:
                found.append(combined)
        return independent(found)

    @staticmethod
    def _sign(one: Input, name: MaskName) -> int:
        _, low, high, _ = name
        return -1 if one.message.sender == high > low else 1

    def _check(self, weights, inputs, masks, combined) -> None:
        """The combination of the bytes equals that of the true inputs."""
        params = self.params[inputs[0].message.session]
        total, expected = params.zeros(), params.zeros()
        for weight, one, found in zip(weights, inputs, masks, strict=True):
            shape = (params.body_length, params.lane_length, params.ring_bits)
            vector = RingVector.from_bytes(one.message.vector, *shape).copy()
            known = [mask.inverse() for mask in found.values() if mask is not None]
            add_masks(vector, known, params.primitives)
            _add_times(total, vector, weight)
        truth = {one.label: one.truth for one in inputs}
        for label, weight in combined.items():
            _add_times(expected, truth[label], weight)
        assert total.to_bytes() == expected.to_bytes(), "the list of masks is wrong"

    def recovered(self) -> set[str]:
        """Honest clients whose input, or a difference of two of it, is known."""
        sums = self.sums()
        labels = {label for one in sums for label in one}
        names = {name for name, _ in labels}
        return {n for n in names if is_inside(sums, {x for x in labels if x[0] == n})}

    def smallest_sum(self) -> int:
        """Fewest honest clients in any non-zero combination that is known; 0: none."""
        sums = self.sums()
        labels = {label for one in sums for label in one}
        names = sorted({name for name, _ in labels})
        if len(sums) == 1:
            return len(names)
        for size in range(1, len(names) + 1):
            for some in combinations(names, size):
                if is_inside(sums, {label for label in labels if label[0] in some}):
                    return size
        return 0

    # ------------------------------------------------------------- the claims

    def assert_never_both(self) -> None:
        """No honest client's b and R are both known."""
        known = self.secrets()
        for session, params in self.params.items():
            for index, member in enumerate(params.roster):
                if member.name not in self.colluders:
                    both = {(session, index, 1), (session, index, 2)}
                    assert not both <= known.keys(), member.name

    def assert_nothing(self) -> None:
        """No combination of honest inputs at all is known."""
        self.assert_never_both()
        assert self.sums() == []

    def assert_only_sums(self, count: int = 1) -> None:
        """``count`` sums are known, and no combination of fewer honest inputs than
        ``min_cohort`` less the colluders."""
        self.assert_never_both()
        assert len(self.sums()) == count
        least = min(params.min_cohort for params in self.params.values())
        if count:
            assert self.smallest_sum() >= least - len(self.colluders)


def _combined(
    weights: Sequence[int], inputs: Sequence[Input]
) -> dict[tuple[str, bytes], int]:
    """The same combination of the unknown inputs."""
    total: dict[tuple[str, bytes], int] = {}
    for weight, one in zip(weights, inputs, strict=True):
        total[one.label] = total.get(one.label, 0) + weight
    return {label: weight for label, weight in total.items() if weight}


def _add_times(target: RingVector, vector: RingVector, weight: int) -> None:
    for part, bits in (("body", target.ring_bits), ("lane", 64)):
        array = getattr(target, part)
        for place in range(array.size):
            value = int(array[place]) + weight * int(getattr(vector, part)[place])
            array[place] = value % 2**bits
