"""The charts of a grid, by the conventions of ``charts.py``.

Values on an axis stand at equal distances: alpha 0 and epsilon infinity have no
place on a logarithmic one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from secfed.report.charts import Chart
from secfed.report.drawing import (
    PAPER,
    Look,
    curve,
    look,
    plain_number,
    render_svg,
    round_axis,
    sparse_numbers,
)
from secfed.report.grid_reading import CellRecord, GridRecord
from secfed.report.grid_summary import MethodResult, cell_results
from secfed.report.measures import Measure
from secfed.report.tables import format_number

__all__ = ["grid_charts"]

_COLUMNS = 3
_PANELS = 12
"""More panels than this are in the table only."""

Place = Callable[[CellRecord], float | None]
Value = Callable[[MethodResult], float | None]


@dataclass(frozen=True)
class _Axis:
    """A quantity of which every cell has one value; None is at the right end."""

    name: str
    place: Place

    def ticks(self, cells: Iterable[CellRecord]) -> list[float | None]:
        found = {self.place(cell) for cell in cells}
        known = sorted(value for value in found if value is not None)
        return [*known, *([None] if None in found else [])]


_EPSILON = _Axis("epsilon", lambda cell: cell.epsilon)
_ALPHA = _Axis("alpha", lambda cell: cell.alpha)
_RANK = _Axis("rank", lambda cell: cell.rank)
_AXES = (_EPSILON, _ALPHA, _RANK)


@dataclass(frozen=True)
class _Scale:
    """What stands on the vertical axis."""

    label: str
    value: Value
    shown: Callable[[float | None], str]
    factor: float = 1.0
    log: bool = False
    is_score: bool = False


_NOISE = _Scale("noise energy (log scale)", lambda r: r.noise, format_number, log=True)


def _score_scale(measure: Measure) -> _Scale:
    return _Scale(
        measure.axis, _score, measure.shown, factor=measure.factor, is_score=True
    )


def _score(result: MethodResult) -> float | None:
    return result.score


def grid_charts(grid: GridRecord) -> tuple[Chart, ...]:
    """All charts for which the grid has numbers and more than one place."""
    scale, name = _score_scale(grid.measure), grid.measure.title
    drawn = (
        _axis_chart(grid, _EPSILON, scale, f"{name} against epsilon"),
        _axis_chart(grid, _ALPHA, scale, f"{name} against the Dirichlet alpha"),
        _rounds_chart(grid),
        _axis_chart(grid, _RANK, _NOISE, "Noise energy against the rank"),
        _bytes_chart(grid),
    )
    return tuple(chart for chart in drawn if chart is not None)


def _axis_chart(
    grid: GridRecord, axis: _Axis, scale: _Scale, title: str
) -> Chart | None:
    """One line per method along an axis; a panel for each value of the others."""
    results = _results(grid, scale.value)
    ticks = axis.ticks(result.cell for result in results)
    if len(ticks) <= 1:
        return None
    panels = _by(results, lambda cell: _others(cell, axis, grid))

    def draw_panel(axes: Axes, own: Sequence[MethodResult]) -> None:
        for index, method in enumerate(grid.methods):
            side = 0.05 * (index - (len(grid.methods) - 1) / 2)
            points, spans = {}, []
            for result in own:
                value = scale.value(result)
                if result.method != method or value is None:
                    continue
                at = ticks.index(axis.place(result.cell)) + side
                points[at] = scale.factor * value
                if result.interval is not None and scale.is_score:
                    low, high = result.interval
                    spans.append((at, scale.factor * low, scale.factor * high))
            _line(axes, dict(sorted(points.items())), spans, look(index))
        axes.set_xticks(range(len(ticks)), [_tick(value) for value in ticks])
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        axes.set_xlabel(axis.name)
        _scaled(axes, scale)

    key = f"{'score' if scale.is_score else 'noise'}-{axis.name}"
    text = f"{len(panels)} panels, one line per method; equal steps on the axis."
    if len(panels) == 1:
        text = "One line per method; equal steps on the axis."
    if scale.is_score and any(result.interval for result in results):
        text += " Bars: 95 % t-intervals over the seeds."
    return Chart(
        key=key,
        title=title,
        description=text,
        svg=_panels_svg(key, title, text, panels, grid, draw_panel, scale.label),
        headings=("cell", "method", scale.label.split(" (")[0].split(",")[0]),
        rows=_rows(results, scale),
    )


def _rounds_chart(grid: GridRecord) -> Chart | None:
    """Noise energy per round; a panel for each private cell."""
    results = _results(grid, lambda result: result.noise)
    if not results:
        return None
    panels = _by(results, lambda cell: cell.title)
    title = "Noise energy, per round"

    def draw_panel(axes: Axes, own: Sequence[MethodResult]) -> None:
        for result in own:
            points = {k: v for k, v in result.noise_per_round().items() if v > 0}
            curve(axes, points, look(grid.methods.index(result.method)))
        _scaled(axes, _NOISE)
        round_axis(axes)

    text = "Squared norm of the privacy noise in the change of the weights, measured."
    if len(panels) > _PANELS:
        text += f" The first {_PANELS} of {len(panels)} cells; the table has all."
    rows = tuple(
        (result.cell.title, result.method, str(number), format_number(value))
        for result in results
        for number, value in result.noise_per_round().items()
    )
    return Chart(
        key="noise-round",
        title=title,
        description=text,
        svg=_panels_svg(
            "noise-round", title, text, panels, grid, draw_panel, _NOISE.label
        ),
        headings=("cell", "method", "round", "noise energy"),
        rows=rows,
    )


def _bytes_chart(grid: GridRecord) -> Chart | None:
    """Traffic against the score; a panel for each epsilon."""
    measure, scale = grid.measure, _score_scale(grid.measure)
    results = [r for r in _results(grid, _score) if r.megabytes is not None]
    if not any(result.megabytes for result in results):
        return None
    panels = _by(results, lambda cell: f"epsilon {_tick(cell.epsilon)}")
    title = f"{measure.title} against traffic"

    def draw_panel(axes: Axes, own: Sequence[MethodResult]) -> None:
        for result in own:
            shown = look(grid.methods.index(result.method))
            axes.plot(
                [result.megabytes or 0.0],
                [scale.factor * (result.score or 0.0)],
                color=shown.colour,
                marker=shown.marker,
                ls="none",
                markerfacecolor=PAPER,
                markeredgewidth=1.4,
            )
        axes.set_xlabel("MB, all sites")
        axes.set_xlim(0, 1.15 * max(result.megabytes or 0.0 for result in results))

    side = "low" if measure.lower_is_better else "high"
    text = f"A point is a method in a cell; left and {side} is better."
    rows = tuple(
        (r.cell.title, r.method, f"{r.megabytes or 0:.2f}", measure.shown(r.score))
        for r in results
    )
    return Chart(
        key="score-bytes",
        title=title,
        description=text,
        svg=_panels_svg(
            "score-bytes", title, text, panels, grid, draw_panel, scale.label
        ),
        headings=("cell", "method", "MB up and down", measure.name),
        rows=rows,
    )


_Panels = dict[str, list[MethodResult]]


def _panels_svg(
    key: str,
    title: str,
    text: str,
    panels: _Panels,
    grid: GridRecord,
    draw_panel: Callable[[Axes, Sequence[MethodResult]], None],
    label: str,
) -> str:
    """Panels that share their vertical axis, and one legend for all."""
    shown = list(panels.items())[:_PANELS]
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)

    def draw(figure: Figure) -> None:
        places = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axes in places.flat[len(shown) :]:
            axes.set_visible(False)
        for axes, (name, own) in zip(places.flat, shown, strict=False):
            draw_panel(axes, own)
            axes.set_title(name, fontsize=9, loc="left")
        for axes in places[:, 0]:
            axes.set_ylabel(label)
        there = {result.method for _, own in shown for result in own}
        handles = [
            _handle(method, look(index))
            for index, method in enumerate(grid.methods)
            if method in there
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(5, len(handles)),
            frameon=False,
            fontsize=8,
            handlelength=3.5,
        )

    return render_svg(key, title, text, draw, 0.9 + 2.4 * lines)


def _handle(method: str, shown: Look) -> Line2D:
    return Line2D(
        [],
        [],
        color=shown.colour,
        marker=shown.marker,
        ls=shown.dash,
        markerfacecolor=PAPER,
        label=method,
    )


def _line(
    axes: Axes,
    points: dict[float, float],
    spans: Sequence[tuple[float, float, float]],
    shown: Look,
) -> None:
    for at, low, high in spans:
        axes.plot([at, at], [low, high], color=shown.colour, lw=1.0, alpha=0.7)
    if points:
        curve(axes, points, shown)


def _scaled(axes: Axes, scale: _Scale) -> None:
    if scale.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(plain_number))
        axes.yaxis.set_minor_formatter(FuncFormatter(sparse_numbers(axes)))


def _results(grid: GridRecord, value: Value) -> list[MethodResult]:
    found = (result for cell in grid.finished for result in cell_results(cell))
    return [result for result in found if value(result) is not None]


def _by(results: Sequence[MethodResult], name: Callable[[CellRecord], str]) -> _Panels:
    panels: _Panels = {}
    for result in results:
        panels.setdefault(name(result.cell), []).append(result)
    return panels


def _others(cell: CellRecord, axis: _Axis, grid: GridRecord) -> str:
    """What tells a panel from the others: the axes that it fixes and that move."""
    parts = [
        f"{other.name} {_tick(other.place(cell))}"
        for other in _AXES
        if other is not axis and len(other.ticks(grid.cells)) > 1
    ]
    return ", ".join(parts) or "all cells"


def _rows(
    results: Sequence[MethodResult], scale: _Scale
) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (result.cell.title, result.method, scale.shown(scale.value(result)))
        for result in results
    )


def _tick(value: float | None) -> str:
    return "inf" if value is None else f"{value:g}"
