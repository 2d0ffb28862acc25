"""FedEx-LoRA: average the factors, and fold what that misses into the weights.

Reference: Singhal, Ponkshe and Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated
and Efficient Fine-Tuning of Foundation Models", ACL 2025, arXiv 2410.09432 (2024).

The product of the means is not the mean of the products. The difference ::

    mean(B_i A_i) - mean(B_i) mean(A_i)

times ``scaling`` is added to ``<module>.merged``, so the change of every weight is the
mean of the sites' changes, up to float32. The price is that a site sends, and every
site receives, a dense matrix for each module beside the factors. (Its best
approximation of a small rank would be cheaper and no longer exact; it is not offered.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secfed.strategies.base import (
    NO_WEIGHTS,
    BaseWeights,
    ServerState,
    Shapes,
    Strategy,
    moved,
    trained_names,
)
from secfed.strategies.products import (
    PRODUCT,
    factors_of,
    mean_product,
    product_changes,
    product_shapes,
    trains_both,
)
from secfed.types import MERGED, Adapter, Tensors

__all__ = ["FedExLora"]


@dataclass(frozen=True)
class FedExLora(Strategy):
    """Sites train A and B and send A, B and ``B @ A``."""

    name: ClassVar[str] = "fedex-lora"
    title: ClassVar[str] = (
        "train A and B, average A, B and B A; the difference goes into the weights"
    )
    reference: ClassVar[str] = "FedEx-LoRA, Singhal et al., ACL 2025 (arXiv 2410.09432)"
    cost: ClassVar[str] = "n r (d + k) + n d k + d k r"
    linear: ClassVar[bool] = False

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return trains_both(tensor)

    def init(
        self, adapter: Adapter, _seed: int, _base: BaseWeights = NO_WEIGHTS, /
    ) -> ServerState:
        """The study's initial adapter, with nothing folded in."""
        merged = {
            name.removesuffix(PRODUCT) + MERGED: np.zeros(shape, np.float32)
            for name, shape in product_shapes(adapter).items()
        }
        return ServerState(adapter=adapter.with_tensors(merged), round=0)

    def payload(self, received: Adapter, start: Adapter, change: Tensors, /) -> Tensors:
        """The change of what was trained, and of every product."""
        return {**change, **product_changes(received, start, change)}

    def shapes(self, adapter: Adapter, round_number: int, /) -> Shapes:
        """Factors and head, then a dense matrix for every module."""
        names = trained_names(self, adapter, round_number)
        trained = {name: adapter.tensors[name].shape for name in names}
        return {**trained, **product_shapes(adapter)}

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The means of the factors; what their product misses is folded in.

        Raises:
            ValueError, RoundAbortedError: As in every rule.
        """
        self.check(state, mean, round_number)
        before = state.adapter
        names = trained_names(self, before, round_number)
        after = moved(before, {name: mean[name] for name in names})
        missed = {}
        for module in before.modules():
            # Of the factors as they are sent: their rounding to float32 counts too.
            product = factors_of(after, module).dense()
            rest = mean_product(before, mean, module) - product
            missed[module + MERGED] = (before.scaling * rest).astype(np.float32)
        return ServerState(moved(after, missed), round_number, state.memory)
