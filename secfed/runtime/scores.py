"""What a metrics line says of an adapter: its scores on the public hold-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from secfed.evaluation import count_tokens, evaluate, majority_scores
from secfed.models import TokenFeatures
from secfed.runtime.setup import Prepared
from secfed.types import Adapter

__all__ = ["mean_scores", "reference_scores", "scores_of"]

ScoreLine = dict[str, Any]


def scores_of(prepared: Prepared, adapter: Adapter) -> ScoreLine:
    """The task's scores; of texts also by category, where categories are named."""
    holdout, labels = prepared.holdout, prepared.holdout_labels
    if not isinstance(holdout, TokenFeatures):
        return asdict(evaluate(prepared.model, adapter, holdout, labels))
    counts = count_tokens(prepared.model, adapter, holdout)
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


def reference_scores(prepared: Prepared) -> dict[str, ScoreLine]:
    """What learned nothing: the constant answer, or the base model alone."""
    if isinstance(prepared.holdout, TokenFeatures):
        return {"untrained": scores_of(prepared, prepared.start)}
    labels, classes = prepared.holdout_labels, len(prepared.label_names)
    return {"majority": asdict(majority_scores(labels, classes))}
