"""Masks of the second implementation: keystreams, vectors in the rings, keys."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from tests.protocols.reference import transcript as t
from tests.protocols.reference.x25519 import x25519

LANE_BITS = 64

Vector = tuple[list[int], list[int]]  # lane and body


def aes_stream(key: bytes) -> Callable[[int], bytes]:
    """A function that reads on in the AES-256-CTR stream from zero."""
    encryptor = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    return lambda size_bytes: encryptor.update(bytes(size_bytes))


def keystream(key: bytes, study: t.Study) -> Vector:
    """One mask: the lane, rounded up to 64 bytes of keystream, then the body."""
    lane_bytes, width = study.lane_length * LANE_BITS // 8, study.ring_bits // 8
    read = aes_stream(key)
    lane = read(lane_bytes + -lane_bytes % 64)[:lane_bytes]
    body = read(study.body_length * width)
    return numbers(lane, LANE_BITS // 8), numbers(body, width)


def numbers(data: bytes, width: int) -> list[int]:
    cuts = range(0, len(data), width)
    return [int.from_bytes(data[i : i + width], "little") for i in cuts]


def combined(one: Vector, sign: int, other: Vector, study: t.Study) -> Vector:
    """``one + sign * other`` in the two rings."""
    moduli = (2**LANE_BITS, 2**study.ring_bits)
    lane, body = (
        [(a + sign * b) % modulus for a, b in zip(left, right, strict=True)]
        for left, right, modulus in zip(one, other, moduli, strict=True)
    )
    return lane, body


def vector_bytes(vector: Vector, study: t.Study) -> bytes:
    lane, body = vector
    width = study.ring_bits // 8
    parts = [t.number(value, 8) for value in lane]
    return b"".join([*parts, *(t.number(value, width) for value in body)])


def vector_from(data: bytes, study: t.Study) -> Vector:
    cut = 8 * study.lane_length
    lane, body = numbers(data[:cut], 8), numbers(data[cut:], study.ring_bits // 8)
    require_shape = (len(lane), len(body)) == (study.lane_length, study.body_length)
    t.require(require_shape, "SA-301")
    return lane, body


def self_key(self_secret: bytes, context: bytes) -> bytes:
    return t.derive(b"secagg self mask", self_secret, context, 32)


def pair_key(
    own: int, private: bytes, peer: int, public: bytes, context: bytes
) -> bytes:
    ends = t.number(min(own, peer), 2) + t.number(max(own, peer), 2)
    shared = x25519(private, public)
    return t.derive(b"secagg pairwise mask", shared, context, 32, ends)


def mask_private(recovery: bytes, session: bytes) -> bytes:
    return t.derive(b"secagg mask private key", recovery, session, 32)


def commitment_of(self_secret: bytes, session: bytes) -> bytes:
    return t.derive(b"secagg commitment", self_secret, session, 32)
