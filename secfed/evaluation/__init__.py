"""Scores on the public hold-out; of private records nothing but noised sums.

``classes`` are those of a classifier, ``texts`` those of next-token prediction, and
``answers`` those of a language model that was asked: with its text by ``generation``
and what that text shares with the right one by ``rouge``. ``held_back`` evaluates
records that a site holds back; what it returns is private.
"""

from secfed.evaluation.answers import Questions, constant_answers, score_answers
from secfed.evaluation.classes import (
    Scores,
    best_constant,
    calibration_error,
    constant_scores,
    majority_scores,
    predict,
    score,
    score_logits,
)
from secfed.evaluation.held_back import outcomes
from secfed.evaluation.texts import TextScores, TokenCounts, count_tokens

__all__ = [
    "Questions",
    "Scores",
    "TextScores",
    "TokenCounts",
    "best_constant",
    "calibration_error",
    "constant_answers",
    "constant_scores",
    "count_tokens",
    "majority_scores",
    "outcomes",
    "predict",
    "score",
    "score_answers",
    "score_logits",
]
