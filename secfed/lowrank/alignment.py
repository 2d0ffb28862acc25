"""Turn a site's factors towards the global ones, without changing their product.

``B @ A`` is ``(B Q) @ (Q' A)`` for every orthogonal Q, so sites may hold nearly the
same product in factors that cancel when they are averaged. FedRot-LoRA (Zhang, Kim,
Cha and Vikalo, ICML 2026, arXiv 2602.23638) lets each site turn its factors before it
sends them: towards the last global A in odd rounds, towards the last global B in even
ones. The global factors are public and the factors noised, so turning them is
post-processing.

The problem is orthogonal Procrustes (Schoenemann, Psychometrika 31, 1966): with
``M = U S V'`` the maximum of ``tr(Q' M)`` is at ``Q = U V'``, and ::

    factor="A"       min |Q' A - A_ref|            M = A A_ref'
    factor="B"       min |B Q - B_ref|             M = B' B_ref
    factor="both"    min of the sum of both squares, M = the sum of both (ours)
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secfed.errors import MatrixError
from secfed.lowrank.matrices import Factors, Matrix, checked_pair

__all__ = ["Factor", "align", "rotation"]

Factor = Literal["A", "B", "both"]


def align(
    b: NDArray[Any],
    a: NDArray[Any],
    b_ref: NDArray[Any],
    a_ref: NDArray[Any],
    *,
    factor: Factor = "A",
    strength: float = 1.0,
) -> Factors:
    """The same product, with its factors turned towards reference factors.

    Guarantees: the product is unchanged up to rounding, and with ``strength=1`` no
    orthogonal Q brings the chosen factor closer to the reference.

    Args and Raises: see ``rotation``.
    """
    turn = rotation(b, a, b_ref, a_ref, factor=factor, strength=strength)
    left, right = checked_pair(b, a)
    return Factors(left @ turn, turn.T @ right)


def rotation(
    b: NDArray[Any],
    a: NDArray[Any],
    b_ref: NDArray[Any],
    a_ref: NDArray[Any],
    *,
    factor: Factor = "A",
    strength: float = 1.0,
) -> Matrix:
    """The orthogonal Q of ``align``, shape (r, r).

    Guarantees: orthogonal up to rounding. Where the reference says nothing (a zero
    B_ref before round 1, a missing direction), Q turns as little as it can: then it
    is the identity.

    Args:
        b: Shape (d, r).
        a: Shape (r, k).
        b_ref: The last global B, shape (d, r).
        a_ref: The last global A, shape (r, k).
        factor: Which factor is brought to its reference.
        strength: From 0 (no turn) to 1. Below 1, the orthogonal matrix nearest to
            ``(1 - strength) I + strength Q`` is taken, with Q the best matrix of
            determinant 1: on the way to a reflection lies a singular matrix. The
            soft rotation of FedRot-LoRA's published code does the same.

    Raises:
        MatrixError: NaN or infinity, shapes that differ from the reference's, or a
            strength outside 0 to 1.
    """
    left, right = checked_pair(b, a)
    left_ref, right_ref = checked_pair(b_ref, a_ref, ("B_ref", "A_ref"))
    if left.shape != left_ref.shape or right.shape != right_ref.shape:
        raise MatrixError(
            f"factors of shapes {left.shape} and {right.shape} cannot be turned to "
            f"references of shapes {left_ref.shape} and {right_ref.shape}"
        )
    if not 0.0 <= strength <= 1.0:
        raise MatrixError(f"the strength of an alignment is {strength}; choose 0 to 1")
    correlation = np.zeros((len(right), len(right)))
    if factor != "B":
        correlation += right @ right_ref.T
    if factor != "A":
        correlation += left.T @ left_ref
    best = _nearest_orthogonal(correlation, proper=strength < 1.0)
    if strength == 1.0:
        return best
    return _nearest_orthogonal((1.0 - strength) * np.eye(len(best)) + strength * best)


def _nearest_orthogonal(matrix: Matrix, *, proper: bool = False) -> Matrix:
    """The orthogonal Q with the largest ``tr(Q' M)``; of several, nearest to I."""
    u, s, vt = np.linalg.svd(matrix)
    known = int(np.count_nonzero(s > s[0] * len(s) * np.finfo(np.float64).eps))
    if known < len(s):  # any basis of the rest is as good: the one nearest to V's
        p, _, qt = np.linalg.svd(u[:, known:].T @ vt[known:].T)
        u[:, known:] = u[:, known:] @ (p @ qt)
    if proper and np.linalg.det(u @ vt) < 0:
        u[:, -1] *= -1.0  # costs least: the smallest singular value (Kabsch, 1976)
    turn: Matrix = u @ vt
    return turn
