"""A client whose secrets the server has: it plays both, and signs what it likes."""

from __future__ import annotations

from protocols import kdf
from protocols.secagg import client, messages
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.directory import Directory
from protocols.secagg.params import SessionParams
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from tests.session import MODEL, identity_of, randomness


class Colluder:
    """A client whose secrets the server has; it advertises twice."""

    def __init__(self, params: SessionParams, index: int) -> None:
        self.params, self.index = params, index
        self.identity = identity_of(params.name_of(index))
        self._states: dict[bytes, bytes] = {}
        self._channels: dict[bytes, client.KeysShared] = {}
        self._boxes: dict[bytes, dict[int, bytes]] = {}
        self.recovery: dict[bytes, bytes] = {}  # by mask key
        for variant in (1, 2):
            state, sent = client.advertise_keys(
                params,
                params.name_of(index),
                self.identity,
                MODEL,
                randomness=randomness("colluder", index, variant),
            )
            self._states[sent] = state_to_bytes(state)
            self.recovery[state.entry.mask_key] = state.recovery

    @property
    def advertised(self) -> tuple[bytes, ...]:
        return tuple(self._states)

    def enter(self, context: bytes, directory: Directory) -> None:
        """Deal boxes and keep channels for a directory that lists this client."""
        if self.index not in directory or context in self._channels:
            return
        snapshot = self._states[directory[self.index].to_bytes()]
        state = state_from_bytes(self.params, self.identity, MODEL, snapshot)
        assert isinstance(state, client.Advertised)
        suite, entries = self.params.primitives, tuple(directory.values())
        roster = messages.Roster(suite, context[: kdf.DIGEST_BYTES], entries).to_bytes()
        self._channels[context], sent = client.share_keys(
            state, roster, randomness=randomness("deal", self.index, context)
        )
        boxes = messages.ShareKeys.from_bytes(sent, suite).boxes
        self._boxes[context] = {box.peer: box.sealed for box in boxes}

    def boxes_for(self, recipient: int) -> dict[bytes, bytes]:
        """By context; made for every directory that anybody accepted."""
        return {
            context: boxes[recipient]
            for context, boxes in self._boxes.items()
            if recipient in boxes
        }

    def opened(self, context: bytes, box: messages.Box) -> tuple[bytes, bytes]:
        """The shares in an honest client's box for this colluder."""
        suite = self.params.primitives
        delivery = messages.Delivery(suite, context[: kdf.DIGEST_BYTES], (box,))
        return self._channels[context].channels.open(delivery)[box.peer]

    def confirmation(self, context: bytes, survivors: tuple[int, ...]) -> bytes:
        message = messages.Confirm(
            self.params.primitives, context[: kdf.DIGEST_BYTES], self.index, b""
        )
        confirmed = confirmed_context(context, survivors)
        return message.signed(self.identity, confirmed).signature
