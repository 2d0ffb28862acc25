"""Local: every site trains by itself and sends nothing; a baseline.

Reference: the local baseline of Guo et al., ICLR 2025, arXiv 2410.01463, section 5.

What a federation has to beat at the same epsilon: a site that trains alone pays for
its own noise only once, and gets nothing from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import Needs, SiteView, Strategy
from secfed.types import Adapter

__all__ = ["Local"]


@dataclass(frozen=True)
class Local(Strategy):
    """Sites train the whole adapter, of whatever kind, and keep all of it."""

    name: ClassVar[str] = "local"
    title: ClassVar[str] = "train A and B at every site alone, send nothing (baseline)"
    reference: ClassVar[str] = "baseline of Guo et al., ICLR 2025 (arXiv 2410.01463)"
    cost: ClassVar[str] = "nothing"
    needs: ClassVar[Needs] = "nothing"
    personal: ClassVar[bool] = True

    def trains(self, _tensor: str, _round_number: int, /) -> bool:
        """All that the adapter has, in every round."""
        return True

    def keeps(self, tensor: str, /) -> bool:
        """Everything."""
        return self.trains(tensor, 1)

    def start(self, received: Adapter, site: SiteView, /) -> Adapter:
        """Where the site stopped in the round before."""
        return received.replaced(site.kept)
