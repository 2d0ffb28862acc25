"""Closed forms from norms and shapes alone, for one round and for many.

Notation as in ``closed_forms.py``: a module changes by ``scaling * B @ A``, B of
shape (d, r), A of shape (r, k). Everything here leaves ``scaling**2`` out; use
``Energy.times``. One round adds to the global factors noise that is independent of
everything before it, with variance ``b`` per number of B and ``a`` per number of A.

Two facts carry all forms. For a fixed matrix M and noise X of variance v per number,
independent of M and with d rows ::

    E|X @ M|**2 = v * d * |M|**2                                             (1)

because each of the entries of ``X @ M`` in column j is a sum of independent terms
with total variance ``v * |M[:, j]|**2``. And for two independent noises, (1) with
``E|xA|**2 = a * r * k`` gives ``E|xB @ xA|**2 = a * b * d * k * r``.          (2)

What no form here knows: gradients of later steps react to the noise of earlier
ones, and training counteracts part of it. Rules with one noisy factor stay close;
with two the forms are too high, by how much is measured (``measurement.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from secfed.amplification.closed_forms import NoiseLevels

__all__ = [
    "Energy",
    "Factors",
    "RoundNoise",
    "accumulated",
    "each_round",
    "in_function_space",
    "kept_by_truncation",
    "of_core",
    "of_isometry",
    "one_round",
    "truncation_bound",
]


@dataclass(frozen=True)
class Factors:
    """What is public about one module's factors before the noise.

    Attributes:
        d: Outputs, the rows of B.
        k: Inputs, the columns of A.
        r: Rank.
        norm_a2: Squared Frobenius norm of A.
        norm_b2: Squared Frobenius norm of B.
    """

    d: int
    k: int
    r: int
    norm_a2: float
    norm_b2: float

    def __post_init__(self) -> None:
        if not 1 <= self.r <= min(self.d, self.k):
            raise ValueError(f"rank {self.r} of a matrix of {self.d} x {self.k}")
        if not (self.norm_a2 >= 0.0 and self.norm_b2 >= 0.0):
            raise ValueError("a squared norm cannot be negative")


@dataclass(frozen=True)
class RoundNoise:
    """Variances of the noise that one round adds to the aggregate.

    Attributes:
        a: Per number of A.
        b: Per number of B.
        ab: What stands for their product in the quadratic term.
    """

    a: float
    b: float
    ab: float

    @classmethod
    def of_means(cls, levels: NoiseLevels) -> RoundNoise:
        """Each factor is averaged by itself (fedavg): ``ab = a * b``."""
        a, b = levels.variance_a, levels.variance_b
        return cls(a, b, a * b)

    @classmethod
    def of_products(cls, levels: NoiseLevels) -> RoundNoise:
        """The sites' products are averaged (flexlora, fedex-lora).

        The quadratic noise of the mean is ``sum(w * xB_i @ xA_i)``. Its terms are
        independent with mean zero, so by (2) ::

            E|sum(w_i * xB_i @ xA_i)|**2 = sum(w_i**2 * sA_i**2 * sB_i**2) * d * k * r

        and ``ab`` is that sum. For K equal sites it is ``s**4 / K``, where fedavg
        has ``s**4 / K**2``: exact aggregation costs K times the quadratic noise.
        """
        sites = zip(levels.weights, levels.std_a, levels.std_b, strict=True)
        ab = sum((w * a * b) ** 2 for w, a, b in sites)
        return cls(levels.variance_a, levels.variance_b, ab)


@dataclass(frozen=True)
class Energy:
    """Expected squared Frobenius norm of the noise in the weights, in parts.

    Attributes:
        linear_b: Of the part in which only B is noisy.
        linear_a: Of the part in which only A is noisy.
        quadratic: Of products of two noises.
        core: Of the noise of a core between two frozen factors (fed-sb).
    """

    linear_b: float = 0.0
    linear_a: float = 0.0
    quadratic: float = 0.0
    core: float = 0.0

    @property
    def total(self) -> float:
        """The energy of all parts together; their cross terms are zero."""
        return self.linear_b + self.linear_a + self.quadratic + self.core

    def times(self, factor: float) -> Energy:
        """Every part multiplied, for example by ``scaling**2``."""
        return Energy(*(factor * getattr(self, f.name) for f in fields(self)))

    def __add__(self, other: Energy) -> Energy:
        """Part by part."""
        names = [field.name for field in fields(self)]
        return Energy(*(getattr(self, n) + getattr(other, n) for n in names))


def one_round(factors: Factors, noise: RoundNoise) -> Energy:
    """Expected noise energy of one round around known factors.

    With ``B + xB`` and ``A + xA`` the error is ``xB @ A + B @ xA + xB @ xA``. The
    three terms are uncorrelated, since each noise has mean zero; (1) and (2) give ::

        b * d * |A|**2   +   a * k * |B|**2   +   ab * d * k * r

    * ``fedavg``: both variances, ``RoundNoise.of_means``.
    * ``ffa-lora``: ``a = ab = 0``, so ``b * d * |A0|**2`` (Sun et al., ICLR 2024,
      section 3). PEFT draws the r k numbers of A0 from ``U(-1/sqrt(k), 1/sqrt(k))``,
      with variance ``1 / (3 k)``: ``|A0|**2`` is about r / 3. Orthonormal rows: r.
    * ``ffb-lora``: ``b = ab = 0``, so ``a * k * |B0|**2``.
    * ``rolora``: the one or the other, by round.
    * mean of products: ``RoundNoise.of_products``. The norms are then means over the
      sites (``sum(w_i**2 * sB_i**2 * |A_i|**2)`` and so on, exact in
      ``closed_form_mean_of_products``), by Jensen's inequality not below those of
      the mean factors; around the factors that all sites received they are equal.
    """
    d, k, r = factors.d, factors.k, factors.r
    return Energy(
        linear_b=noise.b * d * factors.norm_a2,
        linear_a=noise.a * k * factors.norm_b2,
        quadratic=noise.ab * d * k * r,
    )


def each_round(
    factors: Sequence[Factors], noise: Sequence[RoundNoise]
) -> tuple[Energy, ...]:
    """Expected noise energy of every round, around factors that are noisy already.

    Round t starts from factors that hold the noise of the rounds before it. Their
    expected squared norms are ``|A|**2 + k * r * sum(a)`` and
    ``|B|**2 + d * r * sum(b)``, the sums over earlier rounds, and ``one_round``
    holds around them. This is what a run measures round by round.

    Args:
        factors: The clean factors of every round.
        noise: The noise of every round.
    """
    found = []
    before_a = before_b = 0.0
    for own, noisy in zip(factors, noise, strict=True):
        d, k, r = own.d, own.k, own.r
        norm_a2 = own.norm_a2 + k * r * before_a
        norm_b2 = own.norm_b2 + d * r * before_b
        found.append(one_round(Factors(d, k, r, norm_a2, norm_b2), noisy))
        before_a += noisy.a
        before_b += noisy.b
    return tuple(found)


def accumulated(factors: Sequence[Factors], noise: Sequence[RoundNoise]) -> Energy:
    """Expected energy of the noise that all rounds leave in the weights together.

    The linear parts add up over rounds (or steps). The product of the summed noises
    of B and A pairs every round's xB with every round's xA, and all these products
    are uncorrelated, so by (2) ::

        quadratic = d * k * r * (sum_t(ab_t) + sum over t != u of a_t * b_u)

    Equal rounds of fedavg: ``T * linear + T**2 * quadratic``. Alternation (rolora by
    rounds, la-lora by steps) has ``ab = 0`` in every round and still pairs the T_B
    noises of B with the T_A of A: ``T_A * T_B * a * b * d * k * r``. It removes the
    quadratic term of a round, not that of the whole.

    ``fedex-lora`` keeps factors that are averaged like fedavg's and adds the rest of
    the mean product to the base: the pairs of different rounds are fedavg's, those
    of one round are ``ab`` of ``of_products``.

    Guarantees:
        The total is that of ``each_round``: each round's error has mean zero given
        the past, so the errors of two rounds are uncorrelated. The parts differ:
        there the noise of earlier rounds counts to the factors.
    """
    linear_b = sum(n.b * f.d * f.norm_a2 for f, n in zip(factors, noise, strict=True))
    linear_a = sum(n.a * f.k * f.norm_b2 for f, n in zip(factors, noise, strict=True))
    total_a, total_b = sum(n.a for n in noise), sum(n.b for n in noise)
    pairs = total_a * total_b + sum(n.ab - n.a * n.b for n in noise)
    first = factors[0]
    return Energy(linear_b, linear_a, pairs * first.d * first.k * first.r)


def of_core(variance: float, norm_u2: float, norm_v2: float) -> Energy:
    """``fed-sb``: a trained core R between two frozen factors, ``U @ R @ V``.

    Singhal et al., arXiv 2502.15436 (2025). The error ``U @ X @ V`` has expected
    energy ``trace(E[X' U'U X] V V')``. Noise of variance v makes the inner
    expectation ``v * trace(U'U) * I``, hence ::

        E|U @ X @ V|**2 = v * |U|**2 * |V|**2

    With orthonormal factors of rank q that is ``v * q**2``, whatever d and k are.

    Args:
        variance: Of one number of the mean core's noise, ``sum(w**2 * s**2)``.
        norm_u2: ``|U|**2``, U of shape (d, q).
        norm_v2: ``|V|**2``, V of shape (q, k).
    """
    return Energy(core=variance * norm_u2 * norm_v2)


def of_isometry(variance: float, numbers: int) -> float:
    """Any parametrisation that keeps lengths: ``variance * numbers``.

    If ``theta -> W(theta)`` is linear with ``|W(theta)| = |theta|`` then the energy
    of the noise in W is that of the noise in theta, one variance for each of the p
    trained numbers. Full fine-tuning has ``p = d * k``; FFA-LoRA with orthonormal
    rows has ``p = d * r``; an orthonormal fed-sb ``p = r * r``.
    """
    return variance * numbers


def in_function_space(
    factors: Factors, noise: RoundNoise, norm_x2: float, norm_ax2: float
) -> Energy:
    """Expected squared error of the module's output for one input x.

    The error is ``xB @ (A x) + B @ (xA x) + xB @ (xA x)``. ``xA x`` has r numbers of
    variance ``a * |x|**2``; (1) with one column gives ::

        b * d * |A x|**2   +   a * |B|**2 * |x|**2   +   ab * d * r * |x|**2

    Args:
        factors: ``norm_a2`` is not used.
        noise: The round's noise.
        norm_x2: ``|x|**2``, or its mean over inputs.
        norm_ax2: ``|A x|**2``, or its mean over the same inputs.
    """
    return Energy(
        linear_b=noise.b * factors.d * norm_ax2,
        linear_a=noise.a * factors.norm_b2 * norm_x2,
        quadratic=noise.ab * factors.d * factors.r * norm_x2,
    )


def truncation_bound(energy: float, tail: float = 0.0) -> float:
    """Upper bound on the noise energy after truncation to rank r (``flexlora``).

    The singular vectors that are kept depend on the noise, so there is no closed
    form, only a bound. Let M be the clean matrix, N the noise and ``T`` the best
    approximation of rank r. ``T(M)`` has rank r, so ``T(M + N)`` is at least as close
    to ``M + N`` as ``T(M)`` is::

        |T(M + N) - T(M)| <= |T(M + N) - (M + N)| + |M + N - T(M)|
                          <= 2 * |M + N - T(M)| <= 2 * (|N| + |M - T(M)|)

    Squared, and by Minkowski's inequality in expectation: ``4 * (sqrt(E|N|**2) +
    |M - T(M)|)**2``, which is four times the energy where M has rank r already.

    Args:
        energy: ``E|N|**2`` of the mean of products.
        tail: ``|M - T(M)|**2``, the clean energy that truncation cuts.
    """
    return 4.0 * float(energy**0.5 + tail**0.5) ** 2


def kept_by_truncation(d: int, k: int, r: int) -> float:
    """Share of isotropic noise that truncation to rank r keeps, far below the signal.

    To first order truncation projects the noise onto the tangent space of the
    matrices of rank r at M, which has ``r * (d + k - r)`` of ``d * k`` dimensions.
    An approximation: noise of LoRA factors lies in few directions and is no isotropic
    noise, and where the noise is not small nothing is known but the bound.
    """
    return r * (d + k - r) / (d * k)
