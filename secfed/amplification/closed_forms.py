"""How much noise to expect in the weights, from numbers known in advance.

One module changes by ``dW = scaling * B @ A`` with B of shape (d, r) and A of
shape (r, k). The sites' factors carry noise; their weighted means are
``B + xB`` and ``A + xA``. Then ::

    dW_noisy - dW_clean = scaling * (xB @ A  +  B @ xA  +  xB @ xA)
                                     linear_b   linear_a   quadratic

Let site i's noise be independent of everything else, with standard deviation
``sB_i`` and ``sA_i`` per number, and let w_i be its weight. The mean's noise has
variance ``vB = sum(w_i**2 * sB_i**2)``, likewise vA. Every entry of ``xB @ A`` is
a sum of r independent terms, so the expected squared norms are ::

    E|xB @ A|**2 = vB * d * |A|**2          E|B @ xA|**2 = vA * k * |B|**2
    E|xB @ xA|**2 = vA * vB * d * k * r     E(cross terms) = 0

and the energy is ``scaling**2`` times their sum. A factor that is not trained
has variance zero: FFA-LoRA (Sun et al., ICLR 2024, section 3) keeps the first
term only. Averaging the products instead of the factors gives
``sum(w_i**2 * (one site's energy))``, whose quadratic term is K times larger for
K equal sites.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from secfed.types import LORA_A, LORA_B, Adapter

__all__ = [
    "NoiseLevels",
    "check_weights",
    "closed_form",
    "closed_form_mean_of_products",
    "closed_form_module",
    "sgd_noise_std",
]


@dataclass(frozen=True)
class NoiseLevels:
    """What is known in advance about the noise of one round.

    Attributes:
        std_a: Per site: standard deviation per number of its update of A, if it
            trains A.
        std_b: The same for B.
        weights: Per site: its weight in the mean; they add up to one.
    """

    std_a: tuple[float, ...]
    std_b: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.std_a) == len(self.std_b) == len(self.weights) > 0:
            raise ValueError("std_a, std_b and weights must name the same sites")
        if min((*self.std_a, *self.std_b, *self.weights)) < 0:
            raise ValueError("standard deviations and weights cannot be negative")
        check_weights(self.weights)

    @classmethod
    def uniform(cls, std_a: Sequence[float], std_b: Sequence[float]) -> NoiseLevels:
        """Sites of equal weight."""
        weights = (1.0 / max(len(std_b), 1),) * len(std_b)
        return cls(std_a=tuple(std_a), std_b=tuple(std_b), weights=weights)

    @property
    def variance_a(self) -> float:
        """Variance of one number of the mean's noise in A."""
        return sum((w * s) ** 2 for w, s in zip(self.weights, self.std_a, strict=True))

    @property
    def variance_b(self) -> float:
        """Variance of one number of the mean's noise in B."""
        return sum((w * s) ** 2 for w, s in zip(self.weights, self.std_b, strict=True))


def closed_form(
    adapter: Adapter, trained: Collection[str], levels: NoiseLevels
) -> float:
    """Expected noise energy of the product of averaged factors, all modules.

    Design formula for ``fedavg``; with one factor trained, that of ``ffa-lora``,
    ``ffb-lora`` and one round of ``rolora``. Uses public numbers only when
    ``adapter`` is a released one.

    Args:
        adapter: The factors around which the noise is added.
        trained: The tensors that carry noise.
        levels: The sites' noise and weights.
    """
    return sum(
        closed_form_module(name, adapter, trained, levels) for name in adapter.modules()
    )


def closed_form_mean_of_products(
    sites: Sequence[Adapter], trained: Collection[str], levels: NoiseLevels
) -> float:
    """Expected noise energy when the sites' products are averaged, all modules.

    What exact aggregation of both factors costs: the quadratic term is
    ``sum(w**2)`` instead of ``sum(w**2)**2``, and the linear terms are those of
    the sites' own factors.
    """
    total = 0.0
    for site, weight, std_a, std_b in zip(
        sites, levels.weights, levels.std_a, levels.std_b, strict=True
    ):
        alone = NoiseLevels(std_a=(std_a,), std_b=(std_b,), weights=(1.0,))
        total += weight**2 * closed_form(site, trained, alone)
    return total


def sgd_noise_std(
    steps: int,
    learning_rate: float,
    noise_multiplier: float,
    clip_norm: float,
    expected_batch: float,
    *,
    momentum: float = 0.0,
) -> float:
    """Noise per number of a site's update after DP-SGD with a constant rate.

    One step adds ``N(0, (sigma * C)**2)`` to the summed gradient and divides by
    the expected batch b. Noise drawn j steps before the end of the round moves
    the weights by ``1 + m + ... + m**j`` times ``eta`` (momentum m, starting
    from zero in every round), so ::

        std = eta * sigma * C / b * sqrt(sum of c_j**2 over j = 0 .. T - 1),
        c_j = (1 - m**(j + 1)) / (1 - m),

    which is ``sqrt(T) * eta * sigma * C / b`` without momentum. Noise that later
    gradients react to is not in it: training counteracts part of the noise.
    """
    if steps < 0 or not 0.0 <= momentum < 1.0 or not expected_batch > 0.0:
        raise ValueError("steps >= 0, 0 <= momentum < 1 and expected_batch > 0")
    responses = [(1.0 - momentum ** (j + 1)) / (1.0 - momentum) for j in range(steps)]
    one_step = learning_rate * noise_multiplier * clip_norm / expected_batch
    return one_step * math.sqrt(sum(response**2 for response in responses))


def closed_form_module(
    name: str, adapter: Adapter, trained: Collection[str], levels: NoiseLevels
) -> float:
    """``closed_form`` of one module."""
    a = adapter.tensors[name + LORA_A].astype(np.float64)
    b = adapter.tensors[name + LORA_B].astype(np.float64)
    variance_a = levels.variance_a if name + LORA_A in trained else 0.0
    variance_b = levels.variance_b if name + LORA_B in trained else 0.0
    (d, r), k = b.shape, a.shape[1]
    linear_b = variance_b * d * float(np.sum(a**2))
    linear_a = variance_a * k * float(np.sum(b**2))
    quadratic = variance_a * variance_b * d * k * r
    energy: float = adapter.scaling**2 * (linear_b + linear_a + quadratic)
    return energy


def check_weights(weights: Sequence[float]) -> None:
    """Raise ValueError unless these are the weights of a mean."""
    # Up to the rounding of 1/n.
    if not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-9):
        raise ValueError(f"weights add up to {math.fsum(weights)}, not to 1")
