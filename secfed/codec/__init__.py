"""Updates into ring elements and back, and the lane that travels beside them."""

from secfed.codec.codec import WIDE_RING_BITS, Codec, EncodedUpdate
from secfed.codec.lane import Lane, LaneSum, Metric
from secfed.codec.packing import RingArray
from secfed.codec.rounding import ByteStream

__all__ = [
    "WIDE_RING_BITS",
    "ByteStream",
    "Codec",
    "EncodedUpdate",
    "Lane",
    "LaneSum",
    "Metric",
    "RingArray",
]
