"""The kinds of adapter that a study can name, apart from any model.

What a kind trains decides what may be done with it. The change of a LoRA weight is
the product of two factors, and most aggregation rules are about such products. The
other kinds train vectors or virtual tokens, which enter the model in another way: of
these the plain mean is taken, and nothing else is promised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FOLDING", "KINDS", "OF_ANY_KIND", "REFUSED_KINDS", "AdapterKind", "refusal"]

OF_ANY_KIND: Final = ("fedavg", "local", "head-only")
"""Methods that average, keep or leave out whatever is trained, factor or not."""

FOLDING: Final = ("fedex-lora", "ffa-fresh")
"""Methods that fold a part of every round into the frozen weights."""


@dataclass(frozen=True)
class AdapterKind:
    """One kind of adapter.

    Attributes:
        name: In a study file.
        trains: What is trained, in one line.
        reference: Where it was published.
        has_rank: Whether it has factors, and so ``r`` and ``lora_alpha``.
        is_product: Whether the change of a weight is ``scaling * B @ A``.
        in_modules: Whether it sits in modules; else it changes the model's input.
        by_rules: Whether rules for single layers give exact gradients per record.
            Else they are vectorised over the records (``torch.func``).
        root_scaling: Whether the scaling falls with the root of the rank.
    """

    name: str
    trains: str
    reference: str
    has_rank: bool = False
    is_product: bool = False
    in_modules: bool = True
    by_rules: bool = True
    root_scaling: bool = False

    def scaling(self, r: int, lora_alpha: float) -> float:
        """What the product of the factors is multiplied by; 1 without factors."""
        if not self.has_rank:
            return 1.0
        return lora_alpha / self._of_rank(r)

    def lora_alpha(self, r: int, scaling: float) -> float:
        """The ``lora_alpha`` that gives a scaling at a rank."""
        return scaling * self._of_rank(r)

    def _of_rank(self, r: int) -> float:
        return math.sqrt(r) if self.root_scaling else r


KINDS: Final[Mapping[str, AdapterKind]] = {
    kind.name: kind
    for kind in (
        AdapterKind(
            "lora",
            "two factors per module, scaled by lora_alpha / r",
            "Hu et al., ICLR 2022 (arXiv 2106.09685)",
            has_rank=True,
            is_product=True,
        ),
        AdapterKind(
            "rslora",
            "two factors per module, scaled by lora_alpha / sqrt(r)",
            "Kalajdzievski 2023 (arXiv 2312.03732)",
            has_rank=True,
            is_product=True,
            root_scaling=True,
        ),
        AdapterKind(
            "dora",
            "two factors and a length per output of every module",
            "Liu et al., ICML 2024 (arXiv 2402.09353)",
            has_rank=True,
            by_rules=False,
        ),
        AdapterKind(
            "ia3",
            "one factor per output, or per input of feed-forward modules",
            "Liu et al., NeurIPS 2022 (arXiv 2205.05638)",
            by_rules=False,
        ),
        AdapterKind(
            "prompt",
            "virtual tokens before the text",
            "Lester et al., EMNLP 2021 (arXiv 2104.08691)",
            in_modules=False,
        ),
        AdapterKind(
            "prefix",
            "keys and values of virtual tokens in every layer",
            "Li and Liang, ACL 2021 (arXiv 2101.00190)",
            in_modules=False,
        ),
    )
}

REFUSED_KINDS: Final[Mapping[str, str]] = {
    "bottleneck": (
        "PEFT has no bottleneck adapters, and the library `adapters` that has them "
        "asks for an older transformers than secfed does"
    ),
}
"""Kinds that are known and not offered, and why."""


def refusal(kind: AdapterKind, method: str, quantisation: str | None) -> str:
    """Why a method cannot train this kind on this base; empty when it can."""
    if method not in OF_ANY_KIND and not kind.is_product:
        return (
            f"{method} is about the products B @ A of LoRA's factors, and kind = "
            f"{kind.name!r} trains {kind.trains}; use {' or '.join(OF_ANY_KIND[:2])}"
        )
    if method in FOLDING and quantisation is not None:
        return (
            f"{method} folds a part of every round into the frozen weights, and those "
            f"of a base in {quantisation} would have to be rounded again"
        )
    return ""
