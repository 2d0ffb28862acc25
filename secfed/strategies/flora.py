"""FLoRA: stack the sites' factors. Known by name, refused under masking.

Reference: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with
Heterogeneous Low-Rank Adaptations", arXiv 2409.05976 (2024).

The coordinator concatenates ``[B_1 ... B_K] @ [A_1; ...; A_K]``. That is exact,
and it hands every site's own factors to the coordinator and to all sites. A sum
does not contain them, so no study of secfed can run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.errors import StudyError
from secfed.strategies.base import HEAD, Needs, ServerState, Strategy
from secfed.types import LORA_A, LORA_B, Tensors

__all__ = ["Flora"]


@dataclass(frozen=True)
class Flora(Strategy):
    """Listed so that a study that names it learns why it is refused."""

    name: ClassVar[str] = "flora"
    title: ClassVar[str] = "stack every site's A and B (refused: needs single updates)"
    reference: ClassVar[str] = "FLoRA, Wang et al. 2024 (arXiv 2409.05976)"
    cost: ClassVar[str] = "refused"
    needs: ClassVar[Needs] = "singles"
    refusal: ClassVar[str] = (
        "it stacks the factors of every site, so the coordinator would have to see "
        "each site's update; secure aggregation reveals only their sum"
    )

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return tensor.endswith((LORA_A, LORA_B)) or tensor.startswith(HEAD)

    def apply(
        self, _state: ServerState, _mean_update: Tensors, _round_number: int, /
    ) -> ServerState:
        """Refuse: the mean of the factors does not determine the stack."""
        raise StudyError("study", "training.method", f"flora: {self.refusal}")
