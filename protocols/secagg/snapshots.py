"""A client's state as bytes, for a client that answers one message per process.

The bytes hold the session's secrets: whoever stores them encrypts them, keeps
one copy, and replaces it before the answer that led to it is sent (SA-008). The
parameters and the identity are not in them; the caller has both from the signed
study and its key store, and they must give the same session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from protocols import kem, shamir, wire
from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import MessageError, MisuseError
from protocols.keys import SigningKey
from protocols.secagg import messages
from protocols.secagg.boxes import Channels, SharePair
from protocols.secagg.client_states import (
    Advertised,
    ClientState,
    Finished,
    InputMasked,
    KeysShared,
    Seat,
    SurvivorsConfirmed,
    require_unused,
)
from protocols.secagg.params import SessionParams

__all__ = ["state_from_bytes", "state_to_bytes"]

_VERSION: Final = 1
_SECRET_BYTES: Final = 32
_CONTEXT_BYTES: Final = 64
_FINISHED: Final = 5


def state_to_bytes(state: ClientState | Finished) -> bytes:
    """The state, in a layout that only ``state_from_bytes`` has to know.

    Raises:
        MisuseError: The state has been used up.
    """
    if isinstance(state, Finished):
        names = b"".join(_sized(name.encode()) for name in state.survivors)
        return bytes((_VERSION, _FINISHED)) + wire.u16(len(state.survivors)) + names
    require_unused(state)
    tag, write = _WRITERS[type(state)]
    seat = state.seat.session + wire.u16(state.seat.index)
    return bytes((_VERSION, tag)) + seat + write(state)


def state_from_bytes(
    params: SessionParams, identity: SigningKey, model_digest: bytes, data: bytes
) -> ClientState | Finished:
    """The state that ``state_to_bytes`` wrote.

    Args:
        params: Those of the session, from the signed study.
        identity: This client's identity key.
        model_digest: Digest of the model that this client received.
        data: The stored bytes, decrypted and authenticated by the caller.

    Raises:
        MessageError: ``data`` is damaged.
        MisuseError: ``data`` is of another session or identity.
    """
    reader = wire.Reader(data)
    reader.expect(bytes((_VERSION,)), "version of a stored state")
    tag = reader.number(1)
    if tag == _FINISHED:
        return _read_finished(reader)
    if tag not in _READERS:
        raise MessageError("stored state of an unknown phase")
    seat = _read_seat(reader, params, identity, model_digest)
    state = _READERS[tag](reader, seat)
    reader.finish()
    return state


def _read_seat(
    reader: wire.Reader,
    params: SessionParams,
    identity: SigningKey,
    model_digest: bytes,
) -> Seat:
    session, index = reader.take(_SECRET_BYTES), reader.number(2)
    if session != params.session_id(model_digest):
        raise MisuseError("the stored state is of another session")
    if index >= len(params.roster) or identity.public_bytes != (
        params.roster[index].identity
    ):
        raise MisuseError("the stored state is of another identity")
    return Seat(params, session, index, identity)


# ------------------------------------------------------------- parts of a state


def _sized(data: bytes) -> bytes:
    return wire.u32(len(data)) + data


def _read_sized(reader: wire.Reader) -> bytes:
    return reader.take(reader.number(4))


def _write_directory(directory: Mapping[int, messages.Advertise]) -> bytes:
    entries = b"".join(entry.to_bytes() for entry in directory.values())
    return wire.u16(len(directory)) + entries


def _read_directory(
    reader: wire.Reader, params: SessionParams
) -> dict[int, messages.Advertise]:
    suite = params.primitives
    size = messages.advertise_bytes(suite)
    entries = [
        messages.Advertise.from_bytes(reader.take(size), suite)
        for _ in range(reader.number(2))
    ]
    wire.require_increasing([entry.sender for entry in entries])
    return {entry.sender: entry for entry in entries}


def _write_shares(shares: Mapping[int, SharePair]) -> bytes:
    parts = [wire.u16(dealer) + b"".join(pair) for dealer, pair in shares.items()]
    return wire.u16(len(parts)) + b"".join(parts)


def _read_shares(reader: wire.Reader) -> dict[int, SharePair]:
    pairs = [
        (reader.number(2), (_read_share(reader), _read_share(reader)))
        for _ in range(reader.number(2))
    ]
    wire.require_increasing([dealer for dealer, _ in pairs])
    return dict(pairs)


def _read_share(reader: wire.Reader) -> bytes:
    return shamir.verify_share(reader.take(shamir.SHARE_BYTES))


def _write_key(key: AgreementKey) -> bytes:
    return _sized(key.to_bytes())


def _read_key(reader: wire.Reader, params: SessionParams) -> AgreementKey:
    data = _read_sized(reader)
    expected = _SECRET_BYTES + (kem.SEED_BYTES if params.primitives.hybrid else 0)
    if len(data) != expected:
        raise MessageError("stored key has the wrong size")
    return AgreementKey.from_bytes(data)


# ------------------------------------------------------------------- the phases


def _write_advertised(state: Advertised) -> bytes:
    secrets = state.self_secret + state.recovery
    return _write_key(state.channel) + secrets + state.entry.to_bytes()


def _read_advertised(reader: wire.Reader, seat: Seat) -> Advertised:
    suite = seat.params.primitives
    key = _read_key(reader, seat.params)
    self_secret, recovery = reader.take(_SECRET_BYTES), reader.take(_SECRET_BYTES)
    entry = reader.take(messages.advertise_bytes(suite))
    parsed = messages.Advertise.from_bytes(entry, suite)
    return Advertised(seat, key, self_secret, recovery, parsed)


def _write_shared(state: KeysShared) -> bytes:
    offered = b"".join(
        wire.u16(peer) + one.ciphertext + one.secret
        for peer, one in state.offered.items()
    )
    return b"".join(
        (
            _write_key(state.channels.key),
            state.self_secret,
            state.recovery,
            state.context,
            _write_directory(state.directory),
            state.own_share,
            wire.u16(len(state.offered)),
            offered,
        )
    )


def _read_shared(reader: wire.Reader, seat: Seat) -> KeysShared:
    key = _read_key(reader, seat.params)
    self_secret, recovery, context = (
        reader.take(_SECRET_BYTES),
        reader.take(_SECRET_BYTES),
        reader.take(_CONTEXT_BYTES),
    )
    directory = _read_directory(reader, seat.params)
    own_share = _read_share(reader)
    offered = _read_offered(reader)
    channels = Channels(seat.index, key, directory, context, seat.params.primitives)
    return KeysShared(
        seat, channels, self_secret, recovery, context, directory, own_share, offered
    )


def _read_offered(reader: wire.Reader) -> dict[int, KemSecret]:
    pairs = [
        (
            reader.number(2),
            KemSecret(reader.take(kem.CIPHERTEXT_BYTES), reader.take(kem.SECRET_BYTES)),
        )
        for _ in range(reader.number(2))
    ]
    wire.require_increasing([peer for peer, _ in pairs])
    return dict(pairs)


def _write_masked(state: InputMasked) -> bytes:
    return state.context + state.own_share + _write_shares(state.shares)


def _read_masked(reader: wire.Reader, seat: Seat) -> InputMasked:
    context, own_share = reader.take(_CONTEXT_BYTES), _read_share(reader)
    return InputMasked(seat, context, _read_shares(reader), own_share)


def _write_confirmed(state: SurvivorsConfirmed) -> bytes:
    listed = wire.write_indices(state.survivors)
    return state.context + state.own_share + _write_shares(state.shares) + listed


def _read_confirmed(reader: wire.Reader, seat: Seat) -> SurvivorsConfirmed:
    context, own_share = reader.take(_CONTEXT_BYTES), _read_share(reader)
    shares, survivors = _read_shares(reader), wire.read_indices(reader)
    return SurvivorsConfirmed(seat, context, shares, own_share, survivors)


def _read_finished(reader: wire.Reader) -> Finished:
    try:
        names = [_read_sized(reader).decode() for _ in range(reader.number(2))]
    except UnicodeDecodeError as error:
        raise MessageError("stored name is not text") from error
    reader.finish()
    return Finished(tuple(names))


_WRITERS: Final[Mapping[type[ClientState], tuple[int, Callable[[Any], bytes]]]] = {
    Advertised: (1, _write_advertised),
    KeysShared: (2, _write_shared),
    InputMasked: (3, _write_masked),
    SurvivorsConfirmed: (4, _write_confirmed),
}
_READERS: Final[Mapping[int, Callable[[wire.Reader, Seat], ClientState]]] = {
    1: _read_advertised,
    2: _read_shared,
    3: _read_masked,
    4: _read_confirmed,
}
