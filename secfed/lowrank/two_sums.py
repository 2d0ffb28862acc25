"""The leading part of a sum of products from two masked sums, one after the other.

Sketches of one round must be as wide as the sum of ranks. Two sums need only some
more columns than the rank that is wanted (Halko, Martinsson and Tropp, SIAM Review
53(2), 2011, algorithms 4.1 and 5.1; for LoRA: FedASK, arXiv 2507.09990)::

    first sum    Y = W Omega          (d, p)    a site sends B (A Omega)
    everybody    Q = a basis of Y     (d, p)    ``column_basis``
    second sum   X = Q' W             (p, k)    a site sends (Q' B) A: ``project``
    server       W ~ Q X, cut         rank      ``from_projection``

Sites must use the same factors in both sums, so nothing new is spent: both are
post-processing. What is not exact is bounded: for every r < p - 1 the expected squared
error of ``Q X``, before it is cut, is at most ``1 + r / (p - r - 1)`` times the
smallest possible at rank r (theorem 10.5, for Gaussian Omega).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfed.errors import MatrixError
from secfed.lowrank.matrices import Factors, Matrix, Split, checked, checked_pair
from secfed.lowrank.products import truncated

__all__ = ["column_basis", "from_projection", "project"]


def column_basis(y: NDArray[Any]) -> Matrix:
    """An orthonormal basis of the columns of the first sum, shape (d, p).

    Args:
        y: The sum of ``B (A Omega)``, shape (d, p) with p <= d.

    Raises:
        MatrixError: NaN or infinity, or more columns than rows.
    """
    total = checked("Y", y)
    if total.shape[1] > total.shape[0]:
        raise MatrixError(f"Y of shape {total.shape} has more columns than rows")
    basis, _ = np.linalg.qr(total)
    return basis


def project(basis: NDArray[Any], b: NDArray[Any], a: NDArray[Any]) -> Matrix:
    """What a site sends for the second sum: ``(Q' B) A``, shape (p, k).

    Args:
        basis: Q, the same at all sites, shape (d, p).
        b: Shape (d, r).
        a: Shape (r, k).

    Raises:
        MatrixError: NaN or infinity, or shapes without a product.
    """
    left, right = checked_pair(b, a)
    turned, left = checked_pair(np.transpose(basis), left, ("the basis", "B"))
    return (turned @ left) @ right


def from_projection(
    basis: NDArray[Any],
    total: NDArray[Any],
    rank: int,
    *,
    split: Split = "balanced",
) -> Factors:
    """Factors of the sum behind the second sum, cut to a rank.

    Args:
        basis: Q, shape (d, p).
        total: The sum (or mean) of what ``project`` returned, shape (p, k).
        rank: Of the result, from 1 to min(d, k).
        split: Where the singular values go.

    Raises:
        MatrixError: NaN or infinity, shapes without a product, or no such rank.
    """
    left, right = checked_pair(basis, total, ("the basis", "the sum"))
    return truncated(left, right, rank, split=split)
