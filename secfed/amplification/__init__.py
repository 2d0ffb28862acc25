"""The privacy noise in the weights: what to expect, and what was measured."""

from __future__ import annotations

from secfed.amplification.closed_forms import (
    NoiseLevels,
    closed_form,
    closed_form_mean_of_products,
    sgd_noise_std,
)
from secfed.amplification.measurement import (
    ModuleNoise,
    NoiseReport,
    measure,
    product_norm_squared,
    sum_of_products_norm_squared,
)

__all__ = [
    "ModuleNoise",
    "NoiseLevels",
    "NoiseReport",
    "closed_form",
    "closed_form_mean_of_products",
    "measure",
    "product_norm_squared",
    "sgd_noise_std",
    "sum_of_products_norm_squared",
]
