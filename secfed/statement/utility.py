"""What an adapter scores on the public hold-out, as a statement says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from secfed.entries import JsonObject

__all__ = ["SCORES", "utility_section"]

SCORES: Final = (
    "accuracy",
    "macro_f1",
    "f1",
    "ece",
    "unparsed",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "rouge_lsum",
    "token_accuracy",
    "matthews",
    "perplexity",
)
"""What of a line of ``metrics.jsonl`` is a score."""


def utility_section(line: Mapping[str, Any] | None) -> JsonObject | str:
    """The last line of ``metrics.jsonl`` as a statement's section.

    The hold-out is public, and so are its subgroups: nothing here was paid for. Noise
    costs a small subgroup more than a large one, which a mean over all of them hides.

    Args:
        line: With the scores, and those of each subgroup in ``by_category`` where the
            study names a column of subgroups; None where nobody scored.
    """
    if line is None or not _scores(line):
        return "UNKNOWN"
    parts = line.get("by_category") or {}
    return {
        "measured_on": "the public hold-out",
        "scores": _scores(line),
        "by_subgroup": {name: _scores(own) for name, own in parts.items()} or "UNKNOWN",
    }


def _scores(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: line[name] for name in SCORES if line.get(name) is not None}
