"""FlexLoRA: average the products, then cut the mean to the rank by singular values.

Reference: Bai et al., "Federated Fine-tuning of Large Language Models under
Heterogeneous Tasks and Client Resources", NeurIPS 2024, arXiv 2402.11505.

A site sends its product, dense: out * in numbers for a module, whatever the rank
(``flexlora-sketch`` sends fewer). Their mean is exact; what is lost, is lost when the
coordinator cuts it to rank r.

The mean is cut into ``B = U diag(s)`` and ``A = V'``, largest singular values first.
The rows of A are orthonormal, so a direction that has no weight yet can still be
learned. A site of a smaller rank takes the leading directions, which are the best
approximation of that rank, and trains no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.lowrank import truncated_dense
from secfed.strategies.base import ServerState, Shapes, SiteView, Strategy, moved
from secfed.strategies.products import (
    cut_to_rank,
    head_of,
    mean_product,
    product_changes,
    product_shapes,
    trains_both,
    with_factors,
)
from secfed.types import LORA_A, Adapter, Tensors

__all__ = ["FlexLora"]


@dataclass(frozen=True)
class FlexLora(Strategy):
    """Sites train A and B at their own ranks and send ``B @ A``."""

    name: ClassVar[str] = "flexlora"
    title: ClassVar[str] = (
        "train A and B, average B A; exact, then cut to rank r by singular values"
    )
    reference: ClassVar[str] = "FlexLoRA, Bai et al., NeurIPS 2024 (arXiv 2402.11505)"
    cost: ClassVar[str] = "n d k + SVD(d, k)"
    exact: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    unequal_ranks: ClassVar[bool] = True

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return trains_both(tensor)

    def start(self, received: Adapter, site: SiteView, /) -> Adapter:
        """The leading directions, as many as the site's rank."""
        return cut_to_rank(received, site.rank)

    def payload(self, received: Adapter, start: Adapter, change: Tensors, /) -> Tensors:
        """The change of every product, and of the head."""
        return {**product_changes(received, start, change), **head_of(change)}

    def shapes(self, adapter: Adapter, _round_number: int, /) -> Shapes:
        """A dense matrix for every module, and the head."""
        head = {n: v.shape for n, v in head_of(adapter.tensors).items()}
        return {**product_shapes(adapter), **head}

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The mean product, cut to the rank of the adapter.

        Raises:
            ValueError, RoundAbortedError: As in every rule.
        """
        self.check(state, mean, round_number)
        before = state.adapter
        cut = {
            module: truncated_dense(
                mean_product(before, mean, module),
                len(before.tensors[module + LORA_A]),
                split="left",
            )
            for module in before.modules()
        }
        after = with_factors(moved(before, head_of(mean)), cut)
        return ServerState(after, round_number, state.memory)
