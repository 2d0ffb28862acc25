"""The sum of products from two narrow sums: sketches from both sides.

A site sends ``Y = B (A Omega)`` and ``Z = (Psi B) A`` with public random Omega
(k, p) and Psi (q, d). Both are linear in the product, so masked sums of them are the
sketches of the sum W of products. With Q an orthonormal basis of Y's columns ::

    W = Q X,    X = argmin |Psi Q X - Z|

which is exact when p and q reach the rank of W (Tropp, Yurtsever, Udell and Cevher,
"Practical Sketching Algorithms for Low-Rank Matrix Approximation", SIAM J. Matrix
Anal. Appl. 38(4), 2017, algorithm 4). Neither side forms a (d, k) matrix.

Whoever knows the sums learns W, and of W only what they say: functions of the sum.
The sketches of a site are post-processing of its factors; they are as private as
these, and need the mask as much.

Omega and Psi are public: they protect nothing. They come from a public seed, the same
for all sites. Exactness needs factors that were not chosen for the seed, so each round
has a new one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from protocols.prg import KEY_BYTES, Stream
from secfed.errors import MatrixError
from secfed.lowrank.matrices import Factors, Matrix, Split, checked, checked_pair
from secfed.lowrank.products import truncated
from secfed.lowrank.widths import Widths

__all__ = [
    "TOLERANCE",
    "Projections",
    "Recovered",
    "Sketch",
    "from_sketches",
    "projections",
    "sketch",
]

TOLERANCE: Final = 0.05
"""The estimated relative error above which a sum is refused; see ``Recovered``."""


@dataclass(frozen=True, eq=False)
class Projections:
    """The public random matrices of a module.

    Attributes:
        widths: Their sizes.
        omega: Shape (k, p).
        psi: Shape (q, d).
    """

    widths: Widths
    omega: Matrix = field(repr=False)
    psi: Matrix = field(repr=False)


@dataclass(frozen=True, eq=False)
class Sketch:
    """What a site sends for a product, or the sum of that.

    Attributes:
        y: Shape (d, p), the product times Omega.
        z: Shape (q, k), Psi times the product.
    """

    y: Matrix = field(repr=False)
    z: Matrix = field(repr=False)


@dataclass(frozen=True, eq=False)
class Recovered:
    """The sum behind sketches, at a rank.

    Attributes:
        factors: The result.
        error: The estimated relative error of the sum before it was cut, in the
            Frobenius norm; NaN where Psi has fewer than two rows to spare. The result
            is at most twice as much above the smallest error of its rank.

    What Q misses of W, say E, has expected squared norm ``q/d |E|**2`` in Z, of which
    the least squares leave over the share ``(q - p) / q``; and the expected squared
    error of Q X is ``|E|**2 (1 + p / (q - p - 1))`` (Tropp et al. 2017, theorem 4.3
    and its proof, for Gaussian Psi). Hence, with ``rest = |Psi Q X - Z| / |Z|`` ::

        error**2 = rest**2 * q / (q - p) * (1 + p / (q - p - 1))

    Rounding disturbs Z like such an E, so it is in the estimate, too.
    """

    factors: Factors
    error: float


def projections(seed: bytes, widths: Widths) -> Projections:
    """Omega and Psi, the same on every machine.

    Numbers are uniform from ``-sqrt(3 / n)`` to ``sqrt(3 / n)``, with n = k for Omega
    and n = d for Psi, so sketches have numbers as large as those of the product. They
    are multiples of one number by integers: no logarithm or cosine, whose last bits
    differ between machines, is taken. Independent numbers of any such law do as
    well as Gaussian ones in practice (Tropp et al. 2017).

    Args:
        seed: 32 public bytes.
        widths: What ``choose_widths`` returned.

    Raises:
        MatrixError: The seed has another length.
    """
    if len(seed) != KEY_BYTES:
        raise MatrixError(f"a seed of sketches has {KEY_BYTES} bytes, not {len(seed)}")
    omega = _uniform(seed, b"omega", (widths.k, widths.right), widths.k)
    psi = _uniform(seed, b"psi", (widths.left, widths.d), widths.d)
    return Projections(widths, omega, psi)


def _uniform(seed: bytes, name: bytes, shape: tuple[int, int], size: int) -> Matrix:
    """Independent numbers of mean 0 and variance 1 / size."""
    stream = Stream(hashlib.sha256(b"secfed/lowrank/" + name + seed).digest())
    draws = np.frombuffer(stream.read(4 * math.prod(shape)), dtype="<u4")
    odd = 2.0 * draws.astype(np.float64) + (1.0 - 2.0**32)  # exact, never zero
    return (odd * (math.sqrt(3.0 / size) * 2.0**-32)).reshape(shape)


def sketch(b: NDArray[Any], a: NDArray[Any], public: Projections) -> Sketch:
    """The two sketches of ``B @ A``, linear in the product.

    Args:
        b: Shape (d, r).
        a: Shape (r, k).
        public: The same at all sites.

    Raises:
        MatrixError: NaN or infinity, or shapes that are not the sketches'.
    """
    left, right = checked_pair(b, a)
    _require(
        "the product", (len(left), right.shape[1]), public.widths.d, public.widths.k
    )
    return Sketch(left @ (right @ public.omega), (public.psi @ left) @ right)


def from_sketches(
    y: NDArray[Any],
    z: NDArray[Any],
    public: Projections,
    rank: int,
    *,
    split: Split = "balanced",
    tolerance: float = TOLERANCE,
) -> Recovered:
    """Factors of the sum behind two sums of sketches, cut to a rank.

    Psi has more rows than Omega has columns, so Z says more than X needs, and what is
    left over tells the error: see ``Recovered``. It is rounding as long as the
    sketches hold the sum, and large when the sum has a higher rank than they can
    hold. Then the result is an approximation at best, and it is refused unless
    ``tolerance`` allows it (see ``narrow_widths``).

    Guarantees: without rounding the error is that of ``truncated`` on the sum, up to
    ``1e-9 * |W|``, if ``public.widths.require(ranks)`` passes for the summed ranks.

    Args:
        y: The sum (or mean) of all Y, shape (d, p).
        z: The sum (or mean) of all Z, shape (q, k).
        public: What the sites used.
        rank: Of the result, from 1 to min(d, k).
        split: Where the singular values go.
        tolerance: The largest estimated error; ``math.inf`` refuses nothing.

    Raises:
        MatrixError: NaN or infinity, other shapes than the sketches', no such rank,
            or an estimated error above the tolerance.
    """
    widths = public.widths
    right, left = checked("Y", y), checked("Z", z)
    _require("Y", right.shape, widths.d, widths.right)
    _require("Z", left.shape, widths.left, widths.k)
    basis, _ = np.linalg.qr(right)
    x, rest = _least_squares(public.psi @ basis, left)
    error = _estimated_error(rest, widths)
    if error > tolerance:
        raise MatrixError(
            f"sketches of widths {widths.right} and {widths.left} give the sum with an "
            f"estimated error of {error:.0%}: either its rank is above {widths.right}, "
            "or the ring is too coarse. Choose wider sketches (choose_widths), a wider "
            "ring, or the dense products"
        )
    return Recovered(truncated(basis, x, rank, split=split), error)


def _least_squares(matrix: Matrix, target: Matrix) -> tuple[Matrix, float]:
    """``argmin |matrix @ x - target|``, and the share of the target left over."""
    q, r = np.linalg.qr(matrix)
    seen = q.T @ target
    x = np.asarray(scipy.linalg.solve_triangular(r, seen), dtype=np.float64)
    rest = float(np.linalg.norm(target - q @ seen))
    return x, rest / (float(np.linalg.norm(target)) or 1.0)


def _estimated_error(rest: float, widths: Widths) -> float:
    """The expectation that ``Recovered.error`` gives."""
    p, q = widths.right, widths.left
    spare = q - p
    if spare < 2:  # noqa: PLR2004
        return math.nan
    return rest * math.sqrt(q / spare * (1 + p / (spare - 1)))


def _require(name: str, shape: tuple[int, ...], rows: int, columns: int) -> None:
    if shape != (rows, columns):
        raise MatrixError(f"{name} has shape {shape}; expected {(rows, columns)}")
