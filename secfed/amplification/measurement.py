"""How much of a round's privacy noise ended up in the weights, measured.

A round's noisy updates are compared with the same updates without the noise, so
this exists in simulation only: whoever holds both holds unprotected updates.

``measure`` is for rules that add the mean changes of the factors, and splits the
energy into its parts. ``outcomes.py`` has the measurement for every other rule.

No (d, k) matrix is formed: ``|L @ R|**2 = trace((L'L)(RR'))`` needs r x r
products, and a sum of products is one product of stacked factors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from secfed.amplification.closed_forms import (
    NoiseLevels,
    check_weights,
    closed_form_module,
)
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = [
    "ModuleNoise",
    "NoiseReport",
    "measure",
    "product_norm_squared",
    "sum_of_products_norm_squared",
]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ModuleNoise:
    """Energies (squared Frobenius norms) of one module, or summed over modules.

    None is what does not exist, and never zero.

    Attributes:
        measured: Of ``dW_noisy - dW_clean`` after the round, of the global adapter
            or, where sites end with models of their own, their mean energy.
        linear_b: Of the part in which only B is noisy. This part and the next two
            exist where the rule adds the mean changes of the factors.
        linear_a: Of the part in which only A is noisy.
        quadratic: Of the product of the two noises.
        signal: Of the change that the round makes to dW without noise.
        gap: Of ``dW_noisy`` less the mean of the noisy sites' own dW; None where
            sites end with models of their own.
        products: Of the mean of the noisy sites' own dW; None as the gap.
        closed_form: Expectation of ``measured`` around the clean factors; None
            where the noise levels are not known in advance (Adam) or the rule has
            no closed form.
        ffa: The same for FFA-LoRA at the same noise in B, with the initial A.
    """

    measured: float
    linear_b: float | None
    linear_a: float | None
    quadratic: float | None
    signal: float
    gap: float | None
    products: float | None
    closed_form: float | None
    ffa: float | None

    @property
    def quadratic_share(self) -> float | None:
        """The quadratic part's share of the three parts; 0 without noise."""
        if self.linear_b is None or self.linear_a is None or self.quadratic is None:
            return None
        parts = self.linear_b + self.linear_a + self.quadratic
        return self.quadratic / parts if parts else 0.0

    @property
    def aggregation_gap(self) -> float | None:
        """Relative error of the aggregate; 0 for an exact rule."""
        if self.gap is None or self.products is None:
            return None
        return self.gap / self.products if self.products else 0.0

    @property
    def amplification(self) -> float | None:
        """Measured energy over FFA-LoRA's expected energy at the same noise."""
        return self.measured / self.ffa if self.ffa else None

    @property
    def noise_to_signal(self) -> float | None:
        """Measured energy over the energy of the round's clean change."""
        return self.measured / self.signal if self.signal else None

    def to_json(self) -> dict[str, float | None]:
        """The numbers for a metrics line."""
        return {
            "measured": self.measured,
            "closed_form": self.closed_form,
            "linear_b": self.linear_b,
            "linear_a": self.linear_a,
            "quadratic": self.quadratic,
            "quadratic_share": self.quadratic_share,
            "aggregation_gap": self.aggregation_gap,
            "signal": self.signal,
            "noise_to_signal": self.noise_to_signal,
            "amplification": self.amplification,
        }


@dataclass(frozen=True)
class NoiseReport(ModuleNoise):
    """The energies summed over all modules, and each module's own."""

    modules: tuple[tuple[str, ModuleNoise], ...]

    @classmethod
    def of_modules(cls, modules: tuple[tuple[str, ModuleNoise], ...]) -> NoiseReport:
        """The sum; what one module does not have, the sum does not have."""
        totals: dict[str, float | None] = {}
        for field in fields(ModuleNoise):
            values = [getattr(noise, field.name) for _, noise in modules]
            totals[field.name] = None if None in values else math.fsum(values)
        return cls(**totals, modules=modules)  # type: ignore[arg-type]


