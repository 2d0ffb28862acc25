"""Updates into integers and back: the way into the masked sum.

A site's update (the change of the tensors it trained, relative to the adapter
it received) becomes one vector of integers modulo ``2**ring_bits``. With n the
number of sites, R ``value_range``, L ``levels`` and ``step = R / L``::

    encode:  clip to L2 norm (optional) -> clip each number to [-R, R]
             -> divide by step -> round at random, unbiased, to an integer in [-L, L]
    decode:  read the sum as a signed integer -> multiply by step -> float32

Headroom. ``L = floor((2**(ring_bits - 1) - 1) / n)``, so n integers of
magnitude at most L add up to a signed ring element without wrapping. Rounding
up adds at most one to a number that is not an integer already; because L is an
integer, the result still is at most L.

Range or norm? ``value_range`` decides what fits into the ring and is always
there. ``update_norm`` bounds how far one site can pull the mean. Under local
differential privacy the update is already noised, so both are post-processing
and cost utility only; the norm of p noised numbers is about ``std * sqrt(p)``,
far above that of the signal, so a norm bound is off unless it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secfed.errors import CodecError
from secfed.types import Tensors

__all__ = ["Codec", "EncodedUpdate", "RingArray", "UniformStream"]

RingArray = NDArray[np.unsignedinteger[Any]]
"""Elements of the ring: uint32 (32 bits) or uint16 (16 bits)."""

_RING_DTYPES: Mapping[int, type[np.unsignedinteger[Any]]] = {
    16: np.uint16,
    32: np.uint32,
}
# Outside these, float32 rounding of the result is no longer relative to the
# range (subnormal numbers, overflow) and ``error_bound`` would not hold.
_SMALLEST_RANGE, _LARGEST_RANGE = 1e-30, 1e30
_FLOAT32_ROUNDING = 2.0**-24
# Scaling and unscaling in float64: a few roundings of 2**-53 each.
_FLOAT64_ROUNDING = 2.0**-50


class UniformStream(Protocol):
    """A source of random numbers for rounding; fresh and unknown to others."""

    def uniform(self, count: int, /) -> NDArray[np.float64]:
        """``count`` independent numbers, uniform in [0, 1)."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedUpdate:
    """One site's update in the ring, not yet masked: it must not leave the site.

    Attributes:
        vector: The ring elements, in the codec's order.
        saturated: How many numbers were outside the range and were cut. It
            depends on the update, so it leaves the site only under the mask.
        norm_clipped: Whether the L2 norm was above ``update_norm``; likewise.
    """

    vector: RingArray = field(repr=False)
    saturated: int = field(repr=False)
    norm_clipped: bool = field(repr=False)


