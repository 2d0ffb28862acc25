"""The privacy noise in the weights: what to expect, and what was measured."""

from __future__ import annotations

from secfed.amplification.closed_forms import (
    NoiseLevels,
    closed_form,
    closed_form_mean_of_products,
    sgd_noise_std,
)
from secfed.amplification.curves import (
    AXES,
    AXIS_NAMES,
    HELD,
    PARTS,
    Axis,
    Curve,
    noise_curve,
    usual_values,
    with_value,
)
from secfed.amplification.expectation import (
    InitialLaw,
    Setting,
    expected_each_round,
    expected_in_all,
)
from secfed.amplification.forms import Energy, Factors, RoundNoise
from secfed.amplification.measurement import (
    ModuleNoise,
    NoiseReport,
    measure,
    product_norm_squared,
    sum_of_products_norm_squared,
)
from secfed.amplification.outcomes import (
    Outcome,
    closed_form_of_outcomes,
    measure_outcomes,
)
from secfed.amplification.rules import NO_CLOSED_FORM, REFERENCE, RULES, NoiseRule
from secfed.amplification.subspace import subspace_motion

__all__ = [
    "AXES",
    "AXIS_NAMES",
    "HELD",
    "NO_CLOSED_FORM",
    "PARTS",
    "REFERENCE",
    "RULES",
    "Axis",
    "Curve",
    "Energy",
    "Factors",
    "InitialLaw",
    "ModuleNoise",
    "NoiseLevels",
    "NoiseReport",
    "NoiseRule",
    "Outcome",
    "RoundNoise",
    "Setting",
    "closed_form",
    "closed_form_mean_of_products",
    "closed_form_of_outcomes",
    "expected_each_round",
    "expected_in_all",
    "measure",
    "measure_outcomes",
    "noise_curve",
    "product_norm_squared",
    "sgd_noise_std",
    "subspace_motion",
    "sum_of_products_norm_squared",
    "usual_values",
    "with_value",
]
