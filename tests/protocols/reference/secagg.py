"""A second implementation of the secure sum: suite 1, complete graph.

Plain and slow, in Python integers; both roles, one class each, phases in time
order. It checks enough to refuse a session that went wrong, but not every rule:
it is here to agree with ``protocols.secagg`` byte by byte, not to replace it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.protocols.reference import shamir
from tests.protocols.reference import transcript as t
from tests.protocols.reference.masks import (
    Vector,
    aes_stream,
    combined,
    commitment_of,
    keystream,
    mask_private,
    pair_key,
    self_key,
    vector_bytes,
    vector_from,
)
from tests.protocols.reference.x25519 import BASE_POINT, x25519

SHARE_BYTES = 36
BOX_BYTES = 12 + 2 * SHARE_BYTES + 16
ADVERTISE_BYTES = 229
REVEAL_SELF, REVEAL_RECOVERY = b"\x01", b"\x02"

# ------------------------------------------------------------------ directory


class Entry:
    """One advertisement."""

    def __init__(self, data: bytes, session: bytes, study: t.Study) -> None:
        self.data = data
        self.sender, fields = t.verified(t.ADVERTISE, session, data, study, session)
        self.channel, self.mask, self.commitment, self.nonce = (
            fields.take(32) for _ in range(4)
        )
        fields.finish()


def directory_of(entries: Iterable[Entry], study: t.Study) -> dict[int, Entry]:
    """The advertisements by index, in the order of the roster."""
    directory = {one.sender: one for one in sorted(entries, key=lambda e: e.sender)}
    keys = [key for one in directory.values() for key in (one.channel, one.mask)]
    t.require(len(set(keys)) == len(keys), "SA-102")
    t.require(len(directory) >= study.least_inputs, "SA-105")
    return directory


# --------------------------------------------------------------------- client


class Client:
    """One client; call the steps in order, each with the server's message."""

    def __init__(
        self, study: t.Study, name: str, identity_seed: bytes, model: bytes
    ) -> None:
        self.study, self.identity = study, identity_seed
        self.index = [member for member, _ in study.roster].index(name)
        self.session = study.session_id(model)

    def advertise(self, randomness: bytes) -> bytes:
        session = self.session
        self.channel = t.derive(b"secagg channel secret", randomness, session, 32)
        self.self_secret = t.derive(b"secagg self-mask secret", randomness, session, 32)
        self.recovery = t.derive(b"secagg recovery secret", randomness, session, 32)
        self.mask_private = mask_private(self.recovery, session)
        payload = (
            x25519(self.channel, BASE_POINT)
            + x25519(self.mask_private, BASE_POINT)
            + commitment_of(self.self_secret, session)
            + t.derive(b"secagg nonce", randomness, session, 32)
        )
        self.entry = self._signed(t.ADVERTISE, payload, session)
        return self.entry

    def share(self, roster: bytes, randomness: bytes) -> bytes:
        fields = t.opened(t.ROSTER, self.session, roster)
        entries = [fields.take(ADVERTISE_BYTES) for _ in range(fields.number(2))]
        fields.finish()
        self.directory = directory_of(
            (Entry(data, self.session, self.study) for data in entries), self.study
        )
        t.require(self.directory[self.index].data == self.entry, "SA-104")
        self.context = t.context_of(self.session, entries)
        dealt = self._dealt(randomness)
        self.own_share = dealt.pop(self.index)[0]
        boxes = b"".join(
            t.number(peer, 2) + self._sealed(peer, b"".join(pair), randomness)
            for peer, pair in dealt.items()
        )
        return self._signed(t.SHARE_KEYS, t.number(len(dealt), 2) + boxes, self.context)

    def _dealt(self, randomness: bytes) -> dict[int, tuple[bytes, bytes]]:
        """To everybody one share of b and one of R."""
        points = [index + 1 for index in self.directory]
        key = t.derive(b"secagg share coefficients", randomness, self.context, 32)
        rows = shamir.draw_coefficients(
            aes_stream(key), self.study.threshold - 1, 2 * shamir.LIMBS
        )
        of_b = [row[: shamir.LIMBS] for row in rows]
        of_r = [row[shamir.LIMBS :] for row in rows]
        pairs = zip(
            shamir.split(self.self_secret, points, of_b),
            shamir.split(self.recovery, points, of_r),
            strict=True,
        )
        return dict(zip(self.directory, pairs, strict=True))

    def _sealed(self, peer: int, plaintext: bytes, randomness: bytes) -> bytes:
        key, header = self._channel(self.index, peer, peer)
        nonce = t.derive(
            b"secagg box nonce", randomness, self.context, 12, t.number(peer, 2)
        )
        return nonce + AESGCM(key).encrypt(nonce, plaintext, header)

    def _channel(self, sender: int, recipient: int, peer: int) -> tuple[bytes, bytes]:
        ends = t.number(sender, 2) + t.number(recipient, 2)
        shared = x25519(self.channel, self.directory[peer].channel)
        key = t.derive(b"secagg box key", shared, self.context, 32, ends)
        parts = (t.SPECIFICATION, b"secagg box header", self.context, ends)
        return key, t.framed(parts)

    def mask(self, delivery: bytes, vector: Vector) -> bytes:
        fields = t.opened(t.DELIVERY, self.session, delivery)
        self.shares: dict[int, tuple[bytes, bytes]] = {}
        for dealer, box in fields.table(BOX_BYTES):
            t.require(dealer in self.directory and dealer != self.index, "SA-204")
            key, header = self._channel(dealer, self.index, dealer)
            try:
                pair = AESGCM(key).decrypt(box[:12], box[12:], header)
            except InvalidTag:
                continue  # SA-205: as if it had not been sent.
            self.shares[dealer] = pair[:SHARE_BYTES], pair[SHARE_BYTES:]
        fields.finish()
        self.cohort = sorted([self.index, *self.shares])
        t.require(len(self.cohort) >= self.study.least_inputs, "SA-206")
        masked = vector_bytes(self._masked(vector), self.study)
        payload = t.listed(self.cohort) + t.number(len(masked), 4) + masked
        return self._signed(t.MASKED_INPUT, payload, self.context)

    def _masked(self, vector: Vector) -> Vector:
        own = keystream(self_key(self.self_secret, self.context), self.study)
        total = combined(vector, 1, own, self.study)
        for peer in self.shares:
            public = self.directory[peer].mask
            key = pair_key(self.index, self.mask_private, peer, public, self.context)
            sign = 1 if self.index < peer else -1
            total = combined(total, sign, keystream(key, self.study), self.study)
        return total

    def confirm(self, survivors: bytes) -> bytes:
        fields = t.opened(t.SURVIVORS, self.session, survivors)
        self.survivors = [index for (index,) in fields.table()]
        fields.finish()
        t.require(self.index in self.survivors, "SA-401")
        t.require(set(self.survivors) <= set(self.cohort), "SA-402")
        t.require(len(self.survivors) >= self.study.least_inputs, "SA-403")
        self.confirmed = t.confirmed_context(self.context, self.survivors)
        return self._signed(t.CONFIRM, b"", self.confirmed)

    def reveal(self, confirmations: bytes) -> bytes:
        fields = t.opened(t.CONFIRMATIONS, self.session, confirmations)
        rows = fields.table(t.SIGNATURE_BYTES)
        fields.finish()
        t.require(len(rows) >= self.study.threshold, "SA-501")
        for signer, signature in rows:
            t.require(signer in self.survivors, "SA-501")
            message = t.head(t.CONFIRM, self.session) + t.number(signer, 2) + signature
            t.verified(t.CONFIRM, self.session, message, self.study, self.confirmed)
        reveals = b"".join(self._revealed(peer) for peer in self.cohort)
        payload = t.number(len(self.cohort), 2) + reveals
        return self._signed(t.UNMASK, payload, self.confirmed)

    def _revealed(self, peer: int) -> bytes:
        """One share of b for a survivor, one of R for a dropout; never both."""
        if peer == self.index:
            return t.number(peer, 2) + REVEAL_SELF + self.own_share
        of_b, of_r = self.shares[peer]
        kind, share = (
            (REVEAL_SELF, of_b) if peer in self.survivors else (REVEAL_RECOVERY, of_r)
        )
        return t.number(peer, 2) + kind + share

    def _signed(self, tag: int, payload: bytes, context: bytes) -> bytes:
        return t.signed(tag, self.session, self.index, payload, self.identity, context)


