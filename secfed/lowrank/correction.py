"""LoRA-FAIR's correction of B, in closed form.

Averaging factors gives ``B A`` where ``P = mean(B_i A_i)`` was wanted. LoRA-FAIR (Bian
et al., ICCV 2025, arXiv 2411.14961) keeps A and adds a correction to B. The paper
minimises a cosine distance with a penalty on the correction, by gradient descent; here
the distance is the squared Frobenius norm, which makes it ridge regression ::

    argmin over dB of  |P - (B + dB) A|**2 + lambda |dB|**2
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfed.errors import MatrixError
from secfed.lowrank.matrices import Factors, Matrix, checked, checked_pair

__all__ = ["ridge_correction"]


def ridge_correction(
    product: Factors | NDArray[Any],
    b_mean: NDArray[Any],
    a_mean: NDArray[Any],
    penalty: float,
) -> Matrix:
    """The correction dB of the mean B, shape (d, r).

    With ``A = U S V'`` the minimum is at ::

        dB = (P V - B U S) diag(s / (s**2 + lambda)) U'

    which is ``(P - B A) A' (A A' + lambda I)**-1`` without squaring A's condition.

    Guarantees: the objective's gradient vanishes up to rounding. Without penalty it
    is the smallest of all minima, also where A has dependent rows.

    Args:
        product: P, as factors of shapes (d, s) and (s, k) or dense of shape (d, k).
        b_mean: B, shape (d, r).
        a_mean: A, shape (r, k).
        penalty: lambda, finite and not negative.

    Raises:
        MatrixError: NaN or infinity, shapes that do not fit, or no such penalty.
    """
    left, right = checked_pair(b_mean, a_mean, ("B_mean", "A_mean"))
    if not (math.isfinite(penalty) and penalty >= 0):
        raise MatrixError(f"the penalty is {penalty}; choose a number from 0 on")
    u, s, vt = np.linalg.svd(right, full_matrices=False)
    seen = _times(product, vt.T, (len(left), right.shape[1]))
    correction: Matrix = ((seen - left @ (u * s)) * _filter(s, penalty)) @ u.T
    return correction


def _filter(s: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """``s / (s**2 + penalty)``; 0 for singular values that are rounding."""
    kept = s > s[0] * len(s) * np.finfo(np.float64).eps
    return np.divide(s, s**2 + penalty, out=np.zeros_like(s), where=kept)


def _times(
    product: Factors | NDArray[Any], v: Matrix, shape: tuple[int, int]
) -> Matrix:
    """``P @ v``."""
    if isinstance(product, Factors):
        left, right = checked_pair(product.b, product.a, ("P's left", "P's right"))
        _require((len(left), right.shape[1]), shape)
        return left @ (right @ v)
    dense = checked("P", product)
    _require(dense.shape, shape)
    return dense @ v


def _require(found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise MatrixError(f"the product has shape {found}; the means have {wanted}")
