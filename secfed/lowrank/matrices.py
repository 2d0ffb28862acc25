"""What goes in and comes out: finite matrices, and products of two thin ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secfed.errors import MatrixError

__all__ = ["Factors", "Matrix", "Split", "checked", "checked_pair", "checked_rank"]

Matrix = NDArray[np.float64]

Split = Literal["balanced", "left"]
"""Where the singular values go: their roots to both factors, or all to B."""


@dataclass(frozen=True, eq=False)
class Factors:
    """The product ``b @ a`` of shape (d, k).

    Attributes:
        b: Shape (d, r).
        a: Shape (r, k).
    """

    b: Matrix = field(repr=False)
    a: Matrix = field(repr=False)

    def dense(self) -> Matrix:
        """The product itself, d * k numbers."""
        return self.b @ self.a


def checked(name: str, value: NDArray[Any]) -> Matrix:
    """The matrix in float64.

    Raises:
        MatrixError: It has not two dimensions, no numbers, or NaN or infinity in it.
            The message holds no number of it.
    """
    if value.ndim != 2 or value.size == 0:  # noqa: PLR2004
        raise MatrixError(
            f"{name} has shape {value.shape}; expected a matrix with rows and columns"
        )
    if not np.isfinite(value).all():
        raise MatrixError(
            f"{name} has NaN or infinity in it; nothing was computed. Look for a "
            "diverged training or a mask that did not cancel"
        )
    return value.astype(np.float64, copy=False)


def checked_pair(
    b: NDArray[Any], a: NDArray[Any], names: tuple[str, str] = ("B", "A")
) -> tuple[Matrix, Matrix]:
    """Two matrices whose product exists, in float64.

    Raises:
        MatrixError: As ``checked``, or the inner sizes differ.
    """
    left, right = checked(names[0], b), checked(names[1], a)
    if left.shape[1] != right.shape[0]:
        raise MatrixError(
            f"{names[0]} of shape {left.shape} and {names[1]} of shape {right.shape} "
            "have no product: the ranks differ"
        )
    return left, right


def checked_rank(rank: int, d: int, k: int) -> int:
    """The rank, which a (d, k) matrix can have.

    Raises:
        MatrixError: It is below 1 or above min(d, k).
    """
    if not 1 <= rank <= min(d, k):
        raise MatrixError(
            f"rank {rank} for a matrix of shape {(d, k)}; choose 1 to {min(d, k)}"
        )
    return rank