# --------------------------------------------------------------------- server


class Server:
    """The server; each step takes the messages of all clients that sent one."""

    def __init__(self, study: t.Study, model: bytes) -> None:
        self.study, self.session = study, study.session_id(model)

    def publish(self, messages: Sequence[bytes]) -> bytes:
        entries = [Entry(data, self.session, self.study) for data in messages]
        self.directory = directory_of(entries, self.study)
        written = [one.data for one in self.directory.values()]
        self.context = t.context_of(self.session, written)
        count = t.number(len(written), 2)
        return t.head(t.ROSTER, self.session) + count + b"".join(written)

    def deliver(self, messages: Sequence[bytes]) -> dict[int, bytes]:
        tables = {}
        for sender, fields in self._verified(t.SHARE_KEYS, messages, self.context):
            tables[sender] = dict(fields.table(BOX_BYTES))
            fields.finish()
        head = t.head(t.DELIVERY, self.session)
        delivered = {}
        for recipient in tables:
            rows = [
                t.number(sender, 2) + boxes[recipient]
                for sender, boxes in sorted(tables.items())
                if sender != recipient
            ]
            delivered[recipient] = head + t.number(len(rows), 2) + b"".join(rows)
        return delivered

    def survive(self, messages: Sequence[bytes]) -> bytes:
        self.cohorts, self.total = {}, None
        for sender, fields in self._verified(t.MASKED_INPUT, messages, self.context):
            self.cohorts[sender] = {index for (index,) in fields.table()}
            vector = vector_from(fields.take(fields.number(4)), self.study)
            fields.finish()
            before = self.total
            self.total = combined(before, 1, vector, self.study) if before else vector
        self.survivors = sorted(self.cohorts)
        t.require(len(self.survivors) >= self.study.least_inputs, "SA-016")
        self.confirmed = t.confirmed_context(self.context, self.survivors)
        return t.head(t.SURVIVORS, self.session) + t.listed(self.survivors)

    def relay(self, messages: Sequence[bytes]) -> bytes:
        senders = self._verified(t.CONFIRM, messages, self.confirmed)
        rows = sorted(
            (sender, message[-t.SIGNATURE_BYTES :])
            for (sender, _), message in zip(senders, messages, strict=True)
        )[: self.study.threshold]
        relayed = b"".join(t.number(sender, 2) + signed for sender, signed in rows)
        head = t.head(t.CONFIRMATIONS, self.session)
        return head + t.number(len(rows), 2) + relayed

    def finish(self, messages: Sequence[bytes]) -> Vector:
        """The sum of the survivors' inputs."""
        shares: dict[int, dict[int, bytes]] = {}
        for holder, fields in self._verified(t.UNMASK, messages, self.confirmed):
            for dealer, row in fields.table(1 + SHARE_BYTES):
                right = REVEAL_SELF if dealer in self.survivors else REVEAL_RECOVERY
                t.require(row[:1] == right, "SA-504")
                shares.setdefault(dealer, {})[holder + 1] = row[1:]
            fields.finish()
        total = self.total
        for dealer, held in shares.items():
            points = sorted(held)[: self.study.threshold]
            t.require(len(points) == self.study.threshold, "SA-016")
            secret = shamir.reconstruct(points, [held[point] for point in points])
            for sign, key in self._left_over(dealer, secret):
                total = combined(total, sign, keystream(key, self.study), self.study)
        return total

    def _left_over(self, dealer: int, secret: bytes) -> list[tuple[int, bytes]]:
        """Sign and key of every mask that one secret takes off the sum."""
        entry = self.directory[dealer]
        if dealer in self.survivors:
            found = commitment_of(secret, self.session)
            t.require(found == entry.commitment, "SA-505")
            return [(-1, self_key(secret, self.context))]
        private = mask_private(secret, self.session)
        t.require(x25519(private, BASE_POINT) == entry.mask, "SA-505")
        masked = [peer for peer in self.survivors if dealer in self.cohorts[peer]]
        # A survivor added this if its index is lower; the opposite is left over.
        return [
            (
                1 if dealer < peer else -1,
                pair_key(
                    dealer, private, peer, self.directory[peer].mask, self.context
                ),
            )
            for peer in masked
        ]

    def _verified(
        self, tag: int, messages: Sequence[bytes], context: bytes
    ) -> list[tuple[int, t.Fields]]:
        return [
            t.verified(tag, self.session, data, self.study, context)
            for data in messages
        ]
