"""How far training left the subspace in which an adapter started."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["subspace_motion"]


def subspace_motion(start: NDArray[np.float32], now: NDArray[np.float32]) -> float:
    """``|P - P0|`` (Frobenius) of the projectors onto the rows of two factors A.

    0 where the rows span the same space, whatever their lengths are (ffa-lora and,
    under SGD, fedsvd), ``sqrt(2 r)`` where the two spaces are orthogonal. With
    orthonormal bases Q, Q0 of r and r0 rows ::

        |P - P0|**2 = r + r0 - 2 * |Q @ Q0'|**2

    which is computed as ``|Q - (Q @ Q0') @ Q0|**2`` twice (once for each), so that
    equal spaces give zero and not a rounded difference of large numbers.

    Args:
        start: A at the start, shape (r0, k), of full rank.
        now: A now, shape (r, k), of full rank.

    Raises:
        ValueError: The two act on different inputs, or one has not full rank.
    """
    if start.ndim != now.ndim or start.shape[-1] != now.shape[-1]:
        raise ValueError(f"{start.shape} and {now.shape} do not act on the same inputs")
    old, new = _basis(start), _basis(now)
    outside = np.sum((new - (new @ old.T) @ old) ** 2)
    left = np.sum((old - (old @ new.T) @ new) ** 2)
    return math.sqrt(float(outside + left))


def _basis(factor: NDArray[np.float32]) -> NDArray[np.float64]:
    """Orthonormal rows that span the rows of the factor."""
    _, values, rows = np.linalg.svd(factor.astype(np.float64), full_matrices=False)
    tolerance = values.max(initial=0.0) * max(factor.shape) * np.finfo(np.float32).eps
    if len(values) < len(factor) or not values.min(initial=np.inf) > tolerance:
        raise ValueError("a factor whose rows are dependent spans no r dimensions")
    basis: NDArray[np.float64] = rows
    return basis
