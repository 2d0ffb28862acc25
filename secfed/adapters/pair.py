"""A student and the mentor that learns beside it, as one model that trains.

For the private step they are one: their gradients are clipped as one vector and noised
together, so that a step is one release of the plan's mechanism, whatever of its result
stays at the site. The mentor's tensors have marked names, so that no rule takes them
for tensors that travel.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from secfed.adapters.model import AdaptedModel, SequenceClassifier
from secfed.types import Tensors

__all__ = ["MENTOR", "ModelPair", "marked", "parted"]

MENTOR: Final = "@mentor"
"""Ends the names of the mentor's tensors: none ends like a factor, which rules average
and rest, and its head begins like a head, which has a step size of its own."""


def marked(tensors: Tensors) -> Tensors:
    """A mentor's tensors under the names that they have in a pair."""
    return {name + MENTOR: value for name, value in tensors.items()}


def parted(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The student's tensors, and the mentor's with their marks, each in their order."""
    mentors = {n: value for n, value in tensors.items() if n.endswith(MENTOR)}
    return {n: tensors[n] for n in tensors if n not in mentors}, mentors


class ModelPair(AdaptedModel):
    """Two classifiers, of which each has states of its own of the same texts.

    ``forward`` gives the logits of both. Parameters are shared with both models, which
    can be used by themselves as before.
    """

    def __init__(self, student: SequenceClassifier, mentor: SequenceClassifier) -> None:
        nn.Module.__init__(self)  # Its layers are those of the two.
        self.student, self.mentor = student, mentor
        self.kind = student.kind
        self._both = [nn.ModuleList([student.network, mentor.network])]

    @property
    def network(self) -> nn.ModuleList:
        """Both PEFT models."""
        return self._both[0]

    def named(self) -> dict[str, nn.Parameter]:
        """The student's parameters, then the mentor's under marked names."""
        mentors = {n + MENTOR: p for n, p in self.mentor.named().items()}
        return {**self.student.named(), **mentors}

    def write(self, tensors: Tensors) -> None:
        """Set every number of both adapters.

        Raises:
            ModelError: One of them does not fit its model.
        """
        student, mentor = parted(tensors)
        self.student.write(student)
        self.mentor.write(_plain(mentor))

    def forward(
        self,
        states: torch.Tensor,
        mask: torch.Tensor,
        mentor_states: torch.Tensor,
        mentor_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequence logits (n, classes) of the student and of the mentor."""
        return self.student(states, mask), self.mentor(mentor_states, mentor_mask)


def _plain(mentor: Tensors) -> Tensors:
    return {name.removesuffix(MENTOR): value for name, value in mentor.items()}
