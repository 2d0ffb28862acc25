"""What an adapter does on records that a site holds back, one record at a time.

Records are never computed together: in a batch the shape of a matrix product, and with
it the last bits of every result, would follow from the other records, and an answer
that is nearly tied could flip because somebody else is there. Alone, a unit's
contribution depends on that unit and the public adapter only, as the bound of
``secfed.privacy.held_back`` asks.

What is returned is private. It leaves a site as a noised sum under masks, or not at
all.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from secfed.adapters import AdaptedModel
from secfed.evaluation.answers import Questions, generated, read_answer
from secfed.evaluation.texts import count_tokens
from secfed.models import AnswerFeatures, Features, TokenFeatures, moved
from secfed.privacy.held_back import Outcomes
from secfed.types import Adapter

__all__ = ["outcomes"]


def outcomes(
    model: AdaptedModel,
    adapter: Adapter,
    texts: tuple[Features, ...],
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    questions: Questions | None = None,
) -> Outcomes:
    """Evaluate every held-back record by itself.

    Args:
        model: The base with its adapters.
        adapter: What the coordinator made of the last sum.
        texts: Cached states of each record by itself.
        labels: (n,), the right classes.
        units: (n,), the privacy unit of every record.
        questions: How a prompted model is asked; None in other tasks.
    """
    model.write(adapter.tensors)
    model.eval()
    found = [
        _one(model, adapter, text, int(label), questions)
        for text, label in zip(texts, labels, strict=True)
    ]
    answers, right, loss = zip(*found, strict=True) if found else ((), (), ())
    return Outcomes(
        labels=labels,
        answers=np.array(answers, dtype=np.int64),
        right=np.array(right, dtype=np.float64),
        loss=np.array(loss, dtype=np.float64),
        units=units,
        num_units=int(units.max()) + 1 if len(units) else 0,
    )


def _one(
    model: AdaptedModel,
    adapter: Adapter,
    text: Features,
    label: int,
    questions: Questions | None,
) -> tuple[int, float, float]:
    """The answered class, how much is right in [0, 1], and the loss of one record."""
    if isinstance(text, AnswerFeatures) and questions is not None:
        (said,) = generated(model, adapter, text, questions)
        answer = read_answer(said, questions.answers)
        return answer, float(answer == label), 0.0
    if isinstance(text, TokenFeatures):
        counts = count_tokens(model, adapter, text)
        tokens = max(int(counts.tokens[0]), 1)
        return -1, int(counts.right[0]) / tokens, float(counts.loss[0]) / tokens
    return _class(model, text, label)


def _class(model: AdaptedModel, text: Features, label: int) -> tuple[int, float, float]:
    with torch.inference_mode():
        whole = (*text.batch(np.zeros(1, dtype=np.int64)), torch.tensor([label]))
        *batch, right = moved(whole, model)
        logits = model(*batch)
        loss = torch.nn.functional.cross_entropy(
            logits.double(), right, reduction="sum"
        )
    answer = int(logits.argmax(dim=1))
    return answer, float(answer == label), float(loss)
