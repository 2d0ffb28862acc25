"""What a benchmark found: for the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = [
    "markdown_table",
    "put_between_marks",
    "show",
    "show_table",
    "to_markdown",
    "write_json",
    "write_markdown",
]

_ROOM_FOR_QUARTILES = 9  # columns


def cell(value: Any) -> str:
    """A number with three figures, a timing as median and quartiles, or words."""
    if isinstance(value, dict):
        middle, low, high = (figures(value[key]) for key in ("median", "q1", "q3"))
        return middle if value["repetitions"] == 1 else f"{middle} [{low}, {high}]"
    if isinstance(value, float):
        return figures(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _middle(value: Any) -> str:
    return cell(value["median"] if isinstance(value, dict) else value)


def figures(value: float) -> str:
    """Three significant figures, and no exponent."""
    if abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _goal_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "goal": goal["name"],
            "wanted": f"{goal['wanted']} {goal['unit']}".strip(),
            "measured": f"{figures(goal['measured'])} {goal['unit']}".strip(),
            "": "met" if goal["met"] else "NOT MET",
        }
        for goal in found["goals"]
    ]


def show(found: dict[str, Any], console: Console) -> None:
    """Every table, then the goals; quartiles where a table has room for them."""
    for section in found["sections"]:
        show_table(console, section["title"], section["rows"])
        if section["note"]:
            console.print(section["note"], style="dim")
    title = "Goals (for the full sizes, not for these)" if found["quick"] else "Goals"
    show_table(console, title, _goal_rows(found))
    for line in found["left_out"]:
        console.print(f"left out: {line}", style="yellow", highlight=False)
    console.print(_checks(found))


def _checks(found: dict[str, Any]) -> str:
    """What was checked; whatever is wrong stops a benchmark before this."""
    if "rounds_checked" in found:
        return (
            f"{found['rounds_checked']} rounds were checked; all did the same work, "
            "with the same gradients."
        )
    if "results_checked" in found:
        return (
            f"{found['results_checked']} results were compared with the plain or the "
            "dense ones; all were as near as they must be."
        )
    return f"{found['sums_checked']} sums were checked; all were right."


def show_table(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a table; columns are all names that occur."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    columns = _columns(rows)
    shape = cell if len(columns) <= _ROOM_FOR_QUARTILES else _middle
    for name in columns:
        words = any(isinstance(row.get(name), str) for row in rows)
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        style = "bold red" if row.get("") == "NOT MET" else None
        shown = [shape(row[name]) if name in row else "-" for name in columns]
        table.add_row(*shown, style=style)
    console.print()
    console.print(table)


def write_json(found: dict[str, Any], path: Path) -> None:
    """Everything that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def write_markdown(found: dict[str, Any], path: Path) -> None:
    """The tables alone, or in a document between its two marks."""
    put_between_marks(to_markdown(found), path, found.get("mark", "benchmark"))


def put_between_marks(text: str, path: Path, mark: str = "benchmark") -> None:
    """Write a new file, or the part of a document between its two marks."""
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    if path.exists() and start in path.read_text():
        before, rest = path.read_text().split(start)
        text = f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"
    path.write_text(text)


def to_markdown(found: dict[str, Any]) -> str:
    """The same tables for ``docs/performance.md``."""
    machine = found["machine"]
    versions = "; ".join(" ".join(pair) for pair in found["versions"].items())
    before, after = found["load_average"]
    introduction = (
        f"Machine: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_GB']:.0f} GB of memory, {machine['system']}. {versions}. "
        f"Load average at the start {before:.2f}, at the end {after:.2f}. "
        f"The run took {found['minutes']:.0f} minutes."
    )
    if found["quick"]:
        introduction += " A quick run at small sizes: the goals are for the full ones."
    parts = [
        introduction,
        f"```console\n$ {found['command']}\n```",
        "### Goals\n\n" + markdown_table(_goal_rows(found)),
    ]
    for section in found["sections"]:
        parts.append(f"### {section['title']}\n\n{markdown_table(section['rows'])}")
        if section["note"]:
            parts.append(section["note"])
    parts += [f"Left out: {line}." for line in found["left_out"]]
    parts.append(_checks(found))
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """The same as Markdown."""
    columns = _columns(rows)
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row[n]) if n in row else "-" for n in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
