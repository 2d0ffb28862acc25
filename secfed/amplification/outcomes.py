"""The noise in what a rule makes of the sites' updates, whatever the rule is.

A rule that does more than add changes (products, singular values, rotations, weights,
a core, an optimizer) is a function of them. Given that function's two values, one of
the noisy updates and one of the same updates without noise, the noise energy is the
squared distance of the changes of the weights::

    measured = |dW_noisy - dW_clean|**2         signal = |dW_clean - dW_before|**2

Which part of it comes from which factor is not defined then, and stays None. Dense
(d, k) matrices are formed, one module at a time. Simulation only, as ``measure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfed.amplification.closed_forms import (
    NoiseLevels,
    closed_form_mean_of_products,
    closed_form_module,
)
from secfed.amplification.forms import Factors, of_core, one_round
from secfed.amplification.measurement import ModuleNoise, NoiseReport
from secfed.amplification.rules import NoiseRule, sites_views
from secfed.types import LORA_A, LORA_B, Adapter

__all__ = ["Outcome", "closed_form_of_outcomes", "measure_outcomes"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """One model before a round, and after it with and without the round's noise.

    Attributes:
        before: What it was, with the noise of earlier rounds.
        noisy: What the rule made of the noisy updates.
        clean: What the same rule makes, from the same state, of the clean updates.
    """

    before: Adapter
    noisy: Adapter
    clean: Adapter


def measure_outcomes(
    outcomes: Sequence[Outcome],
    sites: Sequence[Adapter] | None,
    *,
    expected: Mapping[str, float] | None = None,
    levels: NoiseLevels | None = None,
    initial: Adapter | None = None,
) -> NoiseReport:
    """Compare every model that comes out of a round with its noiseless twin.

    Args:
        outcomes: The global adapter, or every site's own model.
        sites: Every site's noisy adapter after training, of equal weights, for the
            aggregation gap; None: sites end with models of their own and nothing is
            aggregated into one.
        expected: Every module's expected energy; None: there is no closed form.
        levels: The noise by the plan, for the comparison with FFA-LoRA.
        initial: The study's initial adapter (A random), for the same.

    Raises:
        ValueError: There is no model, or a number is not finite.
    """
    if not outcomes:
        raise ValueError("no model came out of the round")
    modules = []
    for name in outcomes[0].before.modules():
        ffa = None
        if levels is not None and initial is not None:
            ffa = closed_form_module(name, initial, {name + LORA_B}, levels)
        found = None if expected is None else expected[name]
        modules.append((name, _measure_module(name, outcomes, sites, found, ffa)))
    return NoiseReport.of_modules(tuple(modules))


def _measure_module(
    name: str,
    outcomes: Sequence[Outcome],
    sites: Sequence[Adapter] | None,
    expected: float | None,
    ffa: float | None,
) -> ModuleNoise:
    measured, signal = [], []
    for one in outcomes:
        clean = one.clean.delta(name)
        measured.append(_energy(name, one.noisy.delta(name) - clean))
        signal.append(_energy(name, clean - one.before.delta(name)))
    gap = products = None
    if sites is not None:
        mean = np.mean([site.delta(name) for site in sites], axis=0)
        gap = _energy(name, outcomes[0].noisy.delta(name) - mean)
        products = _energy(name, mean)
    return ModuleNoise(
        measured=float(np.mean(measured)),
        linear_b=None,
        linear_a=None,
        quadratic=None,
        signal=float(np.mean(signal)),
        gap=gap,
        products=products,
        closed_form=expected,
        ffa=ffa,
    )


def closed_form_of_outcomes(
    rule: NoiseRule,
    levels: NoiseLevels,
    outcomes: Sequence[Outcome],
    sites: Sequence[Adapter],
) -> dict[str, float]:
    """Every module's expected energy, around the factors that the run had.

    - a core R: ``of_core`` around the two frozen factors;
    - a mean of products: around every site's own clean factors, before anything is
      cut off the mean;
    - models of the sites' own: the mean over them, each with its own noise.

    Args:
        rule: How noise comes together under the rule.
        levels: The noise of every site; a core's stands in B's place.
        outcomes: As for ``measure_outcomes``.
        sites: Every site's clean adapter after training, in the order of ``levels``,
            cut to the rank that it trains.
    """
    return {
        name: _expected_module(name, rule, levels, outcomes, sites)
        for name in outcomes[0].before.modules()
    }


def _expected_module(
    name: str,
    rule: NoiseRule,
    levels: NoiseLevels,
    outcomes: Sequence[Outcome],
    sites: Sequence[Adapter],
) -> float:
    both = (name + LORA_A, name + LORA_B)
    if rule.combines == "products":
        alone = [_module_alone(name, site) for site in sites]
        return closed_form_mean_of_products(alone, both, levels)
    views = sites_views(rule, levels)
    energies = []
    for outcome, noise in zip(outcomes, views, strict=True):
        own = outcome.clean
        factors = _factors(name, own)
        if rule.trains == "core":
            energy = of_core(noise.b, factors.norm_b2, factors.norm_a2)
        else:
            energy = one_round(factors, noise)
        energies.append(own.scaling**2 * energy.total)
    return float(np.mean(energies))


def _module_alone(name: str, adapter: Adapter) -> Adapter:
    names = (name + LORA_A, name + LORA_B)
    return Adapter({n: adapter.tensors[n] for n in names}, adapter.scaling)


def _factors(name: str, adapter: Adapter) -> Factors:
    a = adapter.tensors[name + LORA_A].astype(np.float64)
    b = adapter.tensors[name + LORA_B].astype(np.float64)
    return Factors(
        d=len(b),
        k=a.shape[1],
        r=len(a),
        norm_a2=float(np.sum(a**2)),
        norm_b2=float(np.sum(b**2)),
    )


def _energy(name: str, matrix: Matrix) -> float:
    found = float(np.sum(matrix**2))
    if not np.isfinite(found):
        raise ValueError(f"{name}: the change of the weight is not finite")
    return found
