"""Public random factors that anybody can recompute."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["public_uniform"]


def public_uniform(label: str, shape: tuple[int, ...], fan: int) -> NDArray[np.float32]:
    """Independent numbers, uniform between ``-1/sqrt(fan)`` and ``1/sqrt(fan)``.

    With fan the number of inputs this is PEFT's law of A. The numbers are SHAKE-256
    of the label and not a library's generator: anyone can recompute a public value,
    whatever version of numpy they have.

    Args:
        label: Names the value; each label once.
        shape: Of the result.
        fan: At least 1.
    """
    raw = hashlib.shake_256(label.encode()).digest(8 * math.prod(shape))
    unit = (np.frombuffer(raw, dtype="<u8") >> np.uint64(11)) * 2.0**-53
    values: NDArray[np.float64] = (2.0 * unit - 1.0) / np.sqrt(fan)
    return values.astype(np.float32).reshape(shape)
