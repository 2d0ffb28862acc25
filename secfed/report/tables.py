"""The comparison as a table: for a terminal, as CSV and as the report's rows."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from secfed.report.measures import BESIDE, MATTHEWS, PERPLEXITY, SHARES, Measure
from secfed.report.results import NON_PRIVATE, POOLED, Arm, Comparison, Scores

__all__ = [
    "COLUMNS",
    "UNKNOWN",
    "Row",
    "beside_rows",
    "category_rows",
    "columns_of",
    "comparison_rows",
    "csv_lines",
    "csv_text",
    "format_bytes",
    "format_epsilon",
    "format_number",
    "format_percent",
    "round_up",
    "sum_text",
    "terminal_tables",
    "write_csv",
]

UNKNOWN = "UNKNOWN"
NOT_PRIVATE = "NOT PRIVATE"
_NONE = "-"
_TINY = 1e-9
_HEADINGS = {
    **SHARES,
    "matthews": MATTHEWS.headings[0],
    "perplexity": PERPLEXITY.headings[0],
}

COLUMNS = (
    "arm",
    "method",
    "kind",
    "seed",
    "accuracy",
    "macro_f1",
    "epsilon_worst_site",
    "noise_measured",
    "noise_closed_form",
    "quadratic_share",
    "aggregation_gap",
    "bytes_up",
    "bytes_down",
    "seconds",
    "trainable",
    "rounds_completed",
    "rounds_interrupted",
)
"""The columns of ``comparison.csv``; empty where a number does not exist. Other tasks
have their own two scores in the place of these (``columns_of``)."""


@dataclass(frozen=True)
class Row:
    """One arm, or what learned nothing, with what the tables show of it.

    Noise energies and the gap are means over the rounds; ``quadratic_share`` is
    the mean of the rounds' shares. ``epsilon_text`` never hides a missing
    guarantee: it reads NOT PRIVATE, UNKNOWN, a number, or ``-`` for what learned
    nothing. ``score`` is the measure's, ``second`` is a share beside it.
    """

    name: str
    arm: Arm | None
    measure: Measure
    score: float | None
    second: float | None
    epsilon_text: str
    measured: float | None = None
    closed_form: float | None = None
    quadratic_share: float | None = None
    aggregation_gap: float | None = None

    @property
    def is_unprotected(self) -> bool:
        """Whether the row must be marked NOT PRIVATE."""
        return self.epsilon_text == NOT_PRIVATE

    @property
    def cells(self) -> Mapping[str, str]:
        """Every cell as text for people."""
        arm = self.arm
        return {
            "name": self.name,
            "score": self.measure.shown(self.score),
            "second": format_percent(self.second),
            "epsilon": self.epsilon_text,
            "measured": format_number(self.measured),
            "closed_form": format_number(self.closed_form),
            "quadratic_share": format_percent(self.quadratic_share),
            "aggregation_gap": format_percent(self.aggregation_gap),
            "up": format_bytes(None if arm is None else arm.bytes_up),
            "down": format_bytes(None if arm is None else arm.bytes_down),
            "seconds": _NONE
            if arm is None or arm.seconds is None
            else f"{arm.seconds:.0f}",
            "trainable": _NONE
            if arm is None or arm.trainable is None
            else f"{arm.trainable:,}",
        }


def comparison_rows(comparison: Comparison) -> tuple[Row, ...]:
    """The rows in reading order: what learned nothing first, then every arm."""
    measure = comparison.measure
    nothing = (
        Row(
            name=name,
            arm=None,
            measure=measure,
            score=scores.main(measure),
            second=scores.second(measure),
            epsilon_text=_NONE,
        )
        for name, scores in comparison.nothing.items()
    )
    simulated = comparison.simulation_seed is not None
    arms = (_row(arm, measure, simulated=simulated) for arm in comparison.arms)
    return (*nothing, *arms)


def _row(arm: Arm, measure: Measure, *, simulated: bool) -> Row:
    noise = [report for _, report in arm.noise_rounds]
    return Row(
        name=arm.label,
        arm=arm,
        measure=measure,
        score=arm.final.main(measure),
        second=arm.final.second(measure),
        epsilon_text=format_epsilon(arm, simulated=simulated),
        measured=_mean([n.measured for n in noise]),
        closed_form=_mean([n.closed_form for n in noise]),
        quadratic_share=_mean([n.quadratic_share for n in noise]),
        aggregation_gap=_mean([n.aggregation_gap for n in noise]),
    )


def terminal_tables(comparison: Comparison) -> Group:
    """Two tables that fit 80 columns, the recovered dropouts and the budgets."""
    rows = comparison_rows(comparison)
    main, second = comparison.measure.headings
    parts = [
        _table(
            "Scores on the public hold-out, and what they cost in privacy",
            (
                ("arm", "name"),
                (main, "score"),
                (second, "second"),
                ("epsilon, worst site", "epsilon"),
                ("trainable", "trainable"),
                ("seconds", "seconds"),
            ),
            rows,
        ),
        _table(
            "Noise energy in the weights (mean per round), and traffic in MB",
            (
                ("arm", "name"),
                ("measured", "measured"),
                ("closed form", "closed_form"),
                ("quadratic", "quadratic_share"),
                ("gap", "aggregation_gap"),
                ("up", "up"),
                ("down", "down"),
            ),
            [row for row in rows if row.arm is not None],
        ),
    ]
    if beside_rows(comparison):
        parts.append(_beside_table(comparison))
    if any(arm.final.by_category for arm in comparison.arms):
        parts.append(_category_table(comparison))
    if comparison.dropouts:
        parts.append(_dropout_table(comparison))
    if comparison.budget:
        parts.append(_budget_table(comparison))
    spaced = [piece for part in parts for piece in (part, Text(""))]
    return Group(*spaced[:-1])


def _table(
    title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Row]
) -> Table:
    table = _empty(title)
    for heading, key in columns:
        left = key == "name"
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        style = "bold red" if row.is_unprotected else ""
        table.add_row(*(Text(row.cells[key], style=style) for _, key in columns))
    return table


def category_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """The main score of every arm on every category; the first row are headings."""
    measure = comparison.measure
    all_scores = {measure.reference: comparison.reference}
    all_scores |= {arm.name: arm.final for arm in comparison.arms}
    parts = (name for scores in all_scores.values() for name in scores.by_category)
    names = tuple(dict.fromkeys(parts))
    rows = [
        (name, *(measure.shown(_of_category(scores, part, measure)) for part in names))
        for name, scores in all_scores.items()
    ]
    return (("arm", *names), *rows) if names else ()


def _of_category(scores: Scores, name: str, measure: Measure) -> float | None:
    own = scores.by_category.get(name)
    return None if own is None else own.main(measure)


def _category_table(comparison: Comparison) -> Table:
    headings, *rows = category_rows(comparison)
    title = f"{comparison.measure.name} by category, on the public hold-out"
    return _plain_table(title, headings, rows)


def beside_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """Scores that do not decide, of every row; the first row are headings.

    Empty where there are none but the two of the first table.
    """
    measure = comparison.measure
    all_scores = dict(comparison.nothing)
    all_scores |= {arm.label: arm.final for arm in comparison.arms}
    keys = [
        key
        for key in BESIDE
        if key not in {measure.key, measure.second}
        and any(scores.named(key) is not None for scores in all_scores.values())
    ]
    headings = ("arm", *(_HEADINGS[key] for key in keys))
    rows = [
        (name, *(_shown_beside(key, scores.named(key)) for key in keys))
        for name, scores in all_scores.items()
    ]
    return (headings, *rows) if keys else ()


def _shown_beside(key: str, value: float | None) -> str:
    if key in SHARES:
        return format_percent(value)
    return (PERPLEXITY if key == PERPLEXITY.key else MATTHEWS).shown(value)


def _beside_table(comparison: Comparison) -> Table:
    headings, *rows = beside_rows(comparison)
    title = "Other scores on the public hold-out, beside those that decide"
    return _plain_table(title, headings, rows)


def _plain_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> Table:
    table = _empty(title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _dropout_table(comparison: Comparison) -> Table:
    table = _empty("Dropouts, and the sum of the sites that stayed")
    for heading in ("arm", "round", "site", "gone after", "sum"):
        table.add_column(heading, justify="right" if heading == "round" else "left")
    for lost in comparison.dropouts:
        table.add_row(
            Text(lost.arm),
            str(lost.round),
            Text(lost.site),
            Text(lost.phase),
            sum_text(lost.sum_exact),
        )
    return table


def _budget_table(comparison: Comparison) -> Table:
    table = _empty("Privacy budget of each site, all arms together")
    table.add_column("site")
    for heading in ("epsilon spent", "limit", "left"):
        table.add_column(heading, justify="right")
    for entry in comparison.budget:
        table.add_row(
            Text(entry.site),
            UNKNOWN if entry.spent is None else round_up(entry.spent),
            UNKNOWN if entry.limit is None else f"{entry.limit:g}",
            UNKNOWN if entry.left is None else f"{entry.left:.2f}",
        )
    return table


def _empty(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None)


def sum_text(sum_exact: bool | None) -> str:  # noqa: FBT001
    """What the comparison with the plain sum said."""
    if sum_exact is None:
        return UNKNOWN
    return "sum exact" if sum_exact else "SUM WRONG"


def csv_text(comparison: Comparison) -> str:
    """The comparison as CSV with the columns of its task, one line per arm."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns_of(comparison.measure))
    writer.writerows(csv_lines(comparison))
    return buffer.getvalue()


