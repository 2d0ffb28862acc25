"""LoRA-FAIR: average the factors, then correct B towards the mean product.

Reference: Bian, Wang, Zhang and Xu, "LoRA-FAIR: Federated LoRA Fine-Tuning with
Aggregation and Initialization Refinement", ICCV 2025, arXiv 2411.14961.

The coordinator looks for the small dB that brings ``(B + dB) A`` to ``mean(B_i A_i)``,
where A and B are the means. The paper takes gradient steps on a cosine distance with a
penalty on dB. Here the distance is squared, so the answer is that of ridge regression
(``secfed.lowrank.correction``), and ``penalty`` is another number than the paper's.

The correction needs ``mean(B_i A_i) A'`` (out, r) only, but A is not known before the
sum. So a site sends its dense product in the same sum: ``out * in`` numbers for a
module beside the ``r (out + in)`` of its factors. A second sum of ``B_i (A_i A')``,
after A was published, would need ``out * r`` instead: for 384 x 384 and r = 8 a site
would send 9,216 numbers and not 153,600. It is not done because one update must not
enter two sums (PITFALLS 25): if a site dropped out in between, their difference would
show its update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secfed.lowrank import ridge_correction
from secfed.strategies.base import (
    ServerState,
    Shapes,
    Strategy,
    moved,
    trained_names,
)
from secfed.strategies.products import (
    factors_of,
    mean_product,
    product_changes,
    product_shapes,
    trains_both,
)
from secfed.types import LORA_B, Adapter, Tensors

__all__ = ["LoraFair"]


@dataclass(frozen=True)
class LoraFair(Strategy):
    """Sites train A and B and send A, B and ``B @ A``.

    Attributes:
        penalty: On the squared norm of the correction, beside the squared distance of
            the products. PEFT's initial A has squared singular values of about 1/3.
    """

    name: ClassVar[str] = "lora-fair"
    title: ClassVar[str] = (
        "train A and B, average both, then correct B towards the mean of B A (ridge)"
    )
    reference: ClassVar[str] = "LoRA-FAIR, Bian et al., ICCV 2025 (arXiv 2411.14961)"
    cost: ClassVar[str] = "n r (d + k) + n d k + d k r"
    exact: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    penalty: float = 0.01

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return trains_both(tensor)

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
        """The means of the factors, with B corrected.

        Raises:
            ValueError, RoundAbortedError: As in every rule.
        """
        self.check(state, mean, round_number)
        before = state.adapter
        names = trained_names(self, before, round_number)
        after = moved(before, {name: mean[name] for name in names})
        correction = {}
        for module in before.modules():
            pair = factors_of(after, module)
            product = mean_product(before, mean, module)
            found = ridge_correction(product, pair.b, pair.a, self.penalty)
            correction[module + LORA_B] = found.astype(np.float32)
        return ServerState(moved(after, correction), round_number, state.memory)
