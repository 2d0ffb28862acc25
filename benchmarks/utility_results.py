"""From cells to a table, differences to the head, and sentences.

Intervals are Student's t over seeds. They say how much a result moves with the
adapter's start, the batches and the noise; the test records are the same in all
seeds, so they do not say how it would move on other test records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from benchmarks.output import markdown_table
from benchmarks.utility_recipes import HEAD, METHODS
from benchmarks.utility_training import Cell, Result

__all__ = [
    "Interval",
    "cell_rows",
    "differences",
    "summary",
    "to_markdown",
    "verdict",
]

_CONFIDENCE = 0.95
_POINTS = 100

Results = Mapping[Cell, Result]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half of its 95 % interval; None with a single seed."""

    mean: float
    half: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Student's t: ``mean +- t(0.975, n - 1) * s / sqrt(n)``."""
        count = len(values)
        if count == 1:
            return cls(values[0], None, 1)
        quantile = float(student.ppf((1 + _CONFIDENCE) / 2, count - 1))
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(count), count)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is on one side of zero, else 0."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1

    def percent(self, *, signed: bool = False) -> str:
        """In percentage points with one decimal: a seed moves more than that."""
        mean = f"{_POINTS * self.mean:{'+' if signed else ''}.1f}"
        return mean if self.half is None else f"{mean} ± {_POINTS * self.half:.1f}"


def _cells(results: Results, method: str, epsilon: float) -> dict[int, float]:
    return {
        cell.seed: result.accuracy
        for cell, result in results.items()
        if (cell.method, cell.epsilon) == (method, epsilon)
    }


def epsilons(results: Results) -> list[float]:
    """Every epsilon, smallest first."""
    return sorted({cell.epsilon for cell in results})


def differences(results: Results) -> dict[tuple[str, float], Interval]:
    """Adapter minus head at the same epsilon and seed, over seeds that have both."""
    found = {}
    for epsilon in epsilons(results):
        head = _cells(results, HEAD, epsilon)
        for method in METHODS:
            own = _cells(results, method, epsilon)
            both = sorted(own.keys() & head.keys())
            if method != HEAD and both:
                pairs = [own[seed] - head[seed] for seed in both]
                found[method, epsilon] = Interval.of(pairs)
    return found


def summary(results: Results) -> list[dict[str, Any]]:
    """One row per method, one column per epsilon, accuracy in per cent."""
    rows = []
    for method in METHODS:
        row: dict[str, Any] = {"method": method}
        for epsilon in epsilons(results):
            if values := _cells(results, method, epsilon):
                interval = Interval.of(list(values.values()))
                row[_column(epsilon)] = interval.percent()
        rows.append(row)
    for method in METHODS[:-1]:
        row = {"method": f"{method} minus head"}
        for (name, epsilon), interval in differences(results).items():
            if name == method:
                row[_column(epsilon)] = interval.percent(signed=True)
        rows.append(row)
    return [row for row in rows if len(row) > 1]


def _column(epsilon: float) -> str:
    return "no privacy" if math.isinf(epsilon) else f"epsilon {epsilon:g}"


def verdict(title: str, results: Results) -> list[str]:
    """What the differences say, one sentence per epsilon, and what to use."""
    found = differences(results)
    lines = [
        _sentence(title, epsilon, {m: d for (m, e), d in found.items() if e == epsilon})
        for epsilon in epsilons(results)
        if any(e == epsilon for _, e in found)
    ]
    private = {key: own for key, own in found.items() if math.isfinite(key[1])}
    if not private or any(own.half is None for own in private.values()):
        return [*lines, "One seed shows no difference to be relied on."]
    advice = ", ".join(
        f"at epsilon {epsilon:g} {_best(epsilon, private)}"
        for epsilon in dict.fromkeys(epsilon for _, epsilon in private)
    )
    return [*lines, f"{advice[0].upper()}{advice[1:]}."]


def _best(epsilon: float, found: Mapping[tuple[str, float], Interval]) -> str:
    better = [m for (m, e), own in found.items() if e == epsilon and own.sign > 0]
    if not better:
        return "use the head alone: no adapter is shown to be better"
    return f"use {' or '.join(better)}"


def _sentence(title: str, epsilon: float, found: Mapping[str, Interval]) -> str:
    where = "Without privacy" if math.isinf(epsilon) else f"At epsilon {epsilon:g}"
    parts = [f"{method} {_compared(own)}" for method, own in found.items()]
    return f"{title}. {where}, {'; '.join(parts)}."


def _compared(own: Interval) -> str:
    size = f"{_POINTS * abs(own.mean):.1f} points"
    if own.half is None:
        return f"is {size} {'above' if own.mean > 0 else 'below'} the head in one seed"
    if own.sign == 0:
        return f"is not shown to differ from the head ({own.percent(signed=True)})"
    words = "beats the head by" if own.sign > 0 else "loses to the head by"
    return f"{words} {size} (± {_POINTS * own.half:.1f})"


def to_markdown(found: Mapping[str, Any]) -> str:
    """The part of ``docs/utility.md`` between its marks."""
    parts = [f"```console\n$ {found['command']}\n```"]
    for own in found["sets"]:
        parts += [
            f"### {own['title']}",
            _facts(own),
            markdown_table(own["rows"]),
            "\n".join(f"- {line}" for line in own["verdict"]),
            "Every cell, in the order of the seeds:",
            markdown_table(own["cells"]),
        ]
        if own["tried"]:
            parts += ["Tried on the tuning part:", markdown_table(own["tried"])]
    parts += [f"Left out: {line}." for line in found["left_out"]]
    return "\n\n".join(parts) + "\n"


def _facts(own: Mapping[str, Any]) -> str:
    sites = ", ".join(f"{units:,}" for units in own["units"])
    return (
        f"Private records by site: {sites}; test records: {own['test']:,}. delta "
        f"{own['delta']:g} at every site. Accuracy in per cent, mean and 95 % interval "
        f"over {own['seeds']} seeds; the constant answer has "
        f"{_POINTS * own['majority']:.1f}. With {own['test']:,} test records a score "
        f"has a standard error of {own['test_error']:.1f} points on its own, which "
        f"these intervals leave out. Recipes chosen on: {own['tuned']}."
    )


def cell_rows(results: Results) -> list[dict[str, Any]]:
    """Seeds side by side, with what was spent."""
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    for cell, result in _ordered(results):
        row = rows.setdefault(
            (cell.method, cell.epsilon),
            {
                "method": cell.method,
                "privacy": _column(cell.epsilon),
                "accuracies": "",
                "spent": "-" if result.epsilon is None else f"{result.epsilon:.2f}",
                "minutes": 0.0,
            },
        )
        shown = f"{_POINTS * result.accuracy:.1f}"
        row["accuracies"] = f"{row['accuracies']} {shown}".strip()
        row["minutes"] += result.seconds / 60
    return [{**row, "minutes": f"{row['minutes']:.1f}"} for row in rows.values()]


def _ordered(results: Results) -> Iterable[tuple[Cell, Result]]:
    return sorted(
        results.items(),
        key=lambda item: (
            item[0].epsilon,
            METHODS.index(item[0].method),
            item[0].seed,
        ),
    )
