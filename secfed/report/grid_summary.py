"""What a grid's cells say: scores by method, differences, noise and traffic."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from secfed.report.conclusion import (
    PairedDifference,
    Scores,
    mean_interval,
    pair_scores,
)
from secfed.report.grid_reading import CellRecord, GridRecord
from secfed.report.measures import Measure
from secfed.report.results import Arm

__all__ = [
    "MethodResult",
    "Verdicts",
    "cell_differences",
    "cell_results",
    "mean_noise",
    "summary_json",
    "verdicts",
]


@dataclass(frozen=True)
class MethodResult:
    """One method in one cell, over its seeds.

    Attributes:
        cell: Where.
        method: Which.
        arms: One per seed.
    """

    cell: CellRecord
    method: str
    arms: tuple[Arm, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        """The main score of every seed."""
        found = (arm.final.main(self.measure) for arm in self.arms)
        return tuple(score for score in found if score is not None)

    @property
    def measure(self) -> Measure:
        """Which score it is."""
        return self.cell.measure

    @property
    def score(self) -> float | None:
        """The score of the mean merit: of perplexities the geometric mean."""
        if not self.scores:
            return None
        return self.measure.value(
            statistics.fmean(map(self.measure.merit, self.scores))
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t-interval around it, of scores; None below three seeds."""
        found = mean_interval([self.measure.merit(score) for score in self.scores])
        if found is None:
            return None
        low, high = sorted(self.measure.value(merit) for merit in found)
        return low, high

    @property
    def megabytes(self) -> float | None:
        """Mean traffic of all sites together, up and down."""
        return _mean(
            (arm.bytes_up + arm.bytes_down) / 1e6
            for arm in self.arms
            if arm.bytes_up is not None and arm.bytes_down is not None
        )

    @property
    def noise(self) -> float | None:
        """Mean noise energy per round; None where there is none."""
        return _mean(n for arm in self.arms if (n := mean_noise(arm)) is not None)

    def noise_per_round(self) -> dict[int, float]:
        """Round to mean noise energy over the seeds."""
        found: dict[int, list[float]] = {}
        for arm in self.arms:
            for number, noise in arm.noise_rounds:
                if noise.measured is not None:
                    found.setdefault(number, []).append(noise.measured)
        return {number: statistics.fmean(values) for number, values in found.items()}


@dataclass(frozen=True)
class Verdicts:
    """One pair of methods over all cells.

    Attributes:
        first: A method.
        second: Another.
        differences: Cell to the difference of the two there.
    """

    first: str
    second: str
    differences: tuple[tuple[CellRecord, PairedDifference], ...]

    def cells(self, verdict: str) -> tuple[CellRecord, ...]:
        """The cells with this verdict."""
        return tuple(c for c, pair in self.differences if pair.verdict == verdict)


def cell_results(cell: CellRecord) -> tuple[MethodResult, ...]:
    """The methods of a cell, in order of appearance."""
    arms: dict[str, list[Arm]] = {}
    for arm in cell.compared:
        arms.setdefault(arm.method, []).append(arm)
    return tuple(MethodResult(cell, name, tuple(own)) for name, own in arms.items())


def cell_differences(cell: CellRecord) -> tuple[PairedDifference, ...]:
    """Every pair of methods of a cell, paired by seed."""
    scores: dict[str, dict[int, float]] = {}
    for arm in cell.compared:
        score = arm.final.main(cell.measure)
        if score is not None:
            scores.setdefault(arm.method, {})[arm.seed] = cell.measure.merit(score)
    typed: Scores = scores
    return pair_scores(typed, cell.measure)


def verdicts(cells: Iterable[CellRecord]) -> tuple[Verdicts, ...]:
    """Every pair of methods over finished cells."""
    found: dict[tuple[str, str], list[tuple[CellRecord, PairedDifference]]] = {}
    for cell in cells:
        for pair in cell_differences(cell):
            found.setdefault((pair.first, pair.second), []).append((cell, pair))
    return tuple(Verdicts(*names, tuple(pairs)) for names, pairs in found.items())


def mean_noise(arm: Arm) -> float | None:
    """An arm's measured noise energy, mean over its rounds."""
    return _mean(n.measured for _, n in arm.noise_rounds if n.measured is not None)


def summary_json(grid: GridRecord) -> dict[str, Any]:
    """The scores and differences of all cells as JSON values.

    Differences are of merits: of accuracies, or of mean log-likelihoods (minus the
    logarithm of the perplexity). Above zero, the first method is better.
    """
    results = [result for cell in grid.finished for result in cell_results(cell)]
    return {
        "scores": [_result_json(result) for result in results],
        "differences": [
            _difference_json(cell, pair)
            for cell in grid.finished
            for pair in cell_differences(cell)
        ],
    }


def _result_json(result: MethodResult) -> dict[str, Any]:
    return {
        "cell": result.cell.name,
        "method": result.method,
        "seeds": [arm.seed for arm in result.arms],
        result.measure.key: result.score,
        "interval_95": _listed(result.interval),
        "noise_energy": result.noise,
        "megabytes": result.megabytes,
    }


def _difference_json(cell: CellRecord, pair: PairedDifference) -> dict[str, Any]:
    return {
        "cell": cell.name,
        "first": pair.first,
        "second": pair.second,
        "seeds": list(pair.seeds),
        "mean": pair.mean,
        "interval_95": _listed(pair.interval),
        "verdict": pair.verdict,
    }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None
