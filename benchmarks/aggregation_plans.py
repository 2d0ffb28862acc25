"""How much of the coordinator's aggregation is measured: the whole, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FULL", "QUICK", "Plan", "Rounding", "Study"]


@dataclass(frozen=True)
class Study:
    """Sites with adapters of one rank on square modules."""

    sites: int
    size: int  # rows and columns of a module
    rank: int = 8

    @property
    def ranks(self) -> list[int]:
        """One rank per site."""
        return [self.rank] * self.sites

    def __str__(self) -> str:
        return f"{self.sites} sites, rank {self.rank}, {self.size:,} x {self.size:,}"


@dataclass(frozen=True)
class Rounding:
    """A study whose sketches are rounded, and how often."""

    study: Study
    seeds: int


@dataclass(frozen=True)
class Plan:
    """Sizes of every part of the benchmark."""

    modules: int
    means: Study
    products: tuple[tuple[Study, int], ...]  # with how many modules are measured
    sizes: tuple[Study, ...]
    rounding: tuple[Rounding, ...]
    narrow: Study
    narrow_widths: tuple[tuple[int, int], ...]  # of one sum: right and left
    narrow_share: float  # of the dense numbers, for one sum of narrow sketches
    two_sums_width: int
    more_widths: tuple[int, ...]  # of two sums, in the table about narrow ones
    repetitions: int


_RANK: Final = 8
_ROBERTA_LARGE: Final = 1024  # query and value of 24 layers, 1,024 wide

FULL: Final = Plan(
    modules=48,
    means=Study(100, _ROBERTA_LARGE),
    products=((Study(10, _ROBERTA_LARGE), 48), (Study(100, _ROBERTA_LARGE), 6)),
    sizes=tuple(
        Study(sites, size) for size in (384, 768, 1024, 4096) for sites in (4, 10, 100)
    ),
    rounding=(
        Rounding(Study(4, 384), 20),
        Rounding(Study(4, 1024), 20),
        Rounding(Study(10, 384), 20),
        Rounding(Study(10, 1024), 20),
        Rounding(Study(100, 384), 20),
        Rounding(Study(100, 1024), 3),
    ),
    narrow=Study(100, _ROBERTA_LARGE),
    narrow_widths=((16, 24), (17, 35), (85, 171), (124, 132), (341, 683)),
    narrow_share=0.25,
    two_sums_width=2 * _RANK,
    more_widths=(2 * _RANK, 4 * _RANK, 8 * _RANK),
    repetitions=9,
)

QUICK: Final = Plan(
    modules=3,
    means=Study(10, 64),
    products=((Study(3, 160), 3), (Study(30, 160), 2)),
    sizes=(Study(4, 384), Study(100, 1024)),
    rounding=(Rounding(Study(4, 128), 3), Rounding(Study(30, 128), 2)),
    narrow=Study(15, 160),
    narrow_widths=((16, 24), (30, 61)),
    narrow_share=0.25,
    two_sums_width=2 * _RANK,
    more_widths=(2 * _RANK,),
    repetitions=3,
)
