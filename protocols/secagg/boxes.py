"""Shares on their way between two clients, sealed against the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocols import aead, agreement, kdf, kem, labels, shamir, wire
from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import MessageError, RuleBrokenError
from protocols.keys import Secret
from protocols.secagg.directory import Directory
from protocols.secagg.messages import Box, Delivery, Offer
from protocols.suites import Suite

__all__ = ["Channels", "SharePair"]

SharePair = tuple[bytes, bytes]
"""A share of one peer's b and one of its R."""


@dataclass(frozen=True, eq=False, repr=False)
class Channels(Secret):
    """One client's ends of the channels to all its neighbours."""

    own: int
    key: AgreementKey
    directory: Directory
    context: bytes  # session id and directory digest
    suite: Suite

    def seal(
        self,
        shares: Mapping[int, tuple[bytes, ...]],
        offers: Mapping[int, Offer],
        randomness: bytes,
    ) -> tuple[Box, ...]:
        """One box per peer with the shares for it.

        Requires: ``randomness`` is fresh.
        """
        return tuple(
            self._seal_one(peer, b"".join(pair), offers.get(peer), randomness)
            for peer, pair in shares.items()
        )

    def open(self, delivery: Delivery) -> dict[int, SharePair]:
        """The shares of every box that opens, by dealer.

        Raises:
            RuleBrokenError: A box claims to be from a stranger or from us.
        """
        offers = {offer.peer: offer for offer in delivery.offers}
        if not offers.keys() <= {box.peer for box in delivery.boxes}:
            raise RuleBrokenError("SA-204", "offer without a box")
        shares = {}
        for box in delivery.boxes:
            # SA-204: from members of our directory other than ourselves.
            if box.peer == self.own or box.peer not in self.directory:
                raise RuleBrokenError("SA-204", "box from a stranger or ourselves")
            # SA-205: what does not open, or holds no shares, counts as not sent.
            try:
                shares[box.peer] = self._open_one(box, offers.get(box.peer))
            except MessageError:
                continue
        return shares

    def _seal_one(
        self, peer: int, plaintext: bytes, offer: Offer | None, randomness: bytes
    ) -> Box:
        encapsulated = None
        if self.suite.hybrid:
            encapsulated = agreement.encapsulate(self.directory[peer].channel_key)
        key = self._key(self.own, peer, peer, encapsulated)
        # A key seals one box, so a constant nonce would do. A fresh one keeps a
        # client that a backup rolled back from sealing two different plaintexts
        # under one key and nonce.
        nonce = kdf.derive(
            labels.BOX_NONCE, randomness, self.context, aead.NONCE_BYTES, wire.u16(peer)
        )
        header = self._header(self.own, peer, offer)
        sealed = aead.seal_box(key, nonce, plaintext, header)
        return Box(peer, (encapsulated.ciphertext if encapsulated else b"") + sealed)

    def _open_one(self, box: Box, offer: Offer | None) -> SharePair:
        encapsulated, sealed = None, box.sealed
        if self.suite.hybrid:
            encapsulated = self.key.decapsulate(sealed[: kem.CIPHERTEXT_BYTES])
            sealed = sealed[kem.CIPHERTEXT_BYTES :]
        key = self._key(box.peer, self.own, box.peer, encapsulated)
        header = self._header(box.peer, self.own, offer)
        plaintext = aead.open_box(key, sealed, header)
        size = shamir.SHARE_BYTES
        return (
            shamir.verify_share(plaintext[:size]),
            shamir.verify_share(plaintext[size:]),
        )

    def _key(
        self, sender: int, recipient: int, peer: int, encapsulated: KemSecret | None
    ) -> bytes:
        """SA-202: one key per direction."""
        ends = wire.u16(sender) + wire.u16(recipient)
        public = self.directory[peer].channel_key
        return self.key.agree(labels.BOX_KEY, public, encapsulated, self.context, ends)

    def _header(self, sender: int, recipient: int, offer: Offer | None) -> bytes:
        """SA-202: what a box is bound to: context, both ends and the offer."""
        ends = wire.u16(sender) + wire.u16(recipient)
        offered = (offer.ciphertext, offer.tag) if offer else ()
        parts = (labels.VERSION, labels.BOX_HEADER, self.context, ends, *offered)
        return wire.frame(parts)
