"""An arm: what one run, or one line of a comparison, trains."""

from __future__ import annotations

from dataclasses import dataclass

from secfed.report.results import NON_PRIVATE, POOLED
from secfed.study import Study

__all__ = ["Arm"]


@dataclass(frozen=True)
class Arm:
    """One line of a comparison: a study with its method, private or not."""

    name: str
    study: Study
    kind: str = "private"  # "private", "baseline", "non-private" or "pooled"
    seed: int = 0

    @property
    def private(self) -> bool:
        """Whether its sites train under a plan and a budget."""
        return self.kind not in {NON_PRIVATE, POOLED}
