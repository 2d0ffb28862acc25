"""The chart of ``docs/performance.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw"]

_OURS, _THEIRS, _LIMIT = "#1b6ca8", "#c8553d", "#7a7a7a"


def draw(found: dict[str, Any], path: Path) -> None:
    """Four panels: clients, unmasking, the machine's pace, growth."""
    sections = {section["key"]: section["rows"] for section in found["sections"]}
    # A fixed salt and no date: the same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "secfed", "font.size": 9}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        panels = (
            (_clients, "clients"),
            (_unmasking, "server"),
            (_masking, "masking"),
            (_recovery, "large"),
        )
        for axis, (panel, key) in zip(axes.flat, panels, strict=True):
            panel(axis, sections.get(key, []))
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _middle(value: Any) -> float:
    return float(value["median"] if isinstance(value, dict) else value)


def _name(row: dict[str, Any]) -> str:
    return "flwr" if row["system"] == "flwr" else f"secfed, {row['ring bits']} bits"


def _largest(rows: list[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
    number = max((row["clients"] for row in rows), default=0)
    return number, [row for row in rows if row["clients"] == number]


def _clients(axis: Axes, rows: list[dict[str, Any]]) -> None:
    number, rows = _largest(rows)
    values = [_middle(row["total ms"]) for row in rows]
    colours = [_THEIRS if row["system"] == "flwr" else _OURS for row in rows]
    bars = axis.barh([_name(row) for row in rows], values, color=colours)
    axis.bar_label(bars, fmt="%.0f", padding=2)
    axis.set(title=f"One client, CPU ms per session, n = {number}")
    axis.invert_yaxis()


def _unmasking(axis: Axes, rows: list[dict[str, Any]]) -> None:
    last, rows = _largest(rows)
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        point = (row["dropouts percent"], _middle(row["unmask ms"]) / 1e3)
        series.setdefault(_name(row), []).append(point)
    for name, points in series.items():
        colour = _THEIRS if name == "flwr" else _OURS
        style = "--" if "16" in name else "-"
        axis.plot(*zip(*points, strict=True), style, marker="o", c=colour, label=name)
    title = f"Server, unmasking, CPU s (log), n = {last}"
    axis.set(yscale="log", xlabel="clients that dropped out, %", title=title)
    axis.legend(frameon=False)


def _masking(axis: Axes, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['ring bits']} bits" for row in rows]
    for offset, key, colour, label in (
        (-0.2, "masking share", _OURS, "masking"),
        (0.2, "step share", _LIMIT, "whole step"),
    ):
        places = [place + offset for place in range(len(rows))]
        values = [100 * _middle(row[key]) for row in rows]
        bars = axis.bar(places, values, width=0.38, color=colour, label=label)
        axis.bar_label(bars, fmt="%.0f")
    axis.axhline(80, color=_THEIRS, linestyle=":", label="goal")
    axis.set_xticks(range(len(rows)), names)
    axis.set(ylim=(0, 125), title="Client masking, % of AES-256-CTR + addition")
    axis.legend(frameon=False, ncols=3, loc="upper center")


def _recovery(axis: Axes, rows: list[dict[str, Any]]) -> None:
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        name = f"n = {row['clients']:,}, d = {row['parameters']:,}"
        point = (row["dropouts percent"], _middle(row["unmask ms"]) / 1e3)
        series.setdefault(name, []).append(point)
    for name, points in series.items():
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    title = "secfed at larger sizes: unmasking, CPU s"
    axis.set(xlabel="clients that dropped out, %", title=title)
    if series:
        axis.legend(frameon=False)
