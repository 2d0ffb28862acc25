"""Checks that run inside every round; a failure stops it before anything is sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.errors import TrainingError
from secfed.training.gradients import Batch, RecordGradients
from secfed.training.losses import RecordLoss
from secfed.training.records import PrivateRecords
from secfed.types import Tensors

__all__ = ["FrozenWeights", "check_independence", "check_moved"]

_RECORDS = 4


def check_independence(
    gradients: RecordGradients, loss: RecordLoss, records: PrivateRecords
) -> None:
    """Replace one record; no other record's gradient may move by a bit.

    Catches losses that couple records and modules that mix samples (PITFALLS 1,
    10). Uses a few of the site's records; nothing of the result leaves.

    Raises:
        TrainingError: Records influence each other's gradients.
    """
    rows = np.arange(min(_RECORDS, len(records.labels)))
    if len(rows) < 2:  # noqa: PLR2004 - a single record cannot influence another
        return
    batch = records.batch(rows)
    before = gradients(loss, batch)
    after = gradients(loss, _first_replaced(batch))
    # Bit for bit; a record whose gradient is not finite is nobody's fault here.
    if not all(
        torch.allclose(one[1:], two[1:], rtol=0.0, atol=0.0, equal_nan=True)
        for one, two in zip(before, after, strict=True)
    ):
        raise TrainingError(
            "self-test failed: changing one record moved another record's gradient, "
            "so clipping would not bound a person's influence; nothing was sent"
        )


def _first_replaced(batch: Batch) -> Batch:
    """The batch with another first record, of the same padded shape."""
    changed = tuple(part.clone() for part in batch)
    for part in changed:
        part[0] = -part[0] if part.is_floating_point() else part[1]
    return changed


class FrozenWeights:
    """Remembers the frozen weights of a model, and finds out if one was written to.

    Torch counts the writes to every tensor, so that nothing is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._writes = {
            name: parameter._version  # noqa: SLF001 - torch offers no public name
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad
        }

    def check(self) -> None:
        """Raise if a frozen weight was written to since.

        Raises:
            TrainingError: It was; the message names the first.
        """
        for name, parameter in self._model.named_parameters():
            if self._writes.get(name, parameter._version) != parameter._version:  # noqa: SLF001
                raise TrainingError(f"self-test failed: {name} is frozen and moved")


def check_moved(
    model: AdaptedModel,
    received: Tensors,
    trains: Collection[str],
    *,
    must_move: bool = True,
) -> Mapping[str, np.ndarray]:
    """The adapter now, after checking what moved and what did not (PITFALLS 11).

    Args:
        model: The model that trains.
        received: The adapter's numbers before the first step.
        trains: The names of the tensors that are trained.
        must_move: Without noise a factor may rightly stay (A has no gradient
            while B is zero).

    Raises:
        TrainingError: A trained tensor stayed, or a frozen one moved.
    """
    after = model.read()
    for name, value in after.items():
        same = np.array_equal(value, received[name])
        if must_move and name in trains and same:
            raise TrainingError(
                f"self-test failed: {name} was trained and did not move"
            )
        if name not in trains and not same:
            raise TrainingError(f"self-test failed: {name} is frozen and moved")
    return after
