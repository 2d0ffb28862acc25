"""FedSA-LoRA: both factors are trained, one is averaged, the other stays at the site.

Reference: Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated
Learning", ICLR 2025, arXiv 2410.01463 (section 4: A learns what is common, B what is
the site's own).

Sites end with models of their own, ``B_i @ mean(A)``, so there is no product to be
averaged and nothing inexact. The factor that stays is clipped and noised together with
the one that is sent: A's gradient is a product with B, and a B that had seen records
without noise would leak them through A.

``fedsa-lora-b`` shares B instead. It is the ablation that shows which factor is worth
sharing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import HEAD, SiteView, Strategy
from secfed.types import LORA_A, LORA_B, Adapter

__all__ = ["FedSaLora", "FedSaLoraB"]


@dataclass(frozen=True)
class FedSaLora(Strategy):
    """Sites train A and B, send A, and keep B."""

    name: ClassVar[str] = "fedsa-lora"
    title: ClassVar[str] = "train A and B, average A; B stays at the site"
    reference: ClassVar[str] = "FedSA-LoRA, Guo et al., ICLR 2025 (arXiv 2410.01463)"
    cost: ClassVar[str] = "n k r"
    personal: ClassVar[bool] = True

    own: ClassVar[str] = LORA_B

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return tensor.endswith((LORA_A, LORA_B)) or tensor.startswith(HEAD)

    def keeps(self, tensor: str, /) -> bool:
        """The site's own factor."""
        return tensor.endswith(self.own)

    def start(self, received: Adapter, site: SiteView, /) -> Adapter:
        """The shared factor with the site's own one."""
        return received.replaced(site.kept)


@dataclass(frozen=True)
class FedSaLoraB(FedSaLora):
    """Sites train A and B, send B, and keep A."""

    name: ClassVar[str] = "fedsa-lora-b"
    title: ClassVar[str] = "train A and B, average B; A stays at the site (ablation)"
    reference: ClassVar[str] = "ablation of Guo et al., ICLR 2025 (arXiv 2410.01463)"
    cost: ClassVar[str] = "n d r"
    own: ClassVar[str] = LORA_A
