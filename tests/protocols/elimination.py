"""Exact linear algebra over sparse rows, for what combinations of messages tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from math import lcm
from typing import Any

Row = dict[Any, Fraction]
Combination = dict[Any, int]


def kernel(rows: Sequence[Mapping[Any, int]]) -> list[list[int]]:
    """All integer weights with which ``rows`` add up to zero, as a basis."""
    # Each row also carries which row it is; what elimination leaves says how.
    marked = [{**row, ("row", i): 1} for i, row in enumerate(rows)]
    columns = set(chain.from_iterable(rows))
    _, rest = _eliminate(marked, columns)
    found = []
    for row in rest:
        scale = lcm(*(value.denominator for value in row.values()))
        weights = (row.get(("row", i), Fraction(0)) for i in range(len(rows)))
        found.append([int(weight * scale) for weight in weights])
    return found


def independent(combinations: Iterable[Combination]) -> list[Combination]:
    """Some of them, of which all are combinations."""
    kept: list[Combination] = []
    for one in combinations:
        if _rank([*kept, one]) > len(kept):
            kept.append(one)
    return kept


def is_inside(basis: Sequence[Combination], labels: Collection[Any]) -> bool:
    """Whether some non-zero combination of ``basis`` has entries in ``labels`` only."""
    outside = [
        {label: value for label, value in one.items() if label not in labels}
        for one in basis
    ]
    return _rank(outside) < len(basis)


def _rank(rows: Sequence[Mapping[Any, int]]) -> int:
    pivots, _ = _eliminate(rows, set(chain.from_iterable(rows)))
    return len(pivots)


def _eliminate(
    rows: Sequence[Mapping[Any, int]], columns: Collection[Any]
) -> tuple[list[Row], list[Row]]:
    """Rows used up as pivots, and the others with zero in all ``columns``."""
    rest = [{name: Fraction(value) for name, value in row.items()} for row in rows]
    pivots = []
    for column in columns:
        pivot = next((row for row in rest if column in row), None)
        if pivot is None:
            continue
        rest = [row for row in rest if row is not pivot]
        pivots.append(pivot)
        for row in rest:
            if column in row:
                _subtract(row, pivot, row[column] / pivot[column])
    return pivots, rest


def _subtract(row: Row, pivot: Row, factor: Fraction) -> None:
    for name, value in pivot.items():
        row[name] = row.get(name, Fraction(0)) - factor * value
        if not row[name]:
            del row[name]
