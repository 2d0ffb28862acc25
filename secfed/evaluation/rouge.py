"""ROUGE: what a generated text shares with the right one (Lin, 2004)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

__all__ = ["ROUGE", "rouge_means"]

ROUGE: Final = {
    "rouge_1": "rouge1",
    "rouge_2": "rouge2",
    "rouge_l": "rougeL",
    "rouge_lsum": "rougeLsum",
}
"""Our names, and those of the package ``rouge-score``."""


def rouge_means(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """The mean F-measure of every kind, each in [0, 1].

    Words are compared as they stand, without a stemmer. A text of one word has no pair
    of words, and its ROUGE-2 is 0.

    Args:
        found: What was generated.
        wanted: What is right, text by text.
    """
    # It loads a library of linguistics, which takes longer than most evaluations.
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415

    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=False)
    totals = dict.fromkeys(ROUGE, 0.0)
    # Short answers repeat themselves.
    for (text, right), count in Counter(zip(found, wanted, strict=True)).items():
        scores = scorer.score(right, text)
        for name, theirs in ROUGE.items():
            totals[name] += count * scores[theirs].fmeasure
    return {name: total / max(len(found), 1) for name, total in totals.items()}
