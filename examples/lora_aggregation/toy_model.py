"""The toy's matrices, its methods, and the errors that are known exactly.

The set-up. The true update is ``W = P @ Q`` with P of shape (d, rho) and Q of
shape (rho, d). Site i holds ``W_i = (P + s X_i) @ (Q + s Y_i)``. All entries of
P, Q, X_i and Y_i are independent standard normal numbers, and s is the noise.
A site sends the two factors of the best rank-r approximation of its W_i, the
singular values divided evenly between both. The server makes one update from
them, and errs by ``|W - update|`` in the Frobenius norm. The methods:

- ``fedavg``: mean of the B_i times mean of the A_i;
- ``reconstruction``: mean of the products ``B_i @ A_i``, cut to rank r;
- ``untruncated``: that mean as it is, of rank up to ``min(d, n * r)``;
- ``aligned``: fedavg after each site has turned its factors towards those of
  site 1 (orthogonal Procrustes). Masked sums do not show site 1's factors;
  FedRot-LoRA turns towards the last global ones.

The exact root mean square (RMS) error of ``untruncated`` for r >= rho. W_i has
rank rho, so its approximation is W_i itself. With means Xbar, Ybar over n sites ::

    mean(W_i) - W = s Xbar @ Q + s P @ Ybar + s**2 mean(X_i @ Y_i).

The three terms are uncorrelated. An entry of ``Xbar @ Q`` is a sum of rho
products of independent numbers of variance 1/n and 1, so its variance is rho/n;
likewise for ``P @ Ybar``. An entry of ``mean(X_i @ Y_i)`` has variance rho/n.
There are d**2 entries: ``E|error|**2 = d**2 rho (2 s**2 + s**4) / n``.

This is exact for this set-up only: rho, not r; standard normal P and Q; sites of
equal weight; no cut at the server. For ``reconstruction`` it is exact at r = d;
for rho <= r < d the cut removes noise, and a little of W.

Two more exact values. Zero errs by ``E|W|**2 = d**2 rho``; so ``untruncated``
beats zero only with n > 2 s**2 + s**4 sites. If the sites sent ``P + s X_i`` and
``Q + s Y_i`` themselves, factors in one shared basis, fedavg's error would be
``E|error|**2 = d**2 rho (2 s**2 / n + s**4 / n**2)``: below ``untruncated`` at
every noise. LoRA sites share a basis when a round starts, and drift from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Setup",
    "World",
    "best_factors",
    "draw",
    "estimates",
    "mean_of_factors",
    "shared_basis_rms",
    "untruncated_rms",
    "zero_rms",
]

Array = NDArray[np.float64]
Factors = tuple[Array, Array]


@dataclass(frozen=True)
class Setup:
    """The sizes of the toy: n, d, rho, and how often it is repeated.

    The published experiment states d, rho and the noises. Our reading of it does
    not have its number of sites: 12 is that of the same study's main experiments.
    """

    sites: int = 12
    size: int = 20
    inherent_rank: int = 5
    repetitions: int = 200
    seed: int = 0

    @property
    def ranks(self) -> tuple[int, ...]:
        """1 to d."""
        return tuple(range(1, self.size + 1))


@dataclass(frozen=True)
class World:
    """All random numbers of the toy, the same for each noise and rank.

    Attributes:
        p: (repetitions, d, rho).
        q: (repetitions, rho, d).
        x: (repetitions, n, d, rho).
        y: (repetitions, n, rho, d).
    """

    p: Array
    q: Array
    x: Array
    y: Array

    @property
    def true(self) -> Array:
        """W, shape (repetitions, d, d)."""
        return self.p @ self.q

    def sites(self, noise: float) -> Array:
        """W_i, shape (repetitions, n, d, d)."""
        return (self.p[:, None] + noise * self.x) @ (self.q[:, None] + noise * self.y)


def draw(setup: Setup) -> World:
    """Repetition k depends on the seed and k, not on their number."""
    n, d, rho = setup.sites, setup.size, setup.inherent_rank
    shapes = ((d, rho), (rho, d), (n, d, rho), (n, rho, d))
    rows = []
    for repetition in range(setup.repetitions):
        random = np.random.default_rng([setup.seed, repetition])
        rows.append([random.standard_normal(shape) for shape in shapes])
    p, q, x, y = (np.stack(parts) for parts in zip(*rows, strict=True))
    return World(p, q, x, y)


def untruncated_rms(setup: Setup, noise: float) -> float:
    """Exact RMS error of the mean of products, for ranks from rho on."""
    energy = setup.size**2 * setup.inherent_rank
    return math.sqrt(energy * (2 * noise**2 + noise**4) / setup.sites)


def shared_basis_rms(setup: Setup, noise: float) -> float:
    """Exact RMS error of fedavg if the sites' factors had one basis."""
    energy = setup.size**2 * setup.inherent_rank
    return math.sqrt(energy * (2 * noise**2 / setup.sites + noise**4 / setup.sites**2))


def zero_rms(setup: Setup) -> float:
    """Exact RMS error of predicting zero."""
    return setup.size * math.sqrt(setup.inherent_rank)


def best_factors(matrices: Array, rank: int) -> Factors:
    """The two halves of the best rank-``rank`` approximations."""
    u, values, v = np.linalg.svd(matrices, full_matrices=False)
    roots = np.sqrt(values[..., :rank])
    return u[..., :rank] * roots[..., None, :], roots[..., None] * v[..., :rank, :]


def align(b: Array, a: Array) -> Factors:
    """Turn each site's factors towards those of site 1.

    ``(B_i O, O^T A_i)`` has the product ``B_i A_i``. The orthogonal O nearest to
    site 1 in the sum of both squared distances is ``U V^T`` of the SVD of
    ``B_i^T B_1 + A_i A_1^T`` (orthogonal Procrustes; Schoenemann 1966).
    """
    overlap = b.swapaxes(-1, -2) @ b[:, :1] + a @ a[:, :1].swapaxes(-1, -2)
    u, _, v = np.linalg.svd(overlap)
    turn = u @ v
    return b @ turn, turn.swapaxes(-1, -2) @ a


def mean_of_factors(b: Array, a: Array) -> Array:
    """Fedavg's update."""
    update: Array = b.mean(axis=1) @ a.mean(axis=1)
    return update


def estimates(factors: Factors, rank: int) -> dict[str, Array]:
    """The update of each method, shape (repetitions, d, d).

    Args:
        factors: The sites' factors of full rank rho. Beyond rho the factors of a
            larger rank would have zeros only, which change nothing.
        rank: What the sites and the server cut to.
    """
    b, a = factors[0][..., :rank], factors[1][..., :rank, :]
    products = (b @ a).mean(axis=1)
    left, right = best_factors(products, rank)
    return {
        "fedavg": mean_of_factors(b, a),
        "reconstruction": left @ right,
        "untruncated": products,
        "aligned": mean_of_factors(*align(b, a)),
    }
