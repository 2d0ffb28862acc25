"""The chart of expected noise energy along one setting, as a file of its own.

Drawn like the charts of the report. In a page colours come from the page; here the
file brings them, for light and for dark.
"""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from secfed.amplification import AXIS_NAMES, HELD, Curve
from secfed.report.drawing import (
    MUTED,
    SERIES,
    curve,
    label_ends,
    plain_number,
    render_svg,
    sparse_numbers,
)

__all__ = ["noise_curve_svg"]

_LIGHT: Final = (
    "--paper: #ffffff; --ink: #1b1f24; --muted: #59636e; --grid: #dde1e6; "
    "--s1: #0b5cad; --s2: #b84a00; --s3: #00735c; --s4: #8a3f8c; --s5: #59636e; "
    "--s6: #8a6d00;"
)
_DARK: Final = (
    "--paper: #14181d; --ink: #e7ebf0; --muted: #a2adb9; --grid: #333b45; "
    "--s1: #7ab8ff; --s2: #ffa45c; --s3: #4fd1ad; --s4: #d9a0e0; --s5: #b6c0cb; "
    "--s6: #e3c34f;"
)


def noise_curve_svg(found: Curve, subject: str) -> str:
    """An SVG file: one line per rule, over the values in the order given.

    Args:
        found: The curve; at most as many rules as there are ways to tell lines
            apart without colour, and every energy above zero.
        subject: What it was computed for, in one line.

    Raises:
        ValueError: There are more rules, or an energy is zero.
    """
    if len(found.energies) > len(SERIES):
        raise ValueError(f"at most {len(SERIES)} rules fit in one chart")
    if not all((parts["total"] > 0).all() for parts in found.energies.values()):
        raise ValueError("an energy of zero has no place on a logarithmic scale")
    name = AXIS_NAMES[found.axis]
    title = f"Expected noise energy in the weights over {name}"
    text = f"{subject}; {HELD[found.axis]}"

    def draw(figure: Figure) -> None:
        _draw(figure, found, text)

    return _with_colours(render_svg(f"noise-{found.axis}", title, text, draw, 4.0))


def _draw(figure: Figure, found: Curve, text: str) -> None:
    axes = figure.add_subplot()
    places = range(len(found.values))
    ends = []
    for look, (rule, parts) in zip(SERIES, found.energies.items(), strict=False):
        points = dict(zip(places, parts["total"].tolist(), strict=True))
        curve(axes, points, look)
        ends.append((points[max(points)], rule, max(points)))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.yaxis.set_minor_formatter(FuncFormatter(sparse_numbers(axes)))
    axes.set_ylabel("energy over all rounds (log scale)")
    axes.set_xlabel(AXIS_NAMES[found.axis])
    axes.set_xticks(list(places), [f"{value:.4g}" for value in found.values])
    axes.set_title(text, fontsize=8, loc="left", color=MUTED)
    label_ends(axes, ends)


def _with_colours(svg: str) -> str:
    """Give an inline chart the colours that a page would give it."""
    opening, rest = svg.split("</desc>", 1)
    style = (
        f"<style>:root {{ {_LIGHT} }} @media (prefers-color-scheme: dark) "
        f"{{ :root {{ {_DARK} }} }}</style>"
        '<rect width="100%" height="100%" fill="var(--paper)"/>'
    )
    return f"{opening}</desc>{style}{rest}\n"
