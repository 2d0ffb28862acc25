"""Scores on held-back records, as the statements of a run have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secfed.report.reading import RunRecord, below
from secfed.report.tables import UNKNOWN

__all__ = ["evaluated_rows"]

_NAMES = {
    "accuracy": "accuracy",
    "mean_loss": "mean loss (nats, cut at the cap)",
    "f1": "F1",
    "macro_f1": "macro-F1",
}


def evaluated_rows(record: RunRecord) -> tuple[tuple[str, ...], ...]:
    """The scores with their intervals; the first row are headings, empty if none."""
    rows = []
    for arm, statement in record.statements.items():
        told = below(below(statement, "evaluation"), "rounds")
        for found in told if isinstance(told, list) else ():
            rows += _rows(arm, found)
    headings = ("Arm", "After round", "Score", "Value", "Noise alone", "With sampling")
    return (headings, *rows) if rows else ()


def _rows(arm: str, found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    number, scores = str(found.get("after_round")), found.get("scores")
    if not isinstance(scores, Mapping) or not scores:
        return [(arm, number, "interrupted", UNKNOWN, UNKNOWN, UNKNOWN)]
    return [
        (
            arm,
            number,
            _NAMES.get(str(name), str(name)),
            _shown(own.get("value")),
            _interval(own.get("noise_interval")),
            _interval(own.get("interval")),
        )
        for name, own in scores.items()
    ]


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else UNKNOWN


def _interval(limits: object) -> str:
    if not isinstance(limits, list):
        return UNKNOWN
    return " to ".join(_shown(limit) for limit in limits)
