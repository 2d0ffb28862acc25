"""Linear algebra on products of thin matrices, without the wide product.

Everything here is a function of its arguments: float64 inside, nothing random but
what a public seed says, no file, no clock. Letters as in LoRA (Hu et al., ICLR 2022):
a product ``B @ A`` has B of shape (d, r) and A of shape (r, k).
"""

from __future__ import annotations

from secfed.lowrank.alignment import align, rotation
from secfed.lowrank.correction import ridge_correction
from secfed.lowrank.matrices import Factors, Matrix, Split
from secfed.lowrank.products import (
    ProductSVD,
    product_norm,
    product_svd,
    truncated,
    truncated_dense,
)
from secfed.lowrank.sketches import (
    Projections,
    Recovered,
    Sketch,
    from_sketches,
    projections,
    sketch,
)
from secfed.lowrank.two_sums import column_basis, from_projection, project
from secfed.lowrank.widths import Widths, choose_widths, narrow_widths

__all__ = [
    "Factors",
    "Matrix",
    "ProductSVD",
    "Projections",
    "Recovered",
    "Sketch",
    "Split",
    "Widths",
    "align",
    "choose_widths",
    "column_basis",
    "from_projection",
    "from_sketches",
    "narrow_widths",
    "product_norm",
    "product_svd",
    "project",
    "projections",
    "ridge_correction",
    "rotation",
    "sketch",
    "truncated",
    "truncated_dense",
]
