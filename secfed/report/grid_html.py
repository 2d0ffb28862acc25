"""A grid's ``report.html``, tables and summary, rebuilt from its run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json
from secfed.errors import RunDirectoryError
from secfed.report.grid_charts import grid_charts
from secfed.report.grid_conclusion import conclude_grid
from secfed.report.grid_reading import GRID, GridRecord, read_grid
from secfed.report.grid_rules import broken_rules, fairness_rules
from secfed.report.grid_summary import summary_json
from secfed.report.grid_tables import (
    difference_table,
    grid_csv,
    grid_latex,
    noise_table,
    score_table,
)
from secfed.report.html import page_environment, write_page
from secfed.report.tables import UNKNOWN, round_up

__all__ = ["build_grid_page", "cost_of_all", "render_grid", "write_grid_report"]

_TEMPLATE = "grid.html.j2"


def write_grid_report(directory: str | Path) -> dict[str, Any]:
    """Add the summary to ``grid.json`` and write the CSV, LaTeX and HTML beside it.

    Returns:
        The content of ``grid.json``.

    Raises:
        RunDirectoryError: The directory is no grid, or a rule of fair comparison is
            broken.
    """
    grid = read_grid(directory)
    if broken := broken_rules(grid):
        listed = "; ".join(f"{rule.name}: {rule.text}" for rule in broken)
        raise RunDirectoryError(f"{directory}: not a fair comparison: {listed}")
    value = {**grid.source, **summary_json(grid), "conclusion": conclude_grid(grid)}
    value["rules"] = [
        {"name": rule.name, "kept": rule.kept, "text": rule.text}
        for rule in fairness_rules(grid)
    ]
    texts = {
        GRID: canonical_json(value).decode() + "\n",
        "grid.csv": grid_csv(grid),
        "grid.tex": grid_latex(grid),
    }
    for name, text in texts.items():
        (grid.directory / name).write_text(text, encoding="utf-8", newline="")
    build_grid_page(directory)
    return value


def build_grid_page(directory: str | Path, out: str | Path | None = None) -> Path:
    """Write the grid's page and say where; as ``html.build_report``."""
    grid = read_grid(directory)
    return write_page(render_grid(grid), grid.directory, grid.manifest, out)


def render_grid(grid: GridRecord) -> str:
    """The report as one HTML text; its links lead to the cells' reports."""
    tables = [score_table(grid), noise_table(grid), difference_table(grid)]
    return (
        page_environment()
        .get_template(_TEMPLATE)
        .render(
            grid=grid,
            headline=_headline(grid),
            cost=cost_of_all(grid),
            conclusion=conclude_grid(grid),
            rules=fairness_rules(grid),
            tables=[table for table in tables if table.rows],
            charts=grid_charts(grid),
        )
    )


def cost_of_all(grid: GridRecord) -> str:
    """What the whole grid costs people who are in all its records, in words."""
    known = grid.composed_epsilon is not None and grid.delta is not None
    shown = round_up(grid.composed_epsilon or 0.0) if known else UNKNOWN
    at = f"epsilon {shown} at delta {grid.delta:g}" if known else f"epsilon {UNKNOWN}"
    private = sum(
        arm.is_private
        for cell in grid.finished
        if cell.record
        for arm in cell.record.comparison.arms
    )
    arms = f"{private} private arms in {len(grid.finished)} cells"
    if grid.shared_budget:
        return f"All cells were charged to the sites' own budgets: {arms}, {at} in all."
    return (
        f"Every cell has a rehearsal budget of its own. On real records the whole grid "
        f"({arms}) would cost the same people at most {at}: not one cell's epsilon."
    )


def _headline(grid: GridRecord) -> str:
    if grid.simulation_seed is not None:
        return (
            "NOT PRIVATE: a public simulation seed was used, so the noise can be "
            "subtracted by anyone. The numbers show what a private run would do."
        )
    without = [cell.name for cell in grid.cells if not cell.is_private]
    if len(without) == len(grid.cells):
        return "NOT PRIVATE: nothing here was trained with differential privacy."
    text = "A comparison of methods; each private arm has the epsilon of its own cell."
    if without:
        text += f" NOT PRIVATE: the cells with epsilon inf ({', '.join(without)})."
    return text
