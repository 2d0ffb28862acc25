"""Charts as inline SVG: the same numbers give the same bytes.

Colour never carries a meaning alone: every series has its own marker, dash and
a label at its end.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from secfed.report.drawing import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    Look,
    curve,
    label_ends,
    plain_number,
    render_svg,
    round_axis,
    sparse_numbers,
)
from secfed.report.measures import Measure
from secfed.report.results import NON_PRIVATE, POOLED, Arm, Comparison
from secfed.report.tables import round_up

__all__ = ["Chart", "comparison_charts"]

_NAMED = 2
"""More sites than this on one line are counted, not named."""


@dataclass(frozen=True)
class Chart:
    """A chart with everything that a reader without eyes for it needs.

    ``svg`` holds only markup made here: all names in it are escaped. Under
    ``headings``, ``rows`` hold the plotted numbers.
    """

    key: str
    title: str
    description: str
    svg: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Series:
    """The arms of one method; several when there are several seeds."""

    label: str
    arms: tuple[Arm, ...]
    look: Look

    def mean(self, value: Callable[[Arm, int], float | None]) -> dict[int, float]:
        """Round number to mean of ``value`` over the arms that have one."""
        rounds = sorted({r.round for arm in self.arms for r in arm.rounds})
        points = {}
        for number in rounds:
            known = [v for arm in self.arms if (v := value(arm, number)) is not None]
            if known:
                points[number] = statistics.fmean(known)
        return points


def comparison_charts(
    comparison: Comparison, epsilon_limit: float | None = None
) -> tuple[Chart, ...]:
    """All charts for which the comparison has numbers.

    Args:
        comparison: What to draw.
        epsilon_limit: The study's epsilon per arm, drawn as a line if known.
    """
    series = _series(comparison.arms)
    drawn = (
        _score_chart(
            series, comparison.measure, comparison.reference.main(comparison.measure)
        ),
        _noise_chart(series),
        _epsilon_chart(series, epsilon_limit),
        _traffic_chart(series),
    )
    return tuple(chart for chart in drawn if chart is not None)


def _series(arms: Sequence[Arm]) -> tuple[_Series, ...]:
    groups: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.method, arm.kind), []).append(arm)
    found = []
    for index, group in enumerate(groups.values()):
        single = len(group) == 1
        label = group[0].label if single else group[0].method
        if not single and group[0].kind == NON_PRIVATE and NON_PRIVATE not in label:
            label = f"{label} {NON_PRIVATE}"
        if not single and group[0].kind == POOLED:
            label = f"{label} (no federation)"
        found.append(_Series(label, tuple(group), SERIES[index % len(SERIES)]))
    return tuple(found)


def _score_chart(
    series: Sequence[_Series], measure: Measure, nothing: float | None
) -> Chart | None:
    """The main score per round; ``nothing`` is that of what learned nothing."""
    curves = {s.label: s.mean(partial(_score, measure)) for s in series}
    curves = {label: points for label, points in curves.items() if points}
    if not curves:
        return None
    title = f"{measure.title} on the public hold-out, per round"
    factor, name = measure.factor, measure.reference

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        ends = []
        for entry in series:
            points = curves.get(entry.label)
            if not points:
                continue
            for arm in entry.arms if len(entry.arms) > 1 else ():
                own = {
                    r.round: factor * score
                    for r in arm.rounds
                    if (score := r.scores.main(measure)) is not None
                }
                axes.plot(
                    list(own),
                    list(own.values()),
                    color=entry.look.colour,
                    lw=0.6,
                    alpha=0.5,
                )
            scaled = {number: factor * value for number, value in points.items()}
            curve(axes, scaled, entry.look)
            last = max(scaled)
            ends.append(
                (scaled[last], f"{entry.label} {measure.shown(points[last])}", last)
            )
        low, high = axes.get_ylim()
        if nothing is not None and factor * nothing > low - (high - low) / 2:
            axes.axhline(factor * nothing, color=MUTED, lw=1, ls=(0, (1, 2)))
            last = max(end[2] for end in ends)
            short = name.split()[0]
            ends.append((factor * nothing, f"{short} {measure.shown(nothing)}", last))
        elif nothing is not None:
            axes.set_title(
                f"{name}: {measure.shown(nothing)}, below this chart",
                fontsize=8,
                loc="left",
                color=MUTED,
            )
        axes.set_ylabel(measure.axis)
        round_axis(axes)
        label_ends(axes, ends)

    best = {label: points[max(points)] for label, points in curves.items()}
    summary = ", ".join(f"{label} {measure.shown(v)}" for label, v in best.items())
    rounds = sorted({number for points in curves.values() for number in points})
    return Chart(
        key="score",
        title=title,
        description=f"One line per arm over the rounds. Last round: {summary}.",
        svg=render_svg("score", title, summary, draw, 3.8),
        headings=("round", *curves),
        rows=tuple(
            (
                str(number),
                *(measure.shown(points.get(number)) for points in curves.values()),
            )
            for number in rounds
        ),
    )


def _noise_chart(series: Sequence[_Series]) -> Chart | None:
    shown = [s for s in series if any(_positive(s.mean(_measured)))]
    if not shown:
        return None
    title = "Energy of the privacy noise in the weights, per round"

    def draw(figure: Figure) -> None:
        energy, share = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [2.2, 1]}
        )
        ends, shares = [], []
        for entry in shown:
            measured = _positive(entry.mean(_measured))
            closed = _positive(entry.mean(_closed_form))
            curve(energy, measured, entry.look)
            if closed:
                energy.plot(
                    list(closed),
                    list(closed.values()),
                    color=entry.look.colour,
                    ls="none",
                    marker="_",
                    ms=13,
                    mew=1.4,
                )
            last = max(measured)
            ends.append((measured[last], entry.label, last))
            quadratic = {k: 100 * v for k, v in entry.mean(_quadratic_share).items()}
            if quadratic:
                curve(share, quadratic, entry.look)
                last = max(quadratic)
                text = f"{entry.label} {quadratic[last]:.1f} %"
                shares.append((quadratic[last], text, last))
        energy.set_yscale("log")
        energy.yaxis.set_major_formatter(FuncFormatter(plain_number))
        energy.yaxis.set_minor_formatter(FuncFormatter(sparse_numbers(energy)))
        energy.set_ylabel("energy (log scale)")
        energy.set_title(
            "points on a line: measured; long bars: closed form",
            fontsize=8,
            loc="left",
            color=MUTED,
        )
        share.set_ylabel("quadratic\nshare in %")
        share.set_ylim(bottom=0)
        round_axis(share)
        label_ends(energy, ends)
        label_ends(share, shares)

    rows = []
    for entry in shown:
        measured, closed = entry.mean(_measured), entry.mean(_closed_form)
        quadratic = entry.mean(_quadratic_share)
        rows += [
            (
                entry.label,
                str(number),
                f"{value:.3g}",
                f"{closed[number]:.3g}" if number in closed else "-",
                _percent(quadratic.get(number)),
            )
            for number, value in measured.items()
        ]
    text = (
        "Squared norm of the noise in the change of the weights, measured in the "
        "simulation and expected from the closed form; below, the share of the "
        "product of two noises, which a rule that trains one factor does not have."
    )
    return Chart(
        key="noise",
        title=title,
        description=text,
        svg=render_svg("noise", title, text, draw, 4.4),
        headings=("arm", "round", "measured", "closed form", "quadratic share"),
        rows=tuple(rows),
    )


def _epsilon_chart(series: Sequence[_Series], limit: float | None) -> Chart | None:
    shown = [(s, s.arms[0]) for s in series if any(r.epsilon for r in s.arms[0].rounds)]
    panels: dict[_Paths, list[str]] = {}
    for entry, arm in shown:
        panels.setdefault(_epsilon_paths(arm), []).append(entry.label)
    if not panels:
        return None
    title = "Epsilon spent, per round and site"
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (paths, labels) in zip(grid.flat, panels.items(), strict=False):
            _epsilon_panel(axes, paths, limit)
            axes.set_title(_wrapped(labels), fontsize=9, loc="left")
        for axes in grid[:, 0]:
            axes.set_ylabel("epsilon, in total")

    rows = tuple(
        (entry.label, site, str(r.round), f"{spent:.3f}")
        for entry, arm in shown
        for r in arm.rounds
        for site, spent in r.epsilon.items()
    )
    worst = ", ".join(
        f"{entry.label} {round_up(max(arm.epsilon.values()))}"
        for entry, arm in shown
        if arm.epsilon
    )
    return Chart(
        key="epsilon",
        title=title,
        description=f"Cumulative epsilon of each site; worst site: {worst}.",
        svg=render_svg("epsilon", title, worst, draw, 0.8 + 2.6 * lines),
        headings=("arm", "site", "after round", "epsilon in total"),
        rows=rows,
    )


_Paths = tuple[tuple[str, tuple[tuple[int, float], ...]], ...]


def _epsilon_paths(arm: Arm) -> _Paths:
    """(sites, points) for each different path; sites with the same share a line."""
    found: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for site in sorted({site for r in arm.rounds for site in r.epsilon}):
        path = tuple(
            (r.round, float(round_up(r.epsilon.get(site, 0.0))))
            for r in arm.rounds
            if site in r.epsilon or r.round == 0
        )
        found.setdefault(path, []).append(site)
    return tuple(
        (", ".join(sites) if len(sites) <= _NAMED else f"{len(sites)} sites", path)
        for path, sites in found.items()
    )


def _epsilon_panel(axes: Axes, paths: _Paths, limit: float | None) -> None:
    ends = []
    for number, (sites, path) in enumerate(paths):
        points = dict(path)
        curve(axes, points, SERIES[number % len(SERIES)])
        last = max(points)
        ends.append((points[last], f"{sites} {points[last]:.2f}", last))
    if limit is not None:
        axes.axhline(limit, color=INK, lw=1, ls=(0, (5, 3)))
        axes.annotate(
            f"study's limit {limit:g}",
            (0, limit),
            xycoords=axes.get_yaxis_transform(),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_ylim(bottom=0, top=None if limit is None else limit * 1.18)
    round_axis(axes)
    label_ends(axes, ends)


def _wrapped(labels: Sequence[str]) -> str:
    return textwrap.fill(", ".join(labels), 44)


def _traffic_chart(series: Sequence[_Series]) -> Chart | None:
    shown = [s for s in series if _mean_bytes(s) is not None]
    if not shown:
        return None
    title = "Traffic of all sites together, per arm"
    totals = {s.label: _mean_bytes(s) or (0.0, 0.0) for s in shown}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        for position, entry in enumerate(shown):
            up, down = totals[entry.label]
            for offset, value, filled, text in (
                (-0.19, up, True, "up"),
                (0.19, down, False, "down"),
            ):
                axes.barh(
                    position + offset,
                    value,
                    height=0.32,
                    color=entry.look.colour if filled else PAPER,
                    edgecolor=entry.look.colour,
                    linewidth=1.4,
                )
                axes.annotate(
                    f"{text} {value:.2f} MB",
                    (value, position + offset),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axes.set_yticks(range(len(shown)), [s.label for s in shown])
        axes.invert_yaxis()
        axes.set_xlabel("megabytes")
        axes.margins(x=0.22)
        axes.set_xlim(left=0)

    text = ", ".join(
        f"{k}: {u:.2f} MB up, {d:.2f} MB down" for k, (u, d) in totals.items()
    )
    return Chart(
        key="traffic",
        title=title,
        description=f"{text}.",
        svg=render_svg("traffic", title, text, draw, 0.9 + 0.5 * len(shown)),
        headings=("arm", "MB up", "MB down"),
        rows=tuple((k, f"{u:.2f}", f"{d:.2f}") for k, (u, d) in totals.items()),
    )


def _mean_bytes(series: _Series) -> tuple[float, float] | None:
    pairs = [
        (arm.bytes_up / 1e6, arm.bytes_down / 1e6)
        for arm in series.arms
        if arm.bytes_up is not None and arm.bytes_down is not None
    ]
    if not pairs or not any(up or down for up, down in pairs):
        return None
    ups, downs = zip(*pairs, strict=True)
    return statistics.fmean(ups), statistics.fmean(downs)


def _positive(points: Mapping[int, float]) -> dict[int, float]:
    return {number: value for number, value in points.items() if value > 0}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _score(measure: Measure, arm: Arm, number: int) -> float | None:
    found = (r.scores.main(measure) for r in arm.rounds if r.round == number)
    return next(found, None)


def _measured(arm: Arm, number: int) -> float | None:
    return next((n.measured for k, n in arm.noise_rounds if k == number), None)


def _closed_form(arm: Arm, number: int) -> float | None:
    return next((n.closed_form for k, n in arm.noise_rounds if k == number), None)


def _quadratic_share(arm: Arm, number: int) -> float | None:
    return next((n.quadratic_share for k, n in arm.noise_rounds if k == number), None)