@dataclass(frozen=True)
class Codec:
    """Encodes updates so that the sum of ``num_sites`` of them cannot overflow.

    Guarantees:
        ``num_sites * levels <= 2**(ring_bits - 1) - 1``.
        Encoding is unbiased: the expected integer is ``value / step``.
        For ``m <= num_sites`` encodings, each number of ``decode_mean`` is within
        ``error_bound`` of the mean of the clipped updates, and each number of
        ``decode_sum`` within ``m * error_bound`` of their sum.

    Args:
        names_shapes: Names and shapes of the tensors sent, in wire order.
        value_range: Public bound R on the magnitude of one number.
        num_sites: The most updates that are ever summed.
        ring_bits: 32 or 16.
        update_norm: Public bound on the L2 norm of the whole update, or None.

    Raises:
        CodecError: A value is outside its domain, or the ring is too small for
            so many sites.

    Example:
        >>> codec = Codec((("head.bias", (2,)),), value_range=1.0, num_sites=3)
        >>> codec.length, codec.levels
        (2, 715827882)
    """

    names_shapes: tuple[tuple[str, tuple[int, ...]], ...]
    value_range: float
    num_sites: int
    ring_bits: int = 32
    update_norm: float | None = None

    def __post_init__(self) -> None:
        names = [name for name, _ in self.names_shapes]
        if len(set(names)) != len(names):
            raise CodecError(f"a tensor is named twice: {names}")
        if any(size < 1 for _, shape in self.names_shapes for size in shape):
            raise CodecError("an empty tensor cannot be sent; leave it out")
        if self.ring_bits not in _RING_DTYPES:
            raise CodecError(f"ring_bits is {self.ring_bits}; it must be 16 or 32")
        # Written so that NaN is refused too.
        if not _SMALLEST_RANGE <= self.value_range <= _LARGEST_RANGE:
            raise CodecError(
                f"value_range is {self.value_range}; it must be positive, between "
                f"{_SMALLEST_RANGE} and {_LARGEST_RANGE}"
            )
        if self.update_norm is not None and not 0 < self.update_norm < math.inf:
            raise CodecError(
                f"update_norm is {self.update_norm}; it must be positive and finite"
            )
        if self.num_sites < 1:
            raise CodecError(f"num_sites is {self.num_sites}; it must be at least 1")
        if self.levels < 1:
            raise CodecError(
                f"{self.num_sites} sites do not fit into a {self.ring_bits}-bit ring; "
                "use ring_bits = 32 or fewer sites"
            )

    @classmethod
    def for_tensors(
        cls,
        tensors: Tensors,
        *,
        value_range: float,
        num_sites: int,
        ring_bits: int = 32,
        update_norm: float | None = None,
    ) -> Codec:
        """The codec for updates with the names, shapes and order of ``tensors``."""
        return cls(
            names_shapes=tuple((name, value.shape) for name, value in tensors.items()),
            value_range=value_range,
            num_sites=num_sites,
            ring_bits=ring_bits,
            update_norm=update_norm,
        )

    @property
    def length(self) -> int:
        """How many ring elements one update takes."""
        return sum(math.prod(shape) for _, shape in self.names_shapes)

    @property
    def levels(self) -> int:
        """The largest magnitude L of one encoded number."""
        return ((1 << (self.ring_bits - 1)) - 1) // self.num_sites

    @property
    def step(self) -> float:
        """What one unit of the ring is worth."""
        return self.value_range / self.levels

    @property
    def error_bound(self) -> float:
        """How far a number of the decoded mean is from the clipped updates' mean.

        Each encoding is off by at most one ``step`` (stochastic rounding), so
        their mean is too; the mean's magnitude is at most ``value_range`` plus
        a step, and rounding it to float32 is off by that times ``2**-24``.
        """
        rounding = _FLOAT32_ROUNDING + _FLOAT64_ROUNDING
        return self.step + (self.value_range + self.step) * rounding

    def encode(self, update: Tensors, stream: UniformStream) -> EncodedUpdate:
        """Turn one site's update into ring elements.

        Args:
            update: Exactly the codec's tensors (any order), float32 and finite.
            stream: Draws one uniform number per element; the same draw must
                never serve two updates.

        Raises:
            CodecError: A name, shape or type differs, or a number is NaN or
                infinite. The message names the tensor and no private number.
        """
        # 1. Check and flatten in wire order.
        values = self._flatten(update)
        # 2. Clip: first the whole update, then each number.
        norm_clipped = False
        if self.update_norm is not None:
            norm = float(np.sqrt(np.dot(values, values)))
            norm_clipped = norm > self.update_norm
            if norm_clipped:
                values *= self.update_norm / norm
        saturated = int(np.count_nonzero(np.abs(values) > self.value_range))
        scaled = np.clip(
            values * (self.levels / self.value_range), -self.levels, self.levels
        )
        # 3. Round up with probability equal to the fraction: unbiased. Comparing
        # is exact where floor(scaled + u) could be carried over by a rounding.
        lower = np.floor(scaled)
        draws = stream.uniform(self.length)
        if draws.shape != lower.shape:
            raise CodecError(f"the stream drew {draws.shape}, not ({self.length},)")
        integers = lower.astype(np.int64) + (draws < scaled - lower)
        # 4. Two's complement: a cast to an unsigned type reduces modulo the ring.
        vector = integers.astype(_RING_DTYPES[self.ring_bits])
        return EncodedUpdate(vector, saturated, norm_clipped)

    def decode_sum(
        self, total: RingArray, num_survivors: int
    ) -> dict[str, NDArray[np.float32]]:
        """The sum of the clipped updates behind a sum of encodings.

        Args:
            total: The sum modulo the ring.
            num_survivors: How many encodings are in it.

        Raises:
            CodecError: Wrong type or length, a number of survivors that the
                headroom was not proved for, or an element that no
                ``num_survivors`` encodings add up to (a faulty site or a mask
                that did not cancel): the round must be aborted.
        """
        return self._unflatten(self._signed(total, num_survivors) * self.step)

    def decode_mean(
        self, total: RingArray, num_survivors: int
    ) -> dict[str, NDArray[np.float32]]:
        """The mean of the clipped updates behind a sum of encodings.

        Args and Raises: see ``decode_sum``.
        """
        signed = self._signed(total, num_survivors)
        return self._unflatten(signed * self.step / num_survivors)

    def _flatten(self, update: Tensors) -> NDArray[np.float64]:
        expected = {name for name, _ in self.names_shapes}
        if update.keys() != expected:
            missing, extra = expected - update.keys(), update.keys() - expected
            raise CodecError(
                f"the update has other tensors than the study sends: missing "
                f"{sorted(missing)}, unexpected {sorted(extra)}"
            )
        values = np.empty(self.length, dtype=np.float64)
        start = 0
        for name, shape in self.names_shapes:
            tensor = update[name]
            if tensor.dtype != np.float32 or tensor.shape != shape:
                raise CodecError(
                    f"{name}: {tensor.dtype} of shape {tensor.shape}; "
                    f"expected float32 of shape {shape}"
                )
            if not np.isfinite(tensor).all():
                raise CodecError(
                    f"{name}: NaN or infinity in the update; nothing was sent. "
                    "Lower the learning rate, or check the training precision"
                )
            values[start : start + tensor.size] = tensor.ravel()
            start += tensor.size
        return values

    def _signed(self, total: RingArray, num_survivors: int) -> NDArray[np.float64]:
        if not 1 <= num_survivors <= self.num_sites:
            raise CodecError(
                f"{num_survivors} survivors; headroom is proved for "
                f"1 to {self.num_sites}"
            )
        if total.dtype != _RING_DTYPES[self.ring_bits] or total.shape != (self.length,):
            raise CodecError(
                f"the sum is {total.dtype} of shape {total.shape}; expected "
                f"{self.ring_bits}-bit unsigned of shape ({self.length},)"
            )
        signed = total.astype(np.int64)
        signed[signed >= 2 ** (self.ring_bits - 1)] -= 2**self.ring_bits
        if self.length and int(np.abs(signed).max()) > num_survivors * self.levels:
            raise CodecError(
                f"the sum holds a number that {num_survivors} encodings cannot add up "
                "to; a site or a mask is wrong, and the round must be aborted"
            )
        return signed.astype(np.float64)

    def _unflatten(self, values: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
        tensors: dict[str, NDArray[np.float32]] = {}
        start = 0
        for name, shape in self.names_shapes:
            size = math.prod(shape)
            tensors[name] = (
                values[start : start + size].astype(np.float32).reshape(shape)
            )
            start += size
        return tensors
