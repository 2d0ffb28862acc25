"""A client that answers one message per process and survives crashes.

The record that a caller stores after each step holds the next state *and* the
answer. It must be durable before the answer is sent. After a crash the same
message then gets the same bytes again, and no other message of that phase gets
any: one answer per phase and session, whatever happens in between (SA-008,
SA-009). Restoring an older record is the one thing this cannot see; the caller's
store must not go back.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import kdf, labels, wire
from protocols.errors import FaultyServerError, MessageError, MisuseError
from protocols.keys import Secret, SigningKey
from protocols.ring import RingVector
from protocols.secagg import client
from protocols.secagg.client_states import ClientState, Finished
from protocols.secagg.params import SessionParams
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes

__all__ = ["Record", "answer", "start"]


@dataclass(frozen=True, eq=False, repr=False)
class Record(Secret):
    """What a client keeps between two messages.

    Attributes:
        state: Where it is; a ``Record`` leads on once, like its state.
        inbound: Digest of the message that was answered last.
        outbound: The answer, to be sent again verbatim.
    """

    state: ClientState | Finished
    inbound: bytes
    outbound: bytes

    def to_bytes(self) -> bytes:
        """The bytes to encrypt and store before ``outbound`` is sent."""
        state = state_to_bytes(self.state)
        return self.inbound + wire.u32(len(state)) + state + self.outbound

    @classmethod
    def from_bytes(
        cls,
        params: SessionParams,
        identity: SigningKey,
        model_digest: bytes,
        data: bytes,
    ) -> Record:
        """The record that ``to_bytes`` wrote; arguments as ``state_from_bytes``.

        Raises:
            MessageError: ``data`` is damaged.
            MisuseError: ``data`` is of another session or identity.
        """
        reader = wire.Reader(data)
        inbound = reader.take(kdf.DIGEST_BYTES)
        state = reader.take(reader.number(4))
        outbound = reader.rest()
        restored = state_from_bytes(params, identity, model_digest, state)
        return cls(restored, inbound, outbound)


def start(
    params: SessionParams,
    name: str,
    identity: SigningKey,
    model_digest: bytes,
    *,
    randomness: bytes,
) -> Record:
    """Phase 0; arguments and errors as ``client.advertise_keys``."""
    state, outbound = client.advertise_keys(
        params, name, identity, model_digest, randomness=randomness
    )
    return Record(state, _digest(b""), outbound)


def answer(
    record: Record,
    message: bytes,
    *,
    randomness: bytes = b"",
    vector: RingVector | None = None,
    threads: int = 1,
) -> Record:
    """Answer one message of the server, or repeat the last answer.

    Args:
        record: From ``start``, ``answer`` or ``Record.from_bytes``.
        message: As received.
        randomness: At least 32 fresh bytes; needed to answer a roster.
        vector: The encoded input; needed to answer a delivery.
        threads: How many work on the masks at the same time.

    Returns:
        The record to store; then send its ``outbound``.

    Raises:
        FaultyServerError: The message breaks a rule, or is not the one that was
            answered in a phase that is over (SA-009).
        MisuseError: ``vector`` or ``randomness`` is missing.
    """
    if _digest(message) == record.inbound:
        return record
    state, outbound = _step(record.state, message, randomness, vector, threads)
    return Record(state, _digest(message), outbound)


def _step(
    state: ClientState | Finished,
    message: bytes,
    randomness: bytes,
    vector: RingVector | None,
    threads: int,
) -> tuple[ClientState | Finished, bytes]:
    if isinstance(state, client.Advertised):
        return client.share_keys(state, message, randomness=randomness)
    if isinstance(state, client.KeysShared):
        if vector is None:
            raise MisuseError("the encoded input is needed to answer a delivery")
        return client.mask_input(state, message, vector, threads=threads)
    if isinstance(state, client.InputMasked):
        return client.confirm_survivors(state, message)
    if isinstance(state, client.SurvivorsConfirmed):
        return client.unmask(state, message)
    raise FaultyServerError("asks again after the session has ended", "SA-009")


def _digest(message: bytes) -> bytes:
    if not isinstance(message, bytes):
        raise MessageError("a message must be bytes")
    return kdf.digest(labels.STORED_ANSWER, message)