def measure(
    before: Adapter,
    noisy: Sequence[Tensors],
    clean: Sequence[Tensors],
    trained: Collection[str],
    *,
    levels: NoiseLevels | None = None,
    weights: Sequence[float] | None = None,
    initial: Adapter | None = None,
) -> NoiseReport:
    """Compare a round's noisy updates with the same updates without noise.

    Args:
        before: The global adapter that the sites received.
        noisy: Per surviving site, its update as sent.
        clean: Per surviving site in the same order, its update with the noise
            left out: the same clipped sums, taken along the noisy trajectory
            (then ``closed_form`` is the exact expectation under SGD) or along
            its own (then training counteracts part of the noise).
        trained: The tensors that the round trains; the updates hold exactly
            these (those of the head are ignored).
        levels: The noise by the plan; None where it has no closed form.
        weights: Of the sites; by default those of ``levels``, or equal.
        initial: The study's initial adapter (A random), for the comparison with
            FFA-LoRA; by default ``before``.

    Raises:
        ValueError: The arguments do not fit together, or are not finite.
    """
    if not len(noisy) == len(clean) > 0:
        raise ValueError(f"{len(noisy)} noisy and {len(clean)} clean updates")
    if levels is not None and weights is not None:
        raise ValueError("levels already hold the weights")
    if levels is not None:
        weights = levels.weights
    elif weights is None:
        weights = (1.0 / len(noisy),) * len(noisy)
    if len(weights) != len(noisy):
        raise ValueError(f"{len(weights)} weights for {len(noisy)} sites")
    check_weights(weights)
    for update in (*noisy, *clean):
        if update.keys() != set(trained):
            raise ValueError("an update holds other tensors than those trained")
        if not all(np.isfinite(value).all() for value in update.values()):
            raise ValueError("an update is not finite")
    modules = tuple(
        (
            name,
            _measure_module(
                name,
                before,
                noisy=noisy,
                clean=clean,
                weights=weights,
                levels=levels,
                initial=initial or before,
            ),
        )
        for name in before.modules()
    )
    return NoiseReport.of_modules(modules)


def product_norm_squared(left: Matrix, right: Matrix) -> float:
    """``|left @ right|**2`` (Frobenius) in r x r work.

    Args:
        left: Shape (d, r).
        right: Shape (r, k).
    """
    gram_left, gram_right = left.T @ left, right @ right.T
    # Both are symmetric, so the trace of their product is the sum of entries;
    # rounding may take a zero below zero.
    return max(float(np.sum(gram_left * gram_right)), 0.0)


def sum_of_products_norm_squared(
    lefts: Sequence[Matrix], rights: Sequence[Matrix]
) -> float:
    """``|sum of lefts[i] @ rights[i]|**2``: one product of stacked factors."""
    return product_norm_squared(np.hstack(list(lefts)), np.vstack(list(rights)))


def _measure_module(
    name: str,
    before: Adapter,
    *,
    noisy: Sequence[Tensors],
    clean: Sequence[Tensors],
    weights: Sequence[float],
    levels: NoiseLevels | None,
    initial: Adapter,
) -> ModuleNoise:
    a, b = name + LORA_A, name + LORA_B
    energy = before.scaling**2
    old_a, old_b = _wide(before.tensors[a]), _wide(before.tensors[b])
    # 1. The mean's noise, and the clean aggregate. A factor that was not
    # trained is in no update: its change is exactly zero.
    site_a, site_b = _changes(noisy, a, old_a), _changes(noisy, b, old_b)
    move_a = _mean(_changes(clean, a, old_a), weights)
    move_b = _mean(_changes(clean, b, old_b), weights)
    mean_a, mean_b = _mean(site_a, weights), _mean(site_b, weights)
    noise_a, noise_b = mean_a - move_a, mean_b - move_b
    clean_a, clean_b = old_a + move_a, old_b + move_b
    # 2. mean(BA) - mean(B) mean(A) = mean of (B - mean B)(A - mean A): centred,
    # so that a gap of zero is zero and not the difference of large numbers.
    gap = sum_of_products_norm_squared(
        [w * (x - mean_b) for w, x in zip(weights, site_b, strict=True)],
        [x - mean_a for x in site_a],
    )
    products = sum_of_products_norm_squared(
        [w * (old_b + x) for w, x in zip(weights, site_b, strict=True)],
        [old_a + x for x in site_a],
    )
    # 3. The noise and its parts; the three terms together are two products.
    trained = noisy[0].keys()
    expected = ffa = None
    if levels is not None:
        aggregate = Adapter(
            {a: clean_a.astype(np.float32), b: clean_b.astype(np.float32)},
            before.scaling,
        )
        expected = closed_form_module(name, aggregate, trained, levels)
        ffa = closed_form_module(name, initial, {b}, levels)
    return ModuleNoise(
        measured=energy
        * sum_of_products_norm_squared(
            [noise_b, clean_b], [clean_a + noise_a, noise_a]
        ),
        linear_b=energy * product_norm_squared(noise_b, clean_a),
        linear_a=energy * product_norm_squared(clean_b, noise_a),
        quadratic=energy * product_norm_squared(noise_b, noise_a),
        signal=energy
        * sum_of_products_norm_squared([move_b, old_b], [clean_a, move_a]),
        gap=energy * gap,
        products=energy * products,
        closed_form=expected,
        ffa=ffa,
    )


def _changes(updates: Sequence[Tensors], name: str, old: Matrix) -> list[Matrix]:
    changes = [
        _wide(update[name]) if name in update else np.zeros_like(old)
        for update in updates
    ]
    for change in changes:
        if change.shape != old.shape:
            raise ValueError(f"{name}: {change.shape} does not fit {old.shape}")
    return changes


def _mean(values: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    total = np.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        total += weight * value
    return total


def _wide(value: NDArray[np.float32]) -> Matrix:
    return value.astype(np.float64)
