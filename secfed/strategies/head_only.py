"""Head only: the base model stays as it is; the classifier is trained.

Reference: the linear probe, for example Tramèr and Boneh, "Differentially
Private Learning Needs Better Features (or Much More Data)", ICLR 2021.

The baseline that every adapter has to beat at the same epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import HEAD, SiteView, Strategy

__all__ = ["HeadOnly"]


@dataclass(frozen=True)
class HeadOnly(Strategy):
    """Sites train the classification head and no adapter."""

    name: ClassVar[str] = "head-only"
    title: ClassVar[str] = "train the classification head only (baseline)"
    reference: ClassVar[str] = "linear probe; Tramèr and Boneh, ICLR 2021"
    cost: ClassVar[str] = "n times the head"
    unequal_ranks: ClassVar[bool] = True

    def rank_at(self, _site: SiteView, /) -> None:
        """None: no factor is trained, so that a site's rank cuts nothing."""

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """The head, in every round."""
        return tensor.startswith(HEAD)
