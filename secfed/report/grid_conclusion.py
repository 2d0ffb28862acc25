"""What a grid allows one to say, and no more.

Verdicts come from each cell's paired intervals. "No difference" is a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secfed.report.conclusion import MIN_SEEDS, join_names
from secfed.report.grid_reading import CellRecord, GridRecord
from secfed.report.grid_summary import Verdicts, verdicts
from secfed.report.results import HEAD_ONLY

__all__ = ["conclude_grid"]

_NAMED_CELLS = 4
"""More cells than this are counted, not named."""

_TOLD_PAIRS = 6
"""Of more pairs than this, those with the yardstick are told."""


def conclude_grid(grid: GridRecord) -> str:
    """The conclusion of a grid, in sentences."""
    if not grid.finished:
        return "No cell has a result, so there is nothing to conclude."
    groups = _groups(grid)
    sentences = _missing(grid)
    if not any(groups.values()):
        sentences.append("Each cell has one method only, so nothing is compared.")
    elif len(grid.seeds) < MIN_SEEDS:
        for label, found in groups.items():
            sentences.append(f"{label}: {'; '.join(map(_ahead, _told(found)))}.")
        sentences += _untold(groups)
        count = "One seed" if len(grid.seeds) == 1 else f"{len(grid.seeds)} seeds"
        sentences.append(
            f"{count} cannot decide which is better; name at least {MIN_SEEDS} in "
            "compare.seeds for intervals."
        )
    else:
        sentences += _decided(groups, len(grid.seeds))
    return " ".join(sentences)


_Groups = Mapping[str, Sequence[Verdicts]]


def _groups(grid: GridRecord) -> _Groups:
    """The pairs of the private cells, and those of the others."""
    private = [cell for cell in grid.finished if cell.is_private]
    others = [cell for cell in grid.finished if not cell.is_private]
    found = {"With privacy": verdicts(private), "Without privacy": verdicts(others)}
    return {label: pairs for label, pairs in found.items() if pairs}


def _missing(grid: GridRecord) -> list[str]:
    gone = [cell.name for cell in grid.cells if cell.record is None]
    if not gone:
        return []
    return [
        f"{len(gone)} of {len(grid.cells)} cells have no result: {join_names(gone)}."
    ]


def _decided(groups: _Groups, seeds: int) -> list[str]:
    """With intervals: what every pair's cells say."""
    found = [entry for entries in groups.values() for entry in entries]
    pairs = [pair for entry in found for _, pair in entry.differences]
    opening = f"Over {seeds} seeds, by 95 % t-intervals of the paired differences in"
    measure = pairs[0].measure
    lower = " (less is better)" if measure.lower_is_better else ""
    sentences = [f"{opening} {measure.name}{lower} of each cell:"]
    if all(pair.verdict == "no difference" for pair in pairs):
        text = f"no difference between any two methods in any cell ({_n(pairs)})."
        sentences.append(text)
    else:
        sentences += [
            f"{label}: {'; '.join(map(_verdict, _told(entries)))}."
            for label, entries in groups.items()
        ]
        sentences += _untold(groups)
    sentences.append(
        f"The {_n(pairs)} are not corrected for being several: at 95 % about one in "
        "twenty would exclude zero by chance alone."
    )
    return sentences


def _told(entries: Sequence[Verdicts]) -> Sequence[Verdicts]:
    """All pairs, or of many those with the yardstick.

    The yardstick is fixed by the study and not by the scores: the private head where
    it ran, else the method that the study names first.
    """
    if len(entries) <= _TOLD_PAIRS:
        return entries
    names = {name for entry in entries for name in (entry.first, entry.second)}
    yardstick = HEAD_ONLY if HEAD_ONLY in names else entries[0].first
    return [entry for entry in entries if yardstick in (entry.first, entry.second)]


def _untold(groups: _Groups) -> list[str]:
    """How many pairs the tables alone show, and how many of them are decided."""
    left = [
        entry
        for entries in groups.values()
        for entry in entries
        if entry not in _told(entries)
    ]
    if not left:
        return []
    decided = sum(bool(e.cells("better") or e.cells("worse")) for e in left)
    found = f", {decided} of them with a difference in some cell" if decided else ""
    return [f"The other {len(left)} pairs are in the table of differences{found}."]


def _n(pairs: Sequence[object]) -> str:
    return f"{len(pairs)} interval" + ("s" if len(pairs) > 1 else "")


def _verdict(entry: Verdicts) -> str:
    total = len(entry.differences)
    parts = []
    for verdict in ("better", "worse"):
        cells = entry.cells(verdict)
        if cells:
            parts.append(f"{verdict} in {_cells(cells, total)}")
    level = entry.cells("no difference")
    if level:
        parts.append(f"no difference in {len(level)} of {total} cells")
    undecided = entry.cells("undecided")
    if undecided:
        parts.append(f"undecided in {len(undecided)} of {total} cells")
    return f"{entry.first} against {entry.second}: {', '.join(parts)}"


def _cells(cells: Sequence[CellRecord], total: int) -> str:
    count = f"{len(cells)} of {total} cells"
    if len(cells) > _NAMED_CELLS:
        return count
    return f"{count} ({join_names([cell.name for cell in cells])})"


def _ahead(entry: Verdicts) -> str:
    """Without intervals: in how many cells which is ahead, and by how much."""
    gaps = [pair.mean for _, pair in entry.differences]
    measure = entry.differences[0][1].measure
    ahead, behind = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    ends = sorted({min(gaps), max(gaps)}, reverse=measure.lower_is_better)
    span = measure.difference(ends[0])
    if len(gaps) > 1:
        span += f" to {measure.difference(ends[-1])}"
    return (
        f"{entry.first} against {entry.second}: ahead in {ahead}, behind in {behind} "
        f"of {len(gaps)} cells ({span} {measure.unit})"
    )
