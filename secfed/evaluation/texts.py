"""Next-token prediction on the public hold-out: perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from secfed.adapters import AdaptedModel
from secfed.models import TokenFeatures, moved, padded_batches
from secfed.types import Adapter

__all__ = ["LOGIT_TOKENS", "NOTHING", "TextScores", "TokenCounts", "count_tokens"]

LOGIT_TOKENS: Final = 1024
"""With a vocabulary of 50,000 the logits of so many tokens take 200 MB."""

NOTHING: Final = -100
"""No token: padding. Torch ignores it, and no prediction equals it."""

_LARGEST_LOSS: Final = 700.0
"""Nats per token; above is a model that broke, and its exponential is no number."""


@dataclass(frozen=True)
class TextScores:
    """Of next-token prediction: perplexity, at least 1, and a share in [0, 1].

    Perplexity is the exponential of the mean cross-entropy over tokens, so that a long
    block counts for more than a short one. A block's first token is not predicted.
    """

    perplexity: float
    token_accuracy: float


@dataclass(frozen=True)
class TokenCounts:
    """Block by block: summed cross-entropy, right tokens, and predicted tokens."""

    loss: NDArray[np.float64]
    right: NDArray[np.int64]
    tokens: NDArray[np.int64]

    def scores(self, chosen: NDArray[np.bool_] | None = None) -> TextScores | None:
        """Over some blocks, or all; None where there are none."""
        rows = slice(None) if chosen is None else chosen
        tokens = int(self.tokens[rows].sum())
        if tokens == 0:
            return None
        mean = float(self.loss[rows].sum()) / tokens
        capped = min(mean, _LARGEST_LOSS) if math.isfinite(mean) else _LARGEST_LOSS
        return TextScores(
            perplexity=math.exp(capped),
            token_accuracy=int(self.right[rows].sum()) / tokens,
        )


def count_tokens(
    model: AdaptedModel, adapter: Adapter, features: TokenFeatures
) -> TokenCounts:
    """Predict every token of every block from those before it."""
    model.write(adapter.tensors)
    model.eval()
    count = len(features)
    loss, right = np.zeros(count), np.zeros(count, dtype=np.int64)
    with torch.inference_mode():
        everything = np.arange(count)
        for rows in padded_batches(features.lengths, everything, LOGIT_TOKENS):
            whole = (*features.batch(rows), features.targets(rows, NOTHING))
            *batch, targets = moved(whole, model)
            wanted, logits = targets[:, 1:], model(*batch)[:, :-1]
            each = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1),
                wanted.flatten(),
                reduction="none",
                ignore_index=NOTHING,
            ).view_as(wanted)
            loss[rows] = each.double().sum(dim=1).numpy(force=True)
            right[rows] = (logits.argmax(dim=2) == wanted).sum(dim=1).numpy(force=True)
    return TokenCounts(loss=loss, right=right, tokens=features.lengths - 1)
