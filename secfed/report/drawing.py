"""Drawing for the charts: style, labels, and SVG that stands in a page.

Colours are drawn as placeholders and become CSS variables of the page, so that
the page decides on light and dark. Equal drawings give equal bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = [
    "INK",
    "MUTED",
    "PAPER",
    "SERIES",
    "Look",
    "curve",
    "label_ends",
    "look",
    "plain_number",
    "render_svg",
    "round_axis",
    "sparse_numbers",
    "spread_apart",
]


class Look(NamedTuple):
    """How one series is told from the others, with and without colour."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


_WIDTH_INCHES = 7.2
_LABEL_POINTS = 11.0
_DECADES = 100
SERIES: Final = (
    Look("#010101", "o", "-"),
    Look("#020202", "s", (0, (6, 2))),
    Look("#030303", "^", (0, (2, 1.5))),
    Look("#040404", "D", (0, (6, 2, 1, 2))),
    Look("#050505", "v", (0, (1, 1))),
    Look("#060606", "P", (0, (8, 2, 2, 2, 2, 2))),
)
INK, MUTED, _GRID, PAPER = "#0a0a0a", "#0b0b0b", "#0c0c0c", "#0d0d0d"
_VARIABLES: Final[Mapping[str, str]] = {
    **{colour: f"var(--s{i})" for i, (colour, _, _) in enumerate(SERIES, start=1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    PAPER: "var(--paper)",
}
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


_MORE_MARKERS: Final = ("X", "p", "<", "*", ">", "h")


def look(index: int) -> Look:
    """The look of series ``index``; colours return, with other markers and dashes."""
    again, place = divmod(index, len(SERIES))
    first = SERIES[place]
    if not again:
        return first
    dash = SERIES[(place + again) % len(SERIES)].dash
    return Look(first.colour, _MORE_MARKERS[place], dash)


def curve(
    axes: Axes, points: Mapping[int, float] | Mapping[float, float], look: Look
) -> None:
    """Draw round number, or another place, to value as a line with open markers."""
    axes.plot(
        list(points),
        list(points.values()),
        color=look.colour,
        marker=look.marker,
        ls=look.dash,
        markerfacecolor=PAPER,
        markeredgecolor=look.colour,
        markeredgewidth=1.4,
    )


def round_axis(axes: Axes) -> None:
    """Number the rounds by whole numbers."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, int]]) -> None:
    """Write each label beside the end of its line, moved apart where they meet."""
    if not ends:
        return
    ordered = sorted(ends)
    right = max(end[2] for end in ends)
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("the axes belong to no figure")
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    wanted = [
        float(axes.transData.transform((right, value))[1]) * points
        for value, _, _ in ordered
    ]
    for (value, text, _), at, y in zip(
        ordered, spread_apart(wanted, _LABEL_POINTS), wanted, strict=True
    ):
        axes.annotate(
            text,
            (right, value),
            xytext=(8, at - y),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least ``gap`` apart, in order, near the (sorted) wanted ones.

    Places that would meet form a block around the mean of their wishes.
    """
    blocks: list[tuple[float, int]] = []  # (sum of wishes, number of labels)
    for wish in wanted:
        block = (wish, 1)
        while blocks and _bottom(block, gap) < _top(blocks[-1], gap) + gap:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1])
        blocks.append(block)
    return [
        _bottom(block, gap) + gap * position
        for block in blocks
        for position in range(block[1])
    ]


def _bottom(block: tuple[float, int], gap: float) -> float:
    return block[0] / block[1] - gap * (block[1] - 1) / 2


def _top(block: tuple[float, int], gap: float) -> float:
    return _bottom(block, gap) + gap * (block[1] - 1)


def plain_number(value: float, _position: int) -> str:
    """A tick's label without powers of ten."""
    return f"{value:g}"


def sparse_numbers(axes: Axes) -> Callable[[float, int], str]:
    """Labels between powers of ten, where fewer than two powers are visible."""

    def label(value: float, _position: int) -> str:
        low, high = axes.get_ylim()
        digit = round(value / 10 ** math.floor(math.log10(value)))
        if high / low > _DECADES or digit not in {2, 5}:
            return ""
        return f"{value:g}"

    return label


def render_svg(
    key: str,
    title: str,
    description: str,
    draw: Callable[[Figure], None],
    height_inches: float,
) -> str:
    """Draw a figure and return it as an inline ``<svg>`` element.

    Args:
        key: Prefix of every identifier in it; unique in the page.
        title: Its accessible name.
        description: Its accessible description.
        draw: Draws on the empty figure.
        height_inches: Its height; the width is that of all charts.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"secfed-{key}"}):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.BytesIO()
        canvas.print_figure(
            buffer, format="svg", metadata={"Date": None, "Creator": None}
        )
    return _inline(buffer.getvalue().decode("utf-8"), key, title, description)


def _inline(svg: str, key: str, title: str, description: str) -> str:
    """Make a stand-alone SVG fit to stand among others in one page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # 1. Identifiers are unique in the page.
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = body.replace('href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    # 2. The page decides on colours.
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    # 3. The chart has a name and a description, and the page decides on its size.
    opening, rest = body.split(">", 1)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    name, text = f"{key}-title", f"{key}-desc"
    return (
        f'{opening} role="img" aria-labelledby="{name} {text}">'
        f'<title id="{name}">{escape(title)}</title>'
        f'<desc id="{text}">{escape(description)}</desc>{rest}'
    ).strip()
