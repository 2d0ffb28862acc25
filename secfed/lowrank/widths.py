"""How wide sketches must be, and when the dense sum is smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from secfed.errors import MatrixError

__all__ = ["OVERSAMPLING", "Widths", "choose_widths", "narrow_widths"]

OVERSAMPLING: Final = 8
"""Columns of Omega above the sum of ranks, and rows of Psi above these.

Without the first, Omega meets the row space in a square matrix, whose smallest
singular value has no useful bound: rounding then costs some five times as much in the
median round, and a hundred times in the worst of twenty. Measured:
docs/aggregation.md, section "Rounding".
"""


@dataclass(frozen=True)
class Widths:
    """The sizes of the sketches ``Y = W Omega`` and ``Z = Psi W`` of a (d, k) sum W.

    Attributes:
        d: Rows of W.
        k: Columns of W.
        right: Columns of Omega (p): Y has shape (d, right).
        left: Rows of Psi (q): Z has shape (left, k).

    Raises:
        MatrixError: Not 1 <= right <= min(d, k), or not right <= left <= d.
    """

    d: int
    k: int
    right: int
    left: int

    def __post_init__(self) -> None:
        if not 1 <= self.right <= min(self.d, self.k):
            raise MatrixError(
                f"sketches of {self.right} columns for a matrix of shape "
                f"{(self.d, self.k)}; choose 1 to {min(self.d, self.k)}"
            )
        if not self.right <= self.left <= self.d:
            raise MatrixError(
                f"sketches of {self.left} rows beside {self.right} columns, for a "
                f"matrix of shape {(self.d, self.k)}; choose {self.right} to {self.d}"
            )

    @property
    def num_values(self) -> int:
        """How many numbers a site sends."""
        return self.d * self.right + self.left * self.k

    @property
    def dense_values(self) -> int:
        """How many it would send without sketches."""
        return self.d * self.k

    @property
    def dense_is_smaller(self) -> bool:
        """Whether the dense sum has no more numbers; it is also more precise."""
        return self.dense_values <= self.num_values

    def require(self, ranks: Sequence[int]) -> None:
        """Refuse widths that cannot hold a sum of products of these ranks.

        Raises:
            MatrixError: The message says the widths that would do.
        """
        wanted = choose_widths(ranks, self.d, self.k, oversampling=0)
        least = min(wanted.right + OVERSAMPLING, self.d)
        if self.right < wanted.right or self.left < least:
            raise MatrixError(
                f"sketches of widths {self.right} and {self.left} cannot hold the sum "
                f"of {len(ranks)} products, whose ranks add up to {sum(ranks)}: "
                f"they need at least {wanted.right} and {least}, or send the dense "
                "products"
            )


def choose_widths(
    ranks: Sequence[int], d: int, k: int, *, oversampling: int = OVERSAMPLING
) -> Widths:
    """Widths that hold the sum of one product of each rank exactly.

    The sum of products has at most the sum of their ranks, and at most min(d, k).
    With s that sum, sketches have ``(d + k) * s`` numbers and some more, so the
    dense sum is smaller from about ``s = d k / (d + k)``: see ``dense_is_smaller``.

    Args:
        ranks: Of each site that may send, whether it drops out or not.
        d: Rows of a product.
        k: Columns of a product.
        oversampling: See ``OVERSAMPLING``.

    Raises:
        MatrixError: No ranks, or one below 1 or above min(d, k).

    Example:
        >>> choose_widths([8] * 10, 1024, 1024)
        Widths(d=1024, k=1024, right=88, left=96)
    """
    if not ranks:
        raise MatrixError("there is no site, so there is no sum to sketch")
    for rank in ranks:
        if not 1 <= rank <= min(d, k):
            raise MatrixError(
                f"rank {rank} for a matrix of shape {(d, k)}; choose 1 to {min(d, k)}"
            )
    right = min(sum(ranks) + oversampling, d, k)
    return Widths(d, k, right, min(right + oversampling, d))


def narrow_widths(share: float, d: int, k: int) -> Widths:
    """The widest sketches that have a share of the dense numbers.

    For sums whose rank is above that, of which only the leading part is wanted: an
    approximation, as good as the singular values fall (Tropp et al. 2017, theorem
    4.3). There are twice as many rows as columns, because what the columns miss
    disturbs the rest less the more rows there are. Measured: docs/aggregation.md,
    section "Below the sum of ranks".

    Args:
        share: Above 0, at most 1.
        d: Rows of a product.
        k: Columns of a product.

    Raises:
        MatrixError: No sketches are that small, or that large.

    Example:
        >>> narrow_widths(0.25, 1024, 1024)
        Widths(d=1024, k=1024, right=85, left=171)
    """
    if not 0 < share <= 1:
        raise MatrixError(f"{share} is no share of the dense numbers; choose 0 to 1")
    right = int((share * d * k - k) // (d + 2 * k))
    if right < 1:
        raise MatrixError(f"no sketches have {share:.1%} of {d * k:,} numbers")
    return Widths(d, k, right, 2 * right + 1)
