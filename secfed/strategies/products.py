"""Products of factors in a masked sum: what several rules share. Not a rule.

A sum of factors is not enough where ``mean(B_i @ A_i)`` is wanted. These rules send
the product itself, relative to the product of the adapter that was received, so that
the ring encodes an update: ``mean(B_i A_i) = B A + mean(B_i A_i - B A)``.

Products are those of the bare factors, without ``scaling``, which is the same at all
sites. A product of noised factors is post-processing of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secfed.lowrank import Factors, Matrix
from secfed.strategies.base import HEAD, moved
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = [
    "PRODUCT",
    "cut_to_rank",
    "factors_of",
    "head_of",
    "mean_product",
    "product_changes",
    "product_shapes",
    "trains_both",
    "with_factors",
]

PRODUCT = ".product"
"""Suffix of a module's product (out, in) in a payload."""


def trains_both(tensor: str) -> bool:
    """Whether a rule that trains both factors and the head trains this tensor."""
    return tensor.endswith((LORA_A, LORA_B)) or tensor.startswith(HEAD)


def head_of(tensors: Tensors) -> Tensors:
    """The classifier's part of a change or of a mean."""
    return {n: value for n, value in tensors.items() if n.startswith(HEAD)}


def factors_of(adapter: Adapter, module: str) -> Factors:
    """One module's factors in float64."""
    b, a = adapter.tensors[module + LORA_B], adapter.tensors[module + LORA_A]
    return Factors(b.astype(np.float64), a.astype(np.float64))


def with_factors(adapter: Adapter, found: dict[str, Factors]) -> Adapter:
    """The adapter with some modules' factors replaced, float32."""
    changed = {}
    for module, pair in found.items():
        changed[module + LORA_B] = pair.b.astype(np.float32)
        changed[module + LORA_A] = pair.a.astype(np.float32)
    return adapter.replaced(changed)


def product_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every module's product, in wire order."""
    return {
        module + PRODUCT: (
            adapter.tensors[module + LORA_B].shape[0],
            adapter.tensors[module + LORA_A].shape[1],
        )
        for module in adapter.modules()
    }


def product_changes(
    received: Adapter,
    start: Adapter,
    change: Tensors,
    modules: Sequence[str] | None = None,
) -> Tensors:
    """Products after training less those of the received adapter; None: all modules."""
    own = moved(start, change)
    return {
        module + PRODUCT: (
            factors_of(own, module).dense() - factors_of(received, module).dense()
        ).astype(np.float32)
        for module in (received.modules() if modules is None else modules)
    }


def mean_product(before: Adapter, mean: Tensors, module: str) -> Matrix:
    """The mean of the sites' products behind the mean of their changes."""
    return factors_of(before, module).dense() + mean[module + PRODUCT]


def cut_to_rank(adapter: Adapter, rank: int | None) -> Adapter:
    """The adapter with both factors zero beyond a rank; None: as it is.

    Where the coordinator made the factors by singular values, largest first, this is
    the best approximation of the product that the rank allows.
    """
    if rank is None:
        return adapter
    cut = {}
    for module in adapter.modules():
        pair = factors_of(adapter, module)
        pair.b[:, rank:] = 0.0
        pair.a[rank:] = 0.0
        cut[module] = pair
    return with_factors(adapter, cut)
