"""Scores on the public hold-out; never computed on private records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

from secfed.adapters import AdaptedModel
from secfed.models import Features, padded_batches
from secfed.types import Adapter

__all__ = ["Scores", "evaluate", "majority_scores", "predict", "score"]

_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Scores:
    """Accuracy and macro-F1 over all classes of the study, each in [0, 1]."""

    accuracy: float
    macro_f1: float


def predict(
    model: AdaptedModel, adapter: Adapter, features: Features
) -> NDArray[np.float32]:
    """Sequence logits (len(features), classes)."""
    model.write(adapter.tensors)
    model.eval()
    rows: list[NDArray[np.int64]] = []
    outputs: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        everything = np.arange(len(features))
        for batch in padded_batches(features.lengths, everything, _BATCH_TOKENS):
            rows.append(batch)
            outputs.append(model(*features.batch(batch)).numpy())
    logits = np.concatenate(outputs)
    ordered = np.empty_like(logits)
    ordered[np.concatenate(rows)] = logits
    return ordered


def evaluate(
    model: AdaptedModel,
    adapter: Adapter,
    features: Features,
    labels: NDArray[np.int64],
) -> Scores:
    """Score an adapter on the public hold-out."""
    logits = predict(model, adapter, features)
    return score(labels, logits.argmax(axis=1), logits.shape[1])


def majority_scores(labels: NDArray[np.int64], classes: int) -> Scores:
    """The constant answer that scores best on these labels."""
    best = int(np.bincount(labels, minlength=classes).argmax())
    return score(labels, np.full_like(labels, best), classes)


def score(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> Scores:
    """Accuracy and macro-F1; a class that never occurs counts as zero."""
    return Scores(
        accuracy=float(accuracy_score(labels, predicted)),
        macro_f1=float(
            f1_score(
                labels,
                predicted,
                labels=np.arange(classes),
                average="macro",
                zero_division=0,
            )
        ),
    )
