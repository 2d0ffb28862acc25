"""The tables of a finished run as Markdown, for pages and notes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from secfed.report.conclusion import conclude
from secfed.report.grid_conclusion import conclude_grid
from secfed.report.grid_reading import is_grid_directory, read_grid
from secfed.report.grid_tables import difference_table, noise_table, score_table
from secfed.report.reading import read_run
from secfed.report.results import Comparison
from secfed.report.tables import beside_rows, category_rows, comparison_rows

__all__ = ["run_markdown"]

_BESIDE: Final = "Other scores, beside those that decide:"


def run_markdown(directory: str | Path) -> str:
    """What a run, a comparison or a grid found: tables, then the conclusion.

    Raises:
        RunDirectoryError: The directory is not a run.
    """
    if is_grid_directory(directory):
        grid = read_grid(directory)
        found = (score_table(grid), noise_table(grid), difference_table(grid))
        tables = [_table(part.headings, part.rows) for part in found if part.rows]
        return "\n\n".join([*tables, conclude_grid(grid)]) + "\n"
    comparison = read_run(directory).comparison
    return "\n\n".join([*_comparison(comparison), conclude(comparison)]) + "\n"


def _comparison(comparison: Comparison) -> list[str]:
    parts = [_scores(comparison)]
    if beside := beside_rows(comparison):
        parts += [_BESIDE, _table(beside[0], beside[1:])]
    if categories := category_rows(comparison):
        parts += [f"{comparison.measure.name} by category:"]
        parts += [_table(categories[0], categories[1:])]
    return parts


def _scores(comparison: Comparison) -> str:
    columns = {
        "name": "arm",
        "score": comparison.measure.headings[0],
        "second": comparison.measure.headings[1],
        "epsilon": "epsilon, worst site",
        "trainable": "trainable",
        "up": "MB up",
        "seconds": "seconds",
    }
    rows = [[row.cells[key] for key in columns] for row in comparison_rows(comparison)]
    return _table(tuple(columns.values()), rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    lines = [[_cell(cell) for cell in line] for line in (headings, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _cell(text: str) -> str:
    """Text that can neither end its cell nor become markup."""
    text = html.escape(text, quote=False).replace("\\", "\\\\")
    return text.replace("|", "\\|").replace("\n", " ")
