"""Classes on the public hold-out: accuracy, F1, correlation and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from secfed.adapters import AdaptedModel
from secfed.models import Features, moved, padded_batches
from secfed.types import Adapter

__all__ = [
    "Scores",
    "best_constant",
    "calibration_error",
    "constant_scores",
    "majority_scores",
    "predict",
    "score",
    "score_logits",
]

_BATCH_TOKENS = 8192

_BINS: Final = 15
"""Of confidence, as in Guo et al. (ICML 2017), section 5."""


@dataclass(frozen=True)
class Scores:
    """What a classifier's answers are worth.

    Attributes:
        accuracy: In [0, 1].
        macro_f1: The mean F1 over all classes of the study, in [0, 1].
        matthews: Matthews' correlation of answers and classes, in [-1, 1]; 0 for a
            constant answer.
        f1: Of the class that the study names as positive; None where it names none.
        ece: The expected calibration error, in [0, 1]; None where there are no
            probabilities.
    """

    accuracy: float
    macro_f1: float
    matthews: float
    f1: float | None = None
    ece: float | None = None

    def line(self) -> dict[str, float]:
        """The scores that there are, by name."""
        return {key: value for key, value in asdict(self).items() if value is not None}


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
            logits = model(*moved(features.batch(batch), model))
            outputs.append(logits.numpy(force=True))
    found = np.concatenate(outputs)
    ordered = np.empty_like(found)
    ordered[np.concatenate(rows)] = found
    return ordered


def score_logits(
    found: NDArray[np.float32], labels: NDArray[np.int64], positive: int | None = None
) -> Scores:
    """Scores and calibration of sequence logits (n, classes)."""
    logits = torch.from_numpy(found)
    shares = torch.softmax(logits.double(), dim=1).numpy()
    # Of the logits: in shares a broken model's NaN would win.
    answers = score(labels, logits.argmax(dim=1).numpy(), logits.shape[1], positive)
    return replace(answers, ece=calibration_error(shares, labels))


def calibration_error(
    shares: NDArray[np.float64], labels: NDArray[np.int64], bins: int = _BINS
) -> float:
    """The expected calibration error (Guo et al., ICML 2017, equation 3).

    The mean over records of |accuracy - confidence|, both averaged over the records
    whose confidence is in the same of ``bins`` equal intervals.

    Args:
        shares: (n, classes), the probability of every class.
        labels: (n,), the true ones.
        bins: How many intervals of confidence there are.
    """
    confidence = shares.max(axis=1)
    right = shares.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def majority_scores(
    labels: NDArray[np.int64], classes: int, positive: int | None = None
) -> Scores:
    """The constant answer that is right most often on these labels."""
    best = int(np.bincount(labels, minlength=classes).argmax())
    return score(labels, np.full_like(labels, best), classes, positive)


def constant_scores(
    labels: NDArray[np.int64], classes: int, positive: int | None = None
) -> tuple[Scores, ...]:
    """What every constant answer scores, class by class."""
    return tuple(
        score(labels, np.full_like(labels, number), classes, positive)
        for number in range(classes)
    )


def best_constant(constants: Sequence[Scores], key: str) -> int:
    """The class whose constant answer has the best score of this name.

    Of several the one that is right most often.
    """
    merits = [(getattr(one, key), one.accuracy) for one in constants]
    return max(range(len(merits)), key=merits.__getitem__)


def score(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: int,
    positive: int | None = None,
) -> Scores:
    """Scores of answers; a class that never occurs counts as zero in the macro-F1.

    An answer below zero is none of the classes, and wrong.
    """
    f1 = f1_score(
        labels, predicted, labels=np.arange(classes), average=None, zero_division=0
    )
    return Scores(
        accuracy=float(accuracy_score(labels, predicted)),
        macro_f1=float(np.mean(f1)),
        matthews=float(matthews_corrcoef(labels, predicted)),
        f1=None if positive is None else float(f1[positive]),
    )
