"""A grid as tables: for a terminal, as CSV, as LaTeX and as the report's rows."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from secfed.report.grid_reading import CellRecord, GridRecord
from secfed.report.grid_rules import fairness_rules
from secfed.report.grid_summary import MethodResult, cell_differences, cell_results
from secfed.report.results import NON_PRIVATE, POOLED
from secfed.report.tables import COLUMNS, columns_of, csv_lines, format_number

__all__ = [
    "GRID_COLUMNS",
    "SimpleTable",
    "difference_table",
    "grid_csv",
    "grid_latex",
    "grid_terminal",
    "noise_table",
    "score_table",
]

GRID_COLUMNS = ("cell", "cell_epsilon", "cell_alpha", "cell_rank", *COLUMNS)
"""The columns of ``grid.csv``: one line per cell and arm."""

_NONE = "-"


@dataclass(frozen=True)
class SimpleTable:
    """A title, headings and rows of text; the first column names the row."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def score_table(grid: GridRecord) -> SimpleTable:
    """Mean score of every method in every cell, with its interval if known."""
    nothing = grid.measure.reference.removesuffix(" class")
    pooled = [c.name for c in grid.cells if _baseline(c, POOLED) != _NONE]
    last = ("pooled (no federation can run it)",) if pooled else ()
    headings = ("cell", *grid.methods, nothing, "fedavg without privacy", *last)
    rows = []
    for cell in grid.cells:
        results = {result.method: result for result in cell_results(cell)}
        scores = [_score(results.get(method)) for method in grid.methods]
        beside = [_nothing(cell), _baseline(cell, NON_PRIVATE)]
        beside += [_baseline(cell, POOLED)] if pooled else []
        rows.append((cell.title, *scores, *beside))
    title = f"{grid.measure.title} on the public hold-out"
    if grid.measure.lower_is_better:
        title += " (less is better)"
    return SimpleTable(title, headings, tuple(rows))


def noise_table(grid: GridRecord) -> SimpleTable:
    """Noise energy in the weights, mean per round, of the private cells."""
    rows = []
    for cell in grid.finished:
        results = {result.method: result for result in cell_results(cell)}
        shown = [
            format_number(results[m].noise if m in results else None)
            for m in grid.methods
        ]
        if cell.is_private:
            rows.append((cell.title, *shown))
    title = "Energy of the privacy noise in the weights, mean per round"
    return SimpleTable(title, ("cell", *grid.methods), tuple(rows))


def difference_table(grid: GridRecord) -> SimpleTable:
    """Every paired difference of every cell, in points or per cent."""
    measure, rows = grid.measure, []
    for cell in grid.finished:
        for pair in cell_differences(cell):
            bounds = _NONE
            if pair.interval is not None:
                bounds = measure.bounds(pair.interval)
            mean = measure.difference(pair.mean)
            names = f"{pair.first} - {pair.second}"
            rows.append((cell.title, names, mean, bounds, pair.verdict))
    headings = ("cell", "difference", measure.unit, "95 % interval", "verdict")
    title = f"Paired differences in {measure.name}"
    return SimpleTable(title, headings, tuple(rows))


def grid_terminal(grid: GridRecord) -> Group:
    """The tables and the rules, for a terminal."""
    tables = [score_table(grid), noise_table(grid), difference_table(grid)]
    parts = [part for t in tables if t.rows for part in (_rich(t), Text(""))]
    rules = Table(title="Rules of this comparison", title_justify="left", box=None)
    for heading in ("rule", "kept", "how"):
        rules.add_column(heading, no_wrap=heading == "kept")
    for rule in fairness_rules(grid):
        style = "" if rule.kept else "bold red"
        cells = (rule.name, "yes" if rule.kept else "NO", rule.text)
        rules.add_row(*(Text(cell, style=style) for cell in cells))
    return Group(*parts, rules)


def grid_csv(grid: GridRecord) -> str:
    """Every arm of every finished cell, with ``GRID_COLUMNS`` or the task's own."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    own = columns_of(grid.measure)
    writer.writerow((*GRID_COLUMNS[: -len(own)], *own))
    for cell in grid.finished:
        if cell.record is None:
            continue
        epsilon = "inf" if cell.epsilon is None else repr(cell.epsilon)
        alpha = "" if cell.alpha is None else repr(cell.alpha)
        place = [cell.name, epsilon, alpha, str(cell.rank)]
        for line in csv_lines(cell.record.comparison):
            writer.writerow([*place, *line])
    return buffer.getvalue()


def grid_latex(grid: GridRecord) -> str:
    """The scores as a LaTeX table; needs the package ``booktabs``."""
    table = score_table(grid)
    head = " & ".join(_tex(heading) for heading in table.headings)
    lines = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in table.rows]
    caption = f"{table.title}: {grid.title}."
    if any(result.interval for cell in grid.finished for result in cell_results(cell)):
        caption += f" Mean and 95 % t-interval over {len(grid.seeds)} seeds."
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_tex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _score(result: MethodResult | None) -> str:
    if result is None or result.score is None:
        return _NONE
    return result.measure.around(result.score, result.interval)


def _nothing(cell: CellRecord) -> str:
    """What learned nothing: the majority class, or the base model alone."""
    if cell.record is None:
        return _NONE
    return cell.measure.shown(cell.record.comparison.reference.main(cell.measure))


def _baseline(cell: CellRecord, kind: str) -> str:
    """A baseline of a private cell that is not one of the compared arms."""
    arms = cell.record.comparison.arms if cell.record and cell.is_private else ()
    own = tuple(arm for arm in arms if arm.kind == kind)
    return cell.measure.shown(MethodResult(cell, "", own).score)


def _rich(table: SimpleTable) -> Table:
    shown = Table(title=table.title, title_justify="left", title_style="bold", box=None)
    for index, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if index == 0 else "right")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
)


def _tex(text: str) -> str:
    return text.translate(_TEX)
