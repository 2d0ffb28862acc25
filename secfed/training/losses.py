"""One loss per record, from that record alone; never a mean over a batch.

A loss that divides by something counted over the batch, such as its tokens, lets
one record's length scale every other record's gradient, and then clipping bounds
nobody (PITFALLS 1). Every function here returns a tensor of shape (n,) whose
i-th number depends on row i only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from secfed.models import answer_places

__all__ = [
    "IGNORED",
    "AnswerLoss",
    "CausalLoss",
    "ClassificationLoss",
    "RecordLoss",
    "causal_lm",
    "classification",
]

IGNORED = -100
"""A target that is no answer token (Transformers' convention): prompt, padding."""

RecordLoss = Callable[..., torch.Tensor]
"""``loss(network, *batch)``: one number per row of the tensors in ``batch``."""


def classification(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of each record by itself, times the weight of its class.

    Args:
        logits: (n, classes).
        labels: (n,), int64.
        class_weights: (classes,), public numbers that the study declares; counted
            from private records they would be a release of their own. Not divided
            by their sum over the batch, which would couple the records.

    Returns:
        (n,) losses.
    """
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return losses if class_weights is None else losses * class_weights[labels]


def causal_lm(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each record over its own answer tokens.

    The logits at position t predict the target at t + 1. A record without answer
    tokens has the loss zero.

    Args:
        logits: (n, tokens, vocabulary).
        targets: (n, tokens), token ids; ``IGNORED`` where nothing is asked.

    Returns:
        (n,) losses.
    """
    # Targets move, logits stay where they lie: with the vocabulary innermost, and
    # not copied, the loss takes a third of the time.
    wanted = nn.functional.pad(targets[:, 1:], (0, 1), value=IGNORED)
    each = nn.functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=IGNORED
    ).view_as(wanted)
    return each.sum(dim=1) / (wanted != IGNORED).sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class ClassificationLoss:
    """The loss of sequence classification over cached states; a ``RecordLoss``."""

    class_weights: tuple[float, ...] | None = None

    def __call__(
        self,
        network: nn.Module,
        states: torch.Tensor,
        mask: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Losses (n,) of padded states, their mask and their labels."""
        return self.of_logits(network(states, mask), labels)

    def of_logits(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Losses (n,) of logits (n, classes) and labels."""
        weights = None
        if self.class_weights is not None:
            weights = torch.tensor(
                self.class_weights, dtype=logits.dtype, device=logits.device
            )
        return classification(logits, labels, weights)


@dataclass(frozen=True)
class CausalLoss:
    """The loss of next-token prediction over cached states; a ``RecordLoss``."""

    def __call__(
        self,
        network: nn.Module,
        states: torch.Tensor,
        mask: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Losses (n,) of padded states, their mask and their tokens."""
        return causal_lm(network(states, mask), targets)


@dataclass(frozen=True)
class AnswerLoss:
    """The loss of answers to prompts over cached states; a ``RecordLoss``.

    The mean cross-entropy over a record's own answer tokens, as ``causal_lm`` gives
    it; logits are computed where an answer is, and nowhere else.

    Attributes:
        longest: Tokens of the longest answer; known from the study, not from records.
    """

    longest: int

    def __call__(
        self,
        network: nn.Module,
        states: torch.Tensor,
        mask: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Losses (n,) of padded states, their mask and their answers' tokens."""
        places, asked = answer_places(targets, self.longest, IGNORED)
        logits = network(states, mask, places)
        each = nn.functional.cross_entropy(
            logits.flatten(0, 1),
            asked.flatten(),
            reduction="none",
            ignore_index=IGNORED,
        ).view_as(asked)
        return each.sum(dim=1) / (asked != IGNORED).sum(dim=1).clamp(min=1)
