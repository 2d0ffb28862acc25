"""What the scripts of this folder share: a stamp for results, intervals, files."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

__all__ = ["figures", "interval", "markdown_table", "spans", "stamp", "write_json"]

_CONFIDENCE = 0.95
_DIGITS = 7


def stamp(script: str, arguments: Sequence[str], packages: Iterable[str]) -> Any:
    """Command, date, versions and machine: what a reader needs to repeat a result."""
    command = ["python", f"examples/lora_aggregation/{script}", *arguments]
    versions = {name: version(name) for name in packages}
    return {
        "format": 1,
        "command": shlex.join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
            "load average at start": round(os.getloadavg()[0], 2),
        },
    }


def _processor() -> str:
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def interval(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis with its 95 % interval (Student's t).

    Args:
        values: Shape (..., repetitions), at least two repetitions.

    Returns:
        Shape (..., 3): mean, low, high.
    """
    count = values.shape[-1]
    mean = values.mean(axis=-1)
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, count - 1))
    half = quantile * values.std(axis=-1, ddof=1) / np.sqrt(count)
    return np.stack([mean, mean - half, mean + half], axis=-1)


def write_json(found: Any, path: Path) -> Any:
    """Write one value and return it as a reader of the file gets it.

    Numbers have seven significant digits, and lists of numbers stay on one line.
    """
    text = json.dumps(_rounded(found), indent=1)
    text = re.sub(r"\[[-+.\de,\s]+\]", lambda match: re.sub(r"\s+", "", match[0]), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return json.loads(text)


def _rounded(value: Any) -> Any:
    """Arrays as lists, and numbers with few digits."""
    if isinstance(value, np.ndarray):
        return _rounded(value.tolist())
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return value


def figures(value: float) -> str:
    """Three significant figures, and no exponent."""
    if abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for Markdown files; numbers to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows))


def spans(numbers: Sequence[int]) -> str:
    """Sorted numbers as words: ``1 to 4, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(
        str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts
    )
