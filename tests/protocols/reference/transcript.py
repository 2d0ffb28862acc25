"""What everybody of a session computes alike: hashes, ids, contexts, messages.

Part of the second implementation in ``secagg``. Written after the docstrings and
message layouts of ``protocols`` and importing nothing from it, so that a change
of any label, order or width shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from tests.protocols.reference.hkdf import hkdf_sha256

SPECIFICATION = b"secfed/protocols/1"
MESSAGE_VERSION = 1
SUITE = 1

# Tags of the messages: of a client with the label that it is signed under.
ADVERTISE, ROSTER, SHARE_KEYS, DELIVERY, MASKED_INPUT = 1, 2, 3, 4, 5
SURVIVORS, CONFIRM, CONFIRMATIONS, UNMASK = 6, 7, 8, 9
SIGNED_UNDER = {
    ADVERTISE: b"secagg sign advertise-keys",
    SHARE_KEYS: b"secagg sign share-keys",
    MASKED_INPUT: b"secagg sign masked-input",
    CONFIRM: b"secagg sign survivors",
    UNMASK: b"secagg sign unmask",
}
HEAD_BYTES = 3 + 32
SIGNATURE_BYTES = 64


class RefusedError(Exception):
    """A party does not go on; the text names the rule."""


def require(condition: bool, rule: str) -> None:
    if not condition:
        raise RefusedError(rule)


# ------------------------------------------------------------------- encoding


def number(value: int, size_bytes: int) -> bytes:
    return value.to_bytes(size_bytes, "little")


def framed(parts: Sequence[bytes]) -> bytes:
    return b"".join(number(len(part), 8) + part for part in parts)


def listed(indices: Sequence[int]) -> bytes:
    return number(len(indices), 2) + b"".join(number(index, 2) for index in indices)


class Fields:
    """Reads fixed-width fields from the front of a message."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, size_bytes: int) -> bytes:
        require(len(self.rest) >= size_bytes, "SA-010")
        taken, self.rest = self.rest[:size_bytes], self.rest[size_bytes:]
        return taken

    def number(self, size_bytes: int) -> int:
        return int.from_bytes(self.take(size_bytes), "little")

    def table(self, *widths: int) -> list[tuple[int, ...]]:
        """A count, then so many rows; the first column is strictly increasing."""
        rows = [
            (self.number(2), *(self.take(width) for width in widths))
            for _ in range(self.number(2))
        ]
        first = [row[0] for row in rows]
        require(first == sorted(set(first)), "SA-010")
        return rows

    def finish(self) -> None:
        require(not self.rest, "SA-010")


# --------------------------------------------------------- hashing and deriving


def digest(label: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(framed((SPECIFICATION, label, *parts))).digest()


def derive(
    label: bytes, secret: bytes, salt: bytes, size_bytes: int, *info: bytes
) -> bytes:
    return hkdf_sha256(secret, salt, framed((SPECIFICATION, label, *info)), size_bytes)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    children = merkle_root(leaves[:half]) + merkle_root(leaves[half:])
    return hashlib.sha256(b"\x01" + children).digest()


@dataclass(frozen=True)
class Study:
    """The parameters of a session on the complete graph in suite 1."""

    study_digest: bytes
    round: int
    attempt: int
    purpose: str
    roster: tuple[tuple[str, bytes], ...]  # name and Ed25519 public key, by name
    threshold: int
    max_colluders: int
    body_length: int
    lane_length: int
    ring_bits: int
    mode: str

    @property
    def least_inputs(self) -> int:
        return max(self.threshold, 3, self.max_colluders + 2)

    def session_id(self, model_digest: bytes) -> bytes:
        members = [part for name, key in self.roster for part in (name.encode(), key)]
        degree, dropouts = 0, 0  # of a sparse graph
        sizes = (self.threshold, self.max_colluders, self.body_length)
        sizes += (self.lane_length, self.ring_bits, degree, dropouts)
        return digest(
            b"secagg session",
            number(SUITE, 1),
            self.study_digest,
            number(self.round, 4),
            number(self.attempt, 4),
            self.purpose.encode(),
            model_digest,
            digest(b"secagg roster", *members),
            digest(
                b"secagg parameters",
                self.mode.encode(),
                *(number(size, 4) for size in sizes),
            ),
        )


def context_of(session: bytes, entries: Sequence[bytes]) -> bytes:
    """Session id and directory digest; ``entries`` are whole advertisements."""
    count = number(len(entries), 2)
    return session + digest(
        b"secagg directory", session, count, merkle_root(list(entries))
    )


def confirmed_context(context: bytes, survivors: Sequence[int]) -> bytes:
    return context + digest(b"secagg survivor list", context, listed(survivors))


# ------------------------------------------------------------------- messages


def head(tag: int, session: bytes) -> bytes:
    return bytes((tag, MESSAGE_VERSION, SUITE)) + session


def opened(tag: int, session: bytes, data: bytes) -> Fields:
    """The fields behind the head of a message of the server."""
    require(data[:HEAD_BYTES] == head(tag, session), "SA-010, SA-011")
    return Fields(data[HEAD_BYTES:])


def signed(
    tag: int, session: bytes, sender: int, payload: bytes, seed: bytes, context: bytes
) -> bytes:
    """A whole message of a client."""
    body = head(tag, session) + number(sender, 2) + payload
    text = digest(SIGNED_UNDER[tag], context, body)
    return body + Ed25519PrivateKey.from_private_bytes(seed).sign(text)


def verified(
    tag: int, session: bytes, data: bytes, study: Study, context: bytes
) -> tuple[int, Fields]:
    """The sender and the payload of a message of a client."""
    body, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    fields = opened(tag, session, body)
    sender = fields.number(2)
    require(sender < len(study.roster), "SA-103")
    public = Ed25519PublicKey.from_public_bytes(study.roster[sender][1])
    try:
        public.verify(signature, digest(SIGNED_UNDER[tag], context, body))
    except InvalidSignature as error:
        raise RefusedError("SA-014") from error
    return sender, fields
