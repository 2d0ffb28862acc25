"""HetLoRA: unequal ranks, padded with zeros and weighted by the size of the product.

Reference: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device
Foundation Models", EMNLP 2024, arXiv 2401.06432 (2024).

**Weights.** A site counts as much as its product is large, ``S_i = |B_i A_i|`` in the
Frobenius norm. The site computes S from its *noised* factors, so it is post-processing,
and it enters the sum masked: the coordinator learns ::

    sum S_i (B_i - B),   sum S_i (A_i - A),   sum S_i

and divides. There is one S for a site, as in the paper, over all its modules together.
It is divided by the fourth root of how many numbers they have: only ratios matter, and
so both S and what it multiplies stay well inside the ring. The head has no rank and is
averaged with equal weights.

**Ranks.** A site of rank r_i takes the first r_i rows of A and columns of B, trains
them, and the rest of what it sends stands for zeros. As in the paper, zeros pull the
mean towards zero, and a mean of factors is biased as in fedavg.

**Self-pruning.** The paper adds ``lambda * |B_tail| * |A_tail|`` to a site's loss, with
the tail from row ``gamma * r_i`` on, and cuts the tail off after training if it became
smaller than it was. Here the loss stays that of the records, and a step of that term's
gradient is taken once, after the local steps, on the noised factors. To first order
that is the same for ``pull`` = lambda times the learning rate times the local steps.
The new rank stays at the site and follows from noised factors only. Noise alone makes a
tail grow, so under privacy ranks shrink less often than the paper's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from secfed.lowrank import product_norm
from secfed.strategies.base import (
    ServerState,
    Shapes,
    SiteView,
    Strategy,
    moved,
    trained_names,
)
from secfed.strategies.products import (
    cut_to_rank,
    factors_of,
    head_of,
    trains_both,
    with_factors,
)
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = ["RANK", "WEIGHT", "HetLora"]

WEIGHT: Final = "weight"
"""S in a payload, shape (1,)."""

RANK: Final = "rank"
"""What a site keeps: the rank of its next round, shape (1,)."""

_LEAST_WEIGHT: Final = 1e-6
"""Of a mean; below, the ring's rounding would be divided by rounding."""


@dataclass(frozen=True)
class HetLora(Strategy):
    """Sites train A and B at their own ranks and send both, times S, and S.

    Attributes:
        gamma: Which share of its rank a site keeps when it prunes, rounded down but
            at least 1; 1 turns the pruning off.
        pull: The step along the gradient of ``|B_tail| * |A_tail|`` per round.
    """

    name: ClassVar[str] = "hetlora"
    title: ClassVar[str] = (
        "train A and B at unequal ranks, average both with weights |B A|"
    )
    reference: ClassVar[str] = "HetLoRA, Cho et al., EMNLP 2024 (arXiv 2401.06432)"
    cost: ClassVar[str] = "n r (d + k)"
    exact: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    unequal_ranks: ClassVar[bool] = True

    gamma: float = 0.99
    pull: float = 0.001

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return trains_both(tensor)

    def rank_at(self, site: SiteView, /) -> int | None:
        """The rank that the site pruned itself to, if it did."""
        kept = site.kept.get(RANK)
        return site.rank if kept is None else int(kept[0])

    def start(self, received: Adapter, site: SiteView, /) -> Adapter:
        """The first rows of A and columns of B."""
        return cut_to_rank(received, self.rank_at(site))

    def payload(self, received: Adapter, start: Adapter, change: Tensors, /) -> Tensors:
        """The change of both factors times S, of the head, and S."""
        own, _ = self._pruned(start, change)
        weight = np.float32(_size(own))
        sent = {
            name: weight * (own.tensors[name] - received.tensors[name])
            for name in change
            if name.endswith((LORA_A, LORA_B))
        }
        return {**sent, **head_of(change), WEIGHT: np.array([weight], np.float32)}

    def shapes(self, adapter: Adapter, round_number: int, /) -> Shapes:
        """Factors and head at the study's rank, whatever the site's, and S."""
        names = trained_names(self, adapter, round_number)
        return {n: adapter.tensors[n].shape for n in names} | {WEIGHT: (1,)}

    def kept(self, start: Adapter, change: Tensors, _site: SiteView, /) -> Tensors:
        """The rank of the site's next round."""
        _, rank = self._pruned(start, change)
        return {RANK: np.array([rank], np.float32)}

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The means of both factors with weights S; where all S are zero, as before.

        Raises:
            ValueError, RoundAbortedError: As in every rule.
        """
        self.check(state, mean, round_number)
        change = dict(head_of(mean))
        weight = float(mean[WEIGHT][0])
        if weight > _LEAST_WEIGHT:
            factors = [n for n in mean if n.endswith((LORA_A, LORA_B))]
            change |= {name: mean[name] / np.float32(weight) for name in factors}
        return ServerState(moved(state.adapter, change), round_number, state.memory)

    def _pruned(self, start: Adapter, change: Tensors) -> tuple[Adapter, int]:
        """What the site has after the round, and the rank that is left of it."""
        own = moved(start, change)
        rank = _rank_of(own)
        tail = max(1, math.floor(self.gamma * rank))
        own = _pulled(own, tail, self.pull)
        if _tail_size(own, tail) < _tail_size(start, tail):
            return cut_to_rank(own, tail), tail
        return own, rank


def _size(adapter: Adapter) -> float:
    """``|B @ A|`` over all modules, divided by the fourth root of their numbers."""
    pairs = [factors_of(adapter, module) for module in adapter.modules()]
    norm = math.hypot(*(product_norm(pair.b, pair.a) for pair in pairs))
    numbers = sum(len(pair.b) * pair.a.shape[1] for pair in pairs)
    return float(norm / numbers**0.25)


def _rank_of(adapter: Adapter) -> int:
    """How many rows of A or columns of B are in use: those up to the last not zero."""
    used = [1]
    for module in adapter.modules():
        pair = factors_of(adapter, module)
        rows = np.flatnonzero(pair.a.any(axis=1) | pair.b.any(axis=0))
        used += [int(row) + 1 for row in rows]
    return max(used)


def _tail_size(adapter: Adapter, tail: int) -> float:
    """The sum over modules of ``|B_tail| * |A_tail|``."""
    pairs = [factors_of(adapter, module) for module in adapter.modules()]
    return math.fsum(
        float(np.linalg.norm(pair.b[:, tail:]) * np.linalg.norm(pair.a[tail:]))
        for pair in pairs
    )


def _pulled(adapter: Adapter, tail: int, step: float) -> Adapter:
    """One step down the gradient of the tails' sizes, not beyond zero.

    The gradient of ``|B| * |A|`` is ``B |A| / |B|`` in B and ``A |B| / |A|`` in A.
    """
    found = {}
    for module in adapter.modules():
        pair = factors_of(adapter, module)
        b, a = np.linalg.norm(pair.b[:, tail:]), np.linalg.norm(pair.a[tail:])
        if b > 0 and a > 0:
            pair.b[:, tail:] *= max(0.0, 1.0 - step * float(a / b))
            pair.a[tail:] *= max(0.0, 1.0 - step * float(b / a))
        found[module] = pair
    return with_factors(adapter, found)
