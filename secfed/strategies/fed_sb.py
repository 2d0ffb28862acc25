"""Fed-SB: a small core is trained between two fixed bases.

Reference: Singhal et al., "Fed-SB: A Silver Bullet for Extreme Communication
Efficiency and Performance in (Private) Federated LoRA Fine-Tuning", arXiv 2502.15436
(2025). The form ``B @ R @ A`` is LoRA-XS (Balazy et al., arXiv 2405.17604, 2024).

The bases here are the leading singular vectors of the frozen weight ``W0 = U S V'``:
``A = V'`` and ``B = U``, with R at zero. They see no record. The paper takes them from
a gradient on training records instead, and its public code does so without noise; that
would be a release that nothing accounts for.

Exact: ``B mean(R) A = mean(B R A)``. A site sends r * r numbers per module, whatever
the size of W, so ranks of 32 and more stay small.

Scaling. The change is ``scaling * U R V'`` with ``scaling = lora_alpha / r`` as in all
other rules. LoRA-XS multiplies A by the singular values; here both bases stay
orthonormal, so that R's numbers are the change's own coordinates: noise of standard
deviation s in R has the energy ``(scaling * s)**2 * r**2`` in W, the least that r * r
numbers can have, and the learning rate does not depend on the size of W0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secfed.errors import StudyError
from secfed.strategies.base import HEAD, NO_WEIGHTS, BaseWeights, ServerState, Strategy
from secfed.types import LORA_A, LORA_B, LORA_R, Adapter

__all__ = ["FedSb"]


@dataclass(frozen=True)
class FedSb(Strategy):
    """Sites train R and the head; the bases around R never change."""

    name: ClassVar[str] = "fed-sb"
    title: ClassVar[str] = "train an r x r core between singular vectors of the base"
    reference: ClassVar[str] = "Fed-SB, Singhal et al. 2025 (arXiv 2502.15436)"
    cost: ClassVar[str] = "n r^2"
    uses_base: ClassVar[bool] = True

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """The core and the head, in every round."""
        return tensor.endswith(LORA_R) or tensor.startswith(HEAD)

    def init(
        self, adapter: Adapter, _seed: int, base: BaseWeights = NO_WEIGHTS, /
    ) -> ServerState:
        """The bases of every module around a core of zeros.

        Raises:
            ValueError: A module's frozen weight is missing.
            StudyError: The rank is above a module's.
        """
        factors: dict[str, NDArray[np.float32]] = {}
        cores: dict[str, NDArray[np.float32]] = {}
        for module in adapter.modules():
            if module not in base:
                raise ValueError(f"{self.name} needs the frozen weight of {module}")
            rank = len(adapter.tensors[module + LORA_A])
            left, right = _bases(module, base[module], rank)
            factors[module + LORA_A] = right
            factors[module + LORA_B] = left
            cores[module + LORA_R] = np.zeros((rank, rank), np.float32)
        return ServerState(adapter.replaced(factors).with_tensors(cores), round=0)


def _bases(
    module: str, weight: NDArray[np.float32], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The leading singular vectors: (out, r) with orthonormal columns, (r, in) rows."""
    if rank > min(weight.shape):
        raise StudyError(
            "study",
            "adapter.r",
            f"{rank} is above the rank that {module} of shape {weight.shape} can have",
        )
    u, _, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    return u[:, :rank].astype(np.float32), vt[:rank].astype(np.float32)
