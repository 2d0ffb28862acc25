"""Where the randomness of a privacy plan comes from.

A ``RandomStream`` is the AES-256-CTR keystream of one 32-byte key, counter from
zero, read once from front to back. Sampling of units, Gaussian noise and
stochastic rounding all read from streams; no general-purpose generator takes
part (torch's and numpy's seeds can be guessed, shared between sites by
accident, or copied).

Numerical hazards, which a privacy statement has to name:

- Uniforms have 53 bits and normals are IEEE doubles, so that the noise is a
  fine grid and not the real line (Mironov, CCS 2012).
- Box-Muller on 53-bit uniforms cannot return more than
  ``sqrt(106 ln 2) < 8.58`` standard deviations; the missing tail of the
  Gaussian has probability below 1e-16 per draw.

A million normals take about 5 ms on one core with AVX-512 (numpy's vectorised
``log`` and ``tan``), all in double precision; fewer bits would be faster only by
cutting the tail shorter.
"""

from __future__ import annotations

import os
from math import pi
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from secfed.errors import TrainingError

__all__ = ["RandomStream", "box_muller", "simulation_stream", "system_stream"]

_KEY_BYTES = 32
_COUNTER_BYTES = 16
_WORD_BYTES = 8
_UNIFORM_BITS = 53  # The significand of an IEEE 754 double.
_BLOCK_PAIRS = 8192  # Half a megabyte of working memory: it stays in the cache.
_SIMULATION_LABEL = b"secfed/privacy/noise/simulation-stream/1"


class RandomStream:
    """One-way reader of an AES-256-CTR keystream.

    Requires:
        ``len(key) == 32``, and the key is used for no other stream.

    Guarantees:
        No byte is handed out twice by one object. A stream refuses to be
        copied, pickled, or read in a process other than the one that made it,
        because each of these would draw the same noise twice.

    Args:
        key: 32 secret bytes.
        simulated: Whether the key was derived from a seed that others may
            know. What such a stream protects is NOT PRIVATE.
    """

    __slots__ = ("_keystream", "_process", "simulated")

    simulated: bool

    def __init__(self, key: bytes, *, simulated: bool = False) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"a stream key has {_KEY_BYTES} bytes, not {len(key)}")
        # A zero counter is safe because every key serves exactly one stream.
        cipher = Cipher(AES256(key), CTR(bytes(_COUNTER_BYTES)))
        self._keystream = cipher.encryptor()
        self._process = os.getpid()
        self.simulated = simulated

    def bytes(self, size: int) -> bytes:
        """The next ``size`` bytes of the keystream."""
        if size < 0:
            raise ValueError(f"cannot read {size} bytes")
        self._require_own_process()
        return self._keystream.update(bytes(size))

    def uniform(self, size: int) -> NDArray[np.float64]:
        """``size`` independent multiples of 2**-53, uniform in [0, 1)."""
        words = np.frombuffer(self.bytes(_WORD_BYTES * size), dtype="<u8")
        kept = words >> np.uint64(64 - _UNIFORM_BITS)
        return kept.astype(np.float64) * 2.0**-_UNIFORM_BITS

    def normal(self, size: int) -> NDArray[np.float64]:
        """``size`` independent standard normals, two from every 16 bytes."""
        self._require_own_process()
        pairs = (size + 1) // 2
        normals = np.empty(2 * pairs, dtype=np.float64)
        zeros = bytes(2 * _WORD_BYTES * min(pairs, _BLOCK_PAIRS))
        words = np.empty(len(zeros) // _WORD_BYTES, dtype="<u8")
        for start in range(0, pairs, _BLOCK_PAIRS):
            count = 2 * min(_BLOCK_PAIRS, pairs - start)
            self._keystream.update_into(
                memoryview(zeros)[: _WORD_BYTES * count],
                words[:count].view(np.uint8).data,
            )
            box_muller(words[:count], normals[2 * start : 2 * start + count])
        return normals[:size]

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise TrainingError(
                "a random stream was carried into another process, where it would "
                "repeat its noise; make a new stream in the new process"
            )

    def __repr__(self) -> str:
        return "RandomStream(<secret>)"

    def __copy__(self) -> NoReturn:
        raise TypeError("a random stream cannot be copied: it would repeat its noise")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__copy__()


def box_muller(words: NDArray[np.uint64], normals: NDArray[np.float64]) -> None:
    """Two independent standard normals from every two words (Box and Muller, 1958).

    With U and V uniform from 53 bits each, R = sqrt(-2 ln U) and T = tan(pi V),
    the normals are R cos(2 pi V) = 2 R / (1 + T**2) - R and
    R sin(2 pi V) = 2 R T / (1 + T**2): one tangent is cheaper than a sine and a
    cosine, and equal to them within a few units in the last place of R.

    Args:
        words: An even number of random 64-bit words; overwritten.
        normals: Receives as many numbers.
    """
    half = len(words) // 2
    cosines, sines = normals[:half], normals[half:]
    words >>= np.uint64(64 - _UNIFORM_BITS)
    # k + 1 is exact in a double, so U lies in (0, 1] and its logarithm is finite.
    np.add(words[:half], 1.0, out=cosines)
    cosines *= 2.0**-_UNIFORM_BITS
    np.log(cosines, out=cosines)
    cosines *= -2.0
    radius = np.sqrt(cosines, out=cosines)
    # No double is a pole of the tangent: its largest value here is 1.6e16.
    np.multiply(words[half:], pi * 2.0**-_UNIFORM_BITS, out=sines)
    np.tan(sines, out=sines)
    scale = np.square(sines)
    scale += 1.0
    np.divide(radius, scale, out=scale)
    scale += scale
    sines *= scale
    np.subtract(scale, radius, out=cosines)


def system_stream() -> RandomStream:
    """A fresh stream keyed by the operating system's generator."""
    return RandomStream(os.urandom(_KEY_BYTES))


def simulation_stream(seed: int, *labels: str) -> RandomStream:
    """A repeatable stream for simulations and tests. NOT PRIVATE.

    Different label tuples give independent streams under one seed. Whoever
    knows the seed can subtract the noise, so the stream is marked
    ``simulated``.

    Args:
        seed: A non-negative integer.
        *labels: What the stream is for, for example site, round and purpose.

    Returns:
        The stream keyed by HKDF-SHA256(seed, length-prefixed labels).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"a simulation seed is an integer >= 0, not {seed!r}")
    encoded = [label.encode() for label in labels]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    kdf = HKDF(
        algorithm=SHA256(),
        length=_KEY_BYTES,
        salt=_SIMULATION_LABEL,
        info=len(encoded).to_bytes(4, "big") + info,
    )
    seed_bytes = seed.to_bytes((seed.bit_length() + 7) // 8 or 1, "big")
    return RandomStream(kdf.derive(seed_bytes), simulated=True)
