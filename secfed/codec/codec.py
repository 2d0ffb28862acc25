"""Updates into ring elements and back: the way into the masked sum.

A site's update (the change of the tensors it trained, relative to the adapter
it received) becomes one vector of ring words. With n the number of sites, R
``value_range``, L ``levels`` and ``step = R / L``::

    encode:  clip to L2 norm (optional) -> divide each tensor by its scale
             -> rotate (optional) -> clip each number to [-R, R]
             -> round at random, unbiased, to a multiple of step -> ring words
    decode:  read the sum as signed integers -> multiply by step
             -> rotate back -> multiply by the scales -> float32

Headroom. L is the largest integer of which n cannot overflow a ring element
(``packing.levels_of``). A number inside the range is rounded to an integer in
[-L, L], because L is an integer.

Error without rotation. A rounded number is off by less than one step, and so is
the mean of several. The mean is at most R + step, and float32 rounds it by 2**-24
of that::

    |decoded - mean of the clipped updates| <= step + (R + step) * (2**-24 + 2**-50)

Error with rotation, if nothing was cut. The same holds for every rotated number.
Rotating back keeps lengths, so for d numbers the L2 norm of the error is at most
``sqrt(d)`` times that, with 2**-40 for double precision in place of 2**-50. This
is the bound for a single number too, but a weak one: its error is a sum of
independent errors, each in an interval of one step and with squared weights that
add up to one, so it is above ``step * sqrt(ln(2 / p) / 2)`` with probability at
most p (Hoeffding); that is 4 steps for p = 2**-40.

Scales. A tensor trained with a larger step size has larger numbers and larger
noise. Its scale makes the tensors alike, so that one range fits all. All bounds
above are in units of the scale.

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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocols.prg import KEY_BYTES
from secfed.codec import packing
from secfed.codec.lane import Lane, Metric
from secfed.codec.layout import Layout
from secfed.codec.packing import RingArray
from secfed.codec.rotation import rotate, unrotate
from secfed.codec.rounding import ByteStream, dither_stream, round_into
from secfed.errors import CodecError
from secfed.types import Tensors

__all__ = ["WIDE_RING_BITS", "Codec", "EncodedUpdate"]

WIDE_RING_BITS: Final = 32
"""The ring where no noise hides the rounding."""

# Outside these, float32 rounding of the result is no longer relative to the
# range (subnormal numbers, overflow) and ``error_bound`` would not hold.
_SMALLEST_RANGE, _LARGEST_RANGE = 1e-30, 1e30
_FLOAT32_ROUNDING = 2.0**-24
# Scaling and unscaling in float64: a few roundings of 2**-53 each.
_FLOAT64_ROUNDING = 2.0**-50
# The same with two blocks rotated there and back: for fewer than 2**32 numbers at
# most 32 products with a 16 x 16 matrix, each off by at most 16 * 4 * 2**-53 of the
# vector's length.
_ROTATION_ROUNDING = 2.0**-40


@dataclass(frozen=True, eq=False)
class EncodedUpdate:
    """One site's update in the ring, not yet masked: it must not leave the site.

    Attributes:
        vector: The ring words, shape (codec.length,).
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
        ``num_sites`` integers of magnitude ``levels`` fit into a ring element.
        Encoding is unbiased: the expected integer is ``value / step`` (up to the
        bound in ``secfed.codec.rounding``).
        For ``m <= num_sites`` encodings, each number of ``decode_mean`` is within
        ``error_bound`` times its tensor's scale of the mean of the clipped
        updates, and each number of ``decode_sum`` within ``m`` times that of
        their sum; with a rotation, if no encoding was cut.

    Args:
        names_shapes: Names and shapes of the tensors sent, in wire order.
        value_range: Public bound R on the magnitude of one scaled number.
        num_sites: The most updates that are ever summed.
        ring_bits: 16, 32, or 64 (three numbers of 21 bits in one word).
        update_norm: Public bound on the L2 norm of the whole update, or None.
        scales: What each tensor is divided by, in wire order; empty: 1.
        rotation_seed: 32 public bytes fresh for the round, or None: no rotation.
        metrics: Numbers that travel in the lane; empty where an update is sent, see
            ``secfed.codec.lane``.

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
    ring_bits: int = WIDE_RING_BITS
    update_norm: float | None = None
    scales: tuple[float, ...] = ()
    rotation_seed: bytes | None = None
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        _ = self.layout  # refuses names, shapes and scales that do not fit
        self._check_numbers()
        if self.num_sites < 1:
            raise CodecError(f"num_sites is {self.num_sites}; it must be at least 1")
        if self.levels < 1:
            raise CodecError(
                f"{self.num_sites} sites do not fit into a {self.ring_bits}-bit ring; "
                "use ring_bits = 32 or fewer sites"
            )

    def _check_numbers(self) -> None:
        if self.ring_bits not in packing.RING_DTYPES:
            raise CodecError(f"ring_bits is {self.ring_bits}; it must be 16, 32 or 64")
        # Written so that NaN is refused too.
        for scale in self.scales or (1.0,):
            for name, value in (
                ("value_range", self.value_range),
                ("a tensor's scale", scale),
                ("a tensor's range", self.value_range * scale),
            ):
                if not _SMALLEST_RANGE <= value <= _LARGEST_RANGE:
                    raise CodecError(
                        f"{name} is {value}; it must be positive, between "
                        f"{_SMALLEST_RANGE} and {_LARGEST_RANGE}"
                    )
        norm = self.update_norm
        if norm is not None and not _SMALLEST_RANGE <= norm < math.inf:
            raise CodecError(
                f"update_norm is {norm}; it must be finite and at least "
                f"{_SMALLEST_RANGE}"
            )
        if self.rotation_seed is not None and len(self.rotation_seed) != KEY_BYTES:
            raise CodecError(f"a rotation seed has {KEY_BYTES} bytes")

    @classmethod
    def for_tensors(
        cls,
        tensors: Tensors,
        *,
        value_range: float,
        num_sites: int,
        ring_bits: int = WIDE_RING_BITS,
        update_norm: float | None = None,
        scales: Mapping[str, float] | None = None,
        rotation_seed: bytes | None = None,
    ) -> Codec:
        """The codec for updates with the names, shapes and order of ``tensors``."""
        return cls(
            names_shapes=tuple((name, value.shape) for name, value in tensors.items()),
            value_range=value_range,
            num_sites=num_sites,
            ring_bits=ring_bits,
            update_norm=update_norm,
            scales=() if scales is None else tuple(scales[name] for name in tensors),
            rotation_seed=rotation_seed,
        )

    @property
    def layout(self) -> Layout:
        """The tensors and their places in the vector."""
        return Layout(self.names_shapes, self.scales)

    @property
    def num_values(self) -> int:
        """How many numbers one update has."""
        return self.layout.num_values

    @property
    def length(self) -> int:
        """How many ring words one update takes."""
        return packing.words_of(self.ring_bits, self.num_values)

    @property
    def levels(self) -> int:
        """The largest magnitude L of one encoded number."""
        return packing.levels_of(self.ring_bits, self.num_sites)

    @property
    def lane(self) -> Lane:
        """What travels beside an update: the count, what was cut, and metrics."""
        return Lane(self.num_sites, self.num_values, self.metrics)

    @property
    def step(self) -> float:
        """What one integer is worth, in units of the scale."""
        return self.value_range / self.levels

    @property
    def error_bound(self) -> float:
        """How far a number of the decoded mean can be off, in units of the scale."""
        if self.rotation_seed is None:
            rounding = _FLOAT32_ROUNDING + _FLOAT64_ROUNDING
            return self.step + (self.value_range + self.step) * rounding
        return self.l2_error_bound

    @property
    def l2_error_bound(self) -> float:
        """The L2 norm by which the decoded mean can be off, in units of the scale."""
        rounding = _FLOAT32_ROUNDING + _ROTATION_ROUNDING
        each = self.step + (self.value_range + self.step) * rounding
        return math.sqrt(self.num_values) * each

    def encode(self, update: Tensors, stream: ByteStream) -> EncodedUpdate:
        """Turn one site's update into ring words.

        Args:
            update: Exactly the codec's tensors (any order), float32 and finite.
            stream: The site's cryptographic randomness; one key is drawn from it,
                for the rounding of this update and nothing else.

        Raises:
            CodecError: A name, shape or type differs, or a number is NaN or
                infinite. The message names the tensor and no private number.
        """
        # 1. Check; nothing is drawn for an update that is refused.
        self.layout.check(update)
        gain = self._gain(update)
        # 2. Scale, clip and round, tensor by tensor or rotated all at once.
        if self.rotation_seed is None:
            integers, saturated = self._round(update, gain, stream)
        else:
            integers, saturated = self._round_rotated(update, gain, stream)
        # 3. Into ring words.
        vector = packing.to_words(integers, self.ring_bits, self.levels)
        return EncodedUpdate(vector, saturated, norm_clipped=gain < 1.0)

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
        return self._unflatten(self._integers(total, num_survivors), self.step)

    def decode_mean(
        self, total: RingArray, num_survivors: int
    ) -> dict[str, NDArray[np.float32]]:
        """The mean of the clipped updates behind a sum of encodings.

        Args and Raises: see ``decode_sum``.
        """
        integers = self._integers(total, num_survivors)
        return self._unflatten(integers, self.step / num_survivors)

    # ---------------------------------------------------------------- inside

    def _gain(self, update: Tensors) -> float:
        """What the whole update is multiplied by to have norm ``update_norm``."""
        if self.update_norm is None:
            return 1.0
        flat = [
            update[name].ravel().astype(np.float64) for name, _ in self.names_shapes
        ]
        norm = math.sqrt(sum(float(np.dot(values, values)) for values in flat))
        return self.update_norm / norm if norm > self.update_norm else 1.0

    def _round(
        self, update: Tensors, gain: float, stream: ByteStream
    ) -> tuple[NDArray[np.signedinteger[Any]], int]:
        integers = self._no_integers()
        dither = dither_stream(stream)
        saturated = 0
        for place in self.layout.places():
            values, out = update[place.name].ravel(), integers[place.numbers]
            # Here the range is in the tensor's own numbers.
            value_range = self.value_range * place.scale / gain
            saturated += round_into(values, self.levels, value_range, dither, out)
        return integers, saturated

    def _round_rotated(
        self, update: Tensors, gain: float, stream: ByteStream
    ) -> tuple[NDArray[np.signedinteger[Any]], int]:
        integers = self._no_integers()
        values = np.empty(self.num_values, dtype=np.float64)
        for place in self.layout.places():
            np.multiply(
                update[place.name].ravel(),
                gain / place.scale,
                out=values[place.numbers],
                dtype=np.float64,
            )
        turned = rotate(values, self.rotation_seed or b"")
        dither = dither_stream(stream)
        saturated = round_into(turned, self.levels, self.value_range, dither, integers)
        return integers, saturated

    def _no_integers(self) -> NDArray[np.signedinteger[Any]]:
        return np.empty(self.num_values, dtype=packing.INTEGER_DTYPES[self.ring_bits])

    def _integers(
        self, total: RingArray, num_survivors: int
    ) -> NDArray[np.signedinteger[Any]]:
        if not 1 <= num_survivors <= self.num_sites:
            raise CodecError(
                f"{num_survivors} survivors; headroom is proved for "
                f"1 to {self.num_sites}"
            )
        dtype = packing.RING_DTYPES[self.ring_bits]
        if total.dtype != dtype or total.shape != (self.length,):
            raise CodecError(
                f"the sum is {total.dtype} of shape {total.shape}; expected "
                f"{self.ring_bits}-bit unsigned of shape ({self.length},)"
            )
        return packing.from_words(
            total, self.ring_bits, self.levels, num_survivors, self.num_values
        )

    def _unflatten(
        self, integers: NDArray[np.signedinteger[Any]], unit: float
    ) -> dict[str, NDArray[np.float32]]:
        values: NDArray[Any] = integers
        if self.rotation_seed is not None:
            values = unrotate(integers.astype(np.float64), self.rotation_seed)
        tensors = {}
        for place in self.layout.places():
            tensors[place.name] = np.empty(place.shape, dtype=np.float32)
            np.multiply(
                values[place.numbers],
                unit * place.scale,
                out=tensors[place.name].reshape(-1),
                dtype=np.float64,
                casting="same_kind",
            )
        return tensors
