"""What a metrics line says of an adapter: its scores on the public hold-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfed.evaluation import (
    best_constant,
    constant_answers,
    constant_scores,
    count_tokens,
    predict,
    score_answers,
    score_logits,
)
from secfed.models import AnswerFeatures, TokenFeatures
from secfed.report.measures import measure_of
from secfed.runtime.setup import Prepared
from secfed.study import Study
from secfed.types import Adapter

__all__ = ["mean_scores", "reference_scores", "scores_of"]

ScoreLine = dict[str, Any]

_SHOWN_ANSWERS: Final = 3
"""So many constant answers stand in the tables, the best ones."""


def scores_of(prepared: Prepared, adapter: Adapter) -> ScoreLine:
    """The task's scores; also by category, where public categories are named.

    Those of texts are their labels, those of a classifier the hold-out's subgroups.
    """
    model, holdout, labels = prepared.model, prepared.holdout, prepared.holdout_labels
    if isinstance(holdout, AnswerFeatures) and prepared.questions is not None:
        return score_answers(model, adapter, holdout, labels, prepared.questions)
    if not isinstance(holdout, TokenFeatures):
        logits = predict(model, adapter, holdout)
        return _classes(logits, labels, prepared.positive, prepared.holdout_subgroups)
    counts = count_tokens(model, adapter, holdout)
    line = _line(counts.scores())
    parts = {
        name: counts.scores(labels == number)
        for number, name in enumerate(prepared.label_names)
    }
    if parts:
        # The hold-out is public, and so are the names: a category that is not in it
        # is left out.
        line["by_category"] = {n: _line(s) for n, s in parts.items() if s is not None}
    return line


def _classes(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    positive: int | None,
    subgroups: Sequence[str],
) -> ScoreLine:
    line: ScoreLine = dict(score_logits(logits, labels, positive).line())
    names = np.array(subgroups, dtype=str)
    parts = {name: names == name for name in sorted(set(subgroups))}
    if parts:
        line["by_category"] = {
            name: score_logits(logits[own], labels[own], positive).line()
            for name, own in parts.items()
        }
    return line


def _line(scores: Any) -> ScoreLine:
    return {} if scores is None else asdict(scores)


def mean_scores(lines: Sequence[Mapping[str, Any]]) -> ScoreLine:
    """The mean of every number over models, as rules with personal models report."""
    first = lines[0]
    return {
        key: mean_scores([line[key] for line in lines])
        if isinstance(first[key], Mapping)
        else float(np.mean([line[key] for line in lines]))
        for key in first
    }


def reference_scores(study: Study, prepared: Prepared) -> dict[str, ScoreLine]:
    """What learned nothing: a constant answer, or the base model alone.

    ``majority`` is the constant answer that has the best main score; by accuracy it
    names the most frequent class. Where a model is asked, the base model stands beside
    it, and the best constant answers one by one.
    """
    questions = prepared.questions
    if isinstance(prepared.holdout, TokenFeatures) and questions is None:
        return {"untrained": scores_of(prepared, prepared.start)}
    labels, classes = prepared.holdout_labels, len(prepared.label_names)
    constants = constant_scores(labels, classes, prepared.positive)
    best = best_constant(constants, measure_of(study.canonical().get("task")).key)
    if questions is None:
        return {"majority": constants[best].line()}
    answers = constant_answers(labels, constants, questions)
    return {
        "untrained": scores_of(prepared, prepared.start),
        "majority": list(answers.values())[best],
        "constants": _best(answers, study),
    }


def _best(answers: Mapping[str, ScoreLine], study: Study) -> ScoreLine:
    key = measure_of(study.canonical().get("task")).key
    names = sorted(answers, key=lambda name: -answers[name][key])
    return {name: answers[name] for name in names[:_SHOWN_ANSWERS]}
