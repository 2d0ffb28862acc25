"""Head only: the base model stays as it is; the classifier is trained.

Reference: the linear probe, for example Tramèr and Boneh, "Differentially
Private Learning Needs Better Features (or Much More Data)", ICLR 2021.

The baseline that every adapter has to beat at the same epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import HEAD, Needs, ServerState, add_mean
from secfed.types import Adapter, Tensors

__all__ = ["HeadOnly"]


@dataclass(frozen=True)
class HeadOnly:
    """Sites train the classification head and no adapter."""

    name: ClassVar[str] = "head-only"
    title: ClassVar[str] = "train the classification head only (baseline)"
    reference: ClassVar[str] = "linear probe; Tramèr and Boneh, ICLR 2021"
    exact: ClassVar[bool] = True
    needs: ClassVar[Needs] = "sum"
    refusal: ClassVar[str] = ""

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """The head, in every round."""
        return tensor.startswith(HEAD)

    def init(self, adapter: Adapter, _seed: int, /) -> ServerState:
        """Start from the study's initial adapter."""
        return ServerState(adapter=adapter, round=0)

    def apply(
        self, state: ServerState, mean_update: Tensors, round_number: int, /
    ) -> ServerState:
        """Add the mean update; see ``Strategy.apply``."""
        return add_mean(self, state, mean_update, round_number)