def columns_of(measure: Measure) -> tuple[str, ...]:
    """The columns of ``comparison.csv`` for a task."""
    place = COLUMNS.index("accuracy")
    return (*COLUMNS[:place], measure.key, measure.second, *COLUMNS[place + 2 :])


def csv_lines(comparison: Comparison) -> list[list[str]]:
    """The cells of every line of the CSV, without its head."""
    rows = comparison_rows(comparison)
    return [[_csv_cell(value) for value in _csv_values(row)] for row in rows]


def write_csv(comparison: Comparison | Mapping[str, Any], path: str | Path) -> None:
    """Write ``csv_text`` to a file, replacing it."""
    if not isinstance(comparison, Comparison):
        comparison = Comparison.from_json(comparison)
    Path(path).write_text(csv_text(comparison), encoding="utf-8", newline="")


def _csv_values(row: Row) -> tuple[object, ...]:
    arm = row.arm
    if arm is None:
        always = row.name.startswith("always ")
        name = row.name if always else row.name.split()[0]  # "majority" or "base"
        return (name, name, "baseline", None, row.score, row.second, *(None,) * 11)
    return (
        arm.name,
        arm.method,
        arm.kind,
        arm.seed,
        row.score,
        row.second,
        arm.epsilon_max,
        row.measured,
        row.closed_form,
        row.quadratic_share,
        row.aggregation_gap,
        arm.bytes_up,
        arm.bytes_down,
        arm.seconds,
        arm.trainable,
        len(arm.trained_rounds),
        sum(r.status != "completed" for r in arm.rounds),
    )


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value == int(value) else repr(value)
    text = str(value)
    # A spreadsheet would run a cell that starts like a formula.
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def format_epsilon(arm: Arm, *, simulated: bool = False) -> str:
    """The worst site's epsilon, or why there is none."""
    if arm.kind == NON_PRIVATE or simulated:
        return NOT_PRIVATE
    shown = UNKNOWN if arm.epsilon_max is None else round_up(arm.epsilon_max)
    return f"{shown} {POOLED.upper()}" if arm.kind == POOLED else shown


def round_up(epsilon: float) -> str:
    """Two digits; what is shown is never less than what was spent."""
    return f"{math.ceil(100 * epsilon - _TINY) / 100:.2f}"


def format_percent(value: float | None) -> str:
    """A share between 0 and 1 as per cent; ``-`` when there is none."""
    return _NONE if value is None else f"{100 * value:.1f} %"


def format_number(value: float | None) -> str:
    """Three significant digits; ``-`` when there is none."""
    return _NONE if value is None else f"{value:.3g}"


def format_bytes(value: float | None) -> str:
    """Megabytes (10^6 bytes) with two digits; ``-`` when there is none."""
    return _NONE if value is None else f"{value / 1e6:.2f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
