"""FedSVD: B is trained and averaged; then A becomes orthonormal again.

Reference: Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated
Learning with LoRA", NeurIPS 2025, arXiv 2505.12805.

After every round ``mean(B) @ A`` is written with its singular value decomposition
``U S V'`` as ``B = U S`` and ``A = V'``, by QR of both factors and a small SVD, never
as a (d, k) matrix. That is exact and post-processing. Round 1 trains from the study's
own A, as in the paper.

**What the rows of A can be.** Only B is trained, so the rows of ``B @ A`` stay in the
row space of the first A for ever; the decomposition picks another orthonormal basis of
the same space. And plain SGD does not see which basis it is. Let ``A = O A0`` and
``B = B0 O'`` with O orthogonal, so that the product is the same. With G the gradient
of one record by the module's weight,

- the gradient by B is ``G A' = (G A0') O'``: its norm, and so its clipping factor, is
  the same, and it moves the product by the same ``G A0' A0``;
- noise z of independent Gaussian numbers moves the product by ``z O A0``, and ``z O``
  has the law of z.

So from round 2 on FedSVD *is* FFA-LoRA with one frozen orthonormal A of the same row
space: the same trajectory without noise, the same law with it. The tests compare the
trajectories. What remains is a step size: PEFT's A has rows of norm about 0.58, and
orthonormal ones make the same learning rate about three times as large a step. The
paper's ablation reports 71.7 for FedSVD against 55.6 for a fixed orthonormal A (MNLI,
epsilon 6), which this identity does not allow for under plain SGD; compare both with
learning rates of their own before you read a difference. Momentum is linear and changes
nothing; Adam scales every number of B by itself, so that there the basis matters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from secfed.lowrank import truncated
from secfed.strategies.base import HEAD, ServerState, Strategy
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = ["FedSvd"]


@dataclass(frozen=True)
class FedSvd(Strategy):
    """Sites train B; the coordinator makes the rows of A orthonormal again."""

    name: ClassVar[str] = "fedsvd"
    title: ClassVar[str] = "train B; A becomes the right singular vectors of B A"
    reference: ClassVar[str] = "FedSVD, Lee et al., NeurIPS 2025 (arXiv 2505.12805)"
    cost: ClassVar[str] = "n d r + SVD(d, r)"

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """B and the head, in every round."""
        return tensor.endswith(LORA_B) or tensor.startswith(HEAD)

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The mean is added, then every product is factored again."""
        after = super().apply(state, mean, round_number)
        return replace(after, adapter=_orthonormal(after.adapter))


def _orthonormal(adapter: Adapter) -> Adapter:
    """The same products, with orthonormal rows in every A."""
    factors = {}
    for module in adapter.modules():
        a, b = adapter.tensors[module + LORA_A], adapter.tensors[module + LORA_B]
        made = truncated(b, a, len(a), split="left")
        factors[module + LORA_A] = made.a.astype(np.float32)
        factors[module + LORA_B] = made.b.astype(np.float32)
    return adapter.replaced(factors)
