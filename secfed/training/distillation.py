"""What a teacher or a mentor adds to a record's loss, from that record alone.

A frozen teacher says its word on a record once, before the first round; it depends on
the record and on public or released weights only. So it is cached beside the frozen
states, a batch carries it like a label, and no record's gradient depends on another
record.

A mentor learns, so its word is said anew in every step, of the same record and from
weights that are noised as the student's are. Every record's loss is one number of both
models, and its gradient one vector over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfed.models import Features
from secfed.training.losses import ClassificationLoss
from secfed.training.records import PrivateRecords

__all__ = [
    "DistillationLoss",
    "DistilledRecords",
    "MutualLoss",
    "PairedRecords",
    "soft_targets",
]

_LEAST_LOSS: Final = 1e-3
"""What ``adaptive`` divides by at least: of a record that both know, nearly nothing
would be divided by nothing."""


def soft_targets(
    logits: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)) of each record by itself.

    Its gradient is T (softmax(logits / T) - softmax(teacher / T)): the factor T^2
    keeps its size where T changes (Hinton, Vinyals and Dean, arXiv:1503.02531,
    section 2).

    Args:
        logits: (n, classes), of the student.
        teacher: (n, classes); constants.
        temperature: T > 0.

    Returns:
        (n,) losses; zero where both say the same.
    """
    said = nn.functional.log_softmax(teacher.detach() / temperature, dim=1)
    found = nn.functional.log_softmax(logits / temperature, dim=1)
    return temperature**2 * (said.exp() * (said - found)).sum(dim=1)


@dataclass(frozen=True)
class DistillationLoss:
    """(1 - weight) of the labels' loss, weight of the teacher's; a ``RecordLoss``.

    Class weights belong to the labels' part. A part of weight zero is not computed, so
    that weight 0 is plain training bit for bit.
    """

    weight: float
    temperature: float
    class_weights: tuple[float, ...] | None = None

    def __call__(
        self,
        network: nn.Module,
        states: torch.Tensor,
        mask: torch.Tensor,
        labels: torch.Tensor,
        teacher: torch.Tensor,
    ) -> torch.Tensor:
        """Losses (n,) of padded states, mask, labels and the teacher's logits."""
        of_labels = ClassificationLoss(self.class_weights)
        if self.weight == 0:
            return of_labels(network, states, mask, labels)
        logits: torch.Tensor = network(states, mask)
        soft = soft_targets(logits, teacher, self.temperature)
        if self.weight == 1:
            return soft
        hard = of_labels.of_logits(logits, labels)
        return (1 - self.weight) * hard + self.weight * soft


@dataclass(frozen=True)
class MutualLoss:
    """The labels' loss of student and mentor, and what each learns of the other.

    For one record with the logits s and m::

        CE(s) + CE(m) + weight T^2 (KL(m / T || s / T) + KL(s / T || m / T)) / D

    where the first of each divergence is a constant (Zhang et al., CVPR 2018, section
    2.2), and D is 1, or, ``adaptive``, the record's own CE(s) + CE(m), a constant too:
    two that answer badly teach each other little (FedKD, Wu et al., Nature
    Communications 13:2032, 2022). No number of another record takes part. Class
    weights belong to the labels' parts.
    """

    weight: float
    temperature: float
    class_weights: tuple[float, ...] | None = None
    adaptive: bool = False

    def __call__(
        self,
        network: nn.Module,
        states: torch.Tensor,
        mask: torch.Tensor,
        labels: torch.Tensor,
        mentor_states: torch.Tensor,
        mentor_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Losses (n,) of padded states and masks for both, and labels."""
        student, mentor = network(states, mask, mentor_states, mentor_mask)
        of_labels = ClassificationLoss(self.class_weights).of_logits
        hard = of_labels(student, labels) + of_labels(mentor, labels)
        soft = soft_targets(student, mentor, self.temperature)
        soft = soft + soft_targets(mentor, student, self.temperature)
        if self.adaptive:
            soft = soft / hard.detach().clamp(min=_LEAST_LOSS)
        return hard + self.weight * soft


@dataclass(frozen=True, repr=False)
class DistilledRecords(PrivateRecords):
    """Records with the logits (n, classes) that a teacher gave for each, float32.

    They are as private as the texts.
    """

    teacher: NDArray[np.float32]

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Padded states, mask, labels, and the teacher's logits (n, classes)."""
        return (*super().batch(rows), torch.as_tensor(self.teacher[rows]))

    @classmethod
    def joined_parts(cls, sites: Sequence[Any]) -> dict[str, Any]:
        """The teacher's logits of all sites' records, in their order."""
        return {"teacher": np.concatenate([held.teacher for held in sites])}


@dataclass(frozen=True, repr=False)
class PairedRecords(PrivateRecords):
    """Records with the states that a mentor's frozen part made of the same texts.

    They are as private as the texts.
    """

    mentor: Features

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Padded states, mask, labels, and the mentor's padded states and mask."""
        return (*super().batch(rows), *self.mentor.batch(rows))

    @classmethod
    def joined_parts(cls, sites: Sequence[Any]) -> dict[str, Any]:
        """The mentor's states of all sites' records, in their order."""
        return {"mentor": Features.joined([held.mentor for held in sites])}
