"""What the parts of the aggregation benchmark share: inputs, widths and checks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aggregation_plans import Plan, Study
from benchmarks.sections import Findings, Section
from secfed.lowrank import Factors, Matrix

__all__ = ["Part", "Run", "distance", "public_seed", "site_factors", "stacked"]


@dataclass(kw_only=True)
class Run(Findings):
    """Sizes, and how many results were compared with the dense one."""

    plan: Plan
    results_checked: int = 0

    def check(self, name: str, found: float, allowed: float) -> None:
        """Stop if a result is further from the dense one than it may be."""
        # Written so that NaN stops, too.
        if not found <= allowed:
            raise RuntimeError(f"{name}: off by {found:.1e}, more than {allowed:.1e}")
        self.results_checked += 1


Part = Callable[[Run], Iterator[Section]]
"""Measures, and yields its tables when they are full."""


def public_seed(number: int) -> bytes:
    """The seed of Omega and Psi."""
    return hashlib.sha256(f"secfed/benchmark/sketch/{number}".encode()).digest()


def site_factors(study: Study, number: int, shared: float = 1.0) -> list[Factors]:
    """Each site's factors: numbers of its own, and ``shared`` times common ones."""
    source = np.random.default_rng([number, study.sites, study.size])
    high, wide = (study.size, study.rank), (study.rank, study.size)
    common = source.standard_normal(high), source.standard_normal(wide)
    return [
        Factors(
            shared * common[0] + source.standard_normal(high),
            shared * common[1] + source.standard_normal(wide),
        )
        for _ in range(study.sites)
    ]


def stacked(sites: list[Factors]) -> Factors:
    """The mean of the sites' products, as one product of stacked factors."""
    left = np.hstack([one.b for one in sites]) / len(sites)
    return Factors(left, np.vstack([one.a for one in sites]))


def distance(found: Factors | NDArray[Any], wanted: Matrix) -> float:
    """Relative error in the Frobenius norm."""
    dense = found.dense() if isinstance(found, Factors) else found
    return float(np.linalg.norm(dense - wanted) / np.linalg.norm(wanted))
