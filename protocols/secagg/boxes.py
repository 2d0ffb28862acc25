"""Shares on their way between two clients, sealed against the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocols import aead, kdf, labels, shamir, wire
from protocols.errors import MessageError, RuleBrokenError
from protocols.keys import ExchangeKey, Secret
from protocols.secagg.directory import Directory
from protocols.secagg.messages import Box

__all__ = ["Channels"]


@dataclass(frozen=True, eq=False, repr=False)
class Channels(Secret):
    """One client's ends of the channels to all others."""

    own: int
    key: ExchangeKey
    directory: Directory
    context: bytes  # session id and directory digest

    def seal(
        self, shares: Mapping[int, tuple[bytes, ...]], randomness: bytes
    ) -> tuple[Box, ...]:
        """One box per peer with the shares for it.

        Requires: ``randomness`` is fresh.
        """
        boxes = []
        for peer, pair in shares.items():
            key, header = self._key(self.own, peer, peer)
            # A key seals one box, so a constant nonce would do. A fresh one keeps
            # a client that a backup rolled back from sealing two different
            # plaintexts under one key and nonce.
            nonce = kdf.derive(
                labels.BOX_NONCE,
                randomness,
                self.context,
                aead.NONCE_BYTES,
                wire.u16(peer),
            )
            boxes.append(Box(peer, aead.seal_box(key, nonce, b"".join(pair), header)))
        return tuple(boxes)

    def open(self, boxes: Iterable[Box]) -> dict[int, tuple[bytes, bytes]]:
        """The shares of every box that opens, by dealer.

        Raises:
            RuleBrokenError: A box claims to be from a stranger or from us.
        """
        shares = {}
        for box in boxes:
            # SA-204: from members of our directory other than ourselves.
            if box.peer == self.own or box.peer not in self.directory:
                raise RuleBrokenError("SA-204", "box from a stranger or ourselves")
            # SA-205: what does not open, or holds no shares, counts as not sent.
            try:
                shares[box.peer] = self._open_one(box)
            except MessageError:
                continue
        return shares

    def _open_one(self, box: Box) -> tuple[bytes, bytes]:
        key, header = self._key(box.peer, self.own, box.peer)
        plaintext = aead.open_box(key, box.sealed, header)
        size = shamir.SHARE_BYTES
        return (
            shamir.verify_share(plaintext[:size]),
            shamir.verify_share(plaintext[size:]),
        )

    def _key(self, sender: int, recipient: int, peer: int) -> tuple[bytes, bytes]:
        """SA-202: one key per direction, a header with the context and both ends."""
        ends = wire.u16(sender) + wire.u16(recipient)
        shared = self.key.exchange(self.directory[peer].channel_key)
        key = kdf.derive(labels.BOX_KEY, shared, self.context, 32, ends)
        header = wire.frame((labels.VERSION, labels.BOX_HEADER, self.context, ends))
        return key, header
