"""Singular values of a product, its norm, and the best product of lower rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfed.lowrank.matrices import (
    Factors,
    Matrix,
    Split,
    checked,
    checked_pair,
    checked_rank,
)

__all__ = ["ProductSVD", "product_norm", "product_svd", "truncated", "truncated_dense"]


@dataclass(frozen=True, eq=False)
class ProductSVD:
    """The thin singular value decomposition ``u @ diag(s) @ vt``.

    With m = min(d, r, k):

    Attributes:
        u: Shape (d, m), orthonormal columns.
        s: Shape (m,), not negative, falling.
        vt: Shape (m, k), orthonormal rows; the largest number of each is positive.
    """

    u: Matrix = field(repr=False)
    s: NDArray[np.float64]
    vt: Matrix = field(repr=False)


def product_svd(b: NDArray[Any], a: NDArray[Any]) -> ProductSVD:
    """The singular value decomposition of ``B @ A``, which is never formed.

    ``B = Q R`` and ``A' = P S`` by QR; the SVD of the small ``R S'``, between Q and
    P', is that of the product. Time grows as (d + k) r**2.

    Guarantees: each singular value is within a few roundings of ``|B| * |A|``;
    bases are complete and orthonormal also where the product has a lower rank. The
    rows of vt are then still in the row space of A, if A has full rank.

    Args:
        b: Shape (d, r).
        a: Shape (r, k).

    Raises:
        MatrixError: NaN or infinity, or shapes without a product.
    """
    left, right = checked_pair(b, a)
    q, r = np.linalg.qr(left)
    p, s = np.linalg.qr(right.T)
    u, values, vt = np.linalg.svd(r @ s.T, full_matrices=False)
    return _with_signs(q @ u, values, vt @ p.T)


def _with_signs(u: Matrix, s: NDArray[np.float64], vt: Matrix) -> ProductSVD:
    """One choice among the signs that a decomposition leaves open."""
    largest = np.abs(vt).argmax(axis=1)
    signs = np.where(vt[np.arange(len(vt)), largest] < 0, -1.0, 1.0)
    return ProductSVD(u * signs, s, vt * signs[:, np.newaxis])


def product_norm(b: NDArray[Any], a: NDArray[Any]) -> float:
    """The Frobenius norm of ``B @ A``, which is never formed.

    It equals ``sqrt(tr((B'B)(AA')))``, the weight of a site in HetLoRA (Cho et al.,
    EMNLP 2024). The trace cancels to about ``1e-8 * |B| * |A|`` and may
    turn out negative; with ``B = Q R`` the norm is that of ``R A``, a sum of squares.

    Guarantees: not negative, and within a few roundings of ``|B| * |A|``.

    Args:
        b: Shape (d, r).
        a: Shape (r, k).

    Raises:
        MatrixError: NaN or infinity, or shapes without a product.
    """
    left, right = checked_pair(b, a)
    return float(np.linalg.norm(np.linalg.qr(left, mode="r") @ right))


def truncated(
    b: NDArray[Any], a: NDArray[Any], rank: int, *, split: Split = "balanced"
) -> Factors:
    """The best approximation of ``B @ A`` of a rank, as factors of that rank.

    Best in the Frobenius and in the spectral norm (Eckart and Young, 1936).

    Guarantees: factors of shapes (d, rank) and (rank, k). With ``split="left"``
    the first min(rank, r) rows of the new A are orthonormal. A rank above r adds
    rows and columns of zeros.

    Args:
        b: Shape (d, r).
        a: Shape (r, k).
        rank: From 1 to min(d, k).
        split: Where the singular values go.

    Raises:
        MatrixError: NaN or infinity, shapes without a product, or no such rank.
    """
    left, right = checked_pair(b, a)
    checked_rank(rank, len(left), right.shape[1])
    return _cut(product_svd(left, right), rank, split)


def _cut(found: ProductSVD, rank: int, split: Split) -> Factors:
    """Leading singular values and vectors as factors; zeros where there are none."""
    u, s, vt = found.u[:, :rank], found.s[:rank], found.vt[:rank]
    scaled = s if split == "left" else np.sqrt(s)
    b, a = u * scaled, vt if split == "left" else scaled[:, np.newaxis] * vt
    missing = rank - len(s)
    return Factors(np.pad(b, ((0, 0), (0, missing))), np.pad(a, ((0, missing), (0, 0))))


def truncated_dense(
    w: NDArray[Any], rank: int, *, split: Split = "balanced"
) -> Factors:
    """The best approximation of a dense matrix of a rank, as factors.

    The whole singular value decomposition, by LAPACK: time grows as
    d * k * min(d, k), a third of a second for d = k = 1024 on one core. Iterations
    for the leading part alone are faster, but may not converge on flat spectra, and
    those are what noise has.

    Shapes and split as in ``truncated``.

    Args:
        w: Shape (d, k).
        rank: From 1 to min(d, k).
        split: Where the singular values go.

    Raises:
        MatrixError: NaN or infinity, or no such rank.
    """
    matrix = checked("W", w)
    checked_rank(rank, *matrix.shape)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return _cut(_with_signs(u, s, vt), rank, split)
