"""FedAvg on LoRA factors (FedIT): average A and B, each by itself.

References: McMahan et al., "Communication-Efficient Learning of Deep Networks
from Decentralized Data", arXiv 1602.05629 (2016); Zhang et al., "Towards
Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024.

Biased: ``mean(B) @ mean(A)`` is not ``mean(B @ A)``. With u the deviations from
the means, the error is ``-mean(uB @ uA)``; ``amplification.measure`` reports it.

It is also the rule for adapters that are no products: the plain mean of what is
trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import Strategy

__all__ = ["FedAvg"]


@dataclass(frozen=True)
class FedAvg(Strategy):
    """Sites train both factors; the coordinator averages each."""

    name: ClassVar[str] = "fedavg"
    title: ClassVar[str] = "train A and B, average each factor"
    reference: ClassVar[str] = "McMahan et al. 2016; FedIT, Zhang et al., ICASSP 2024"
    cost: ClassVar[str] = "n r (d + k)"
    exact: ClassVar[bool] = False

    def trains(self, _tensor: str, _round_number: int, /) -> bool:
        """All that the adapter has, of whatever kind, in every round."""
        return True
