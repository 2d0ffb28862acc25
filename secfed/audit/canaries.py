"""Part B, inside the pipeline: Dirac canaries as records of the audited site.

A canary is a record whose gradient is one number in one place: it belongs to a weight
of a trained layer. Its loss calls that layer itself, with an input that is one at the
weight's column and zero elsewhere, and takes the output at the weight's row. So its
gradient goes through what every record's goes through: Opacus' rules, the unit, the
clip, the sum. The same input without the one is subtracted, so that a bias gets
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.audit.invented import flat_parts
from secfed.audit.streams import public_generator
from secfed.errors import StudyError
from secfed.training import PrivateRecords, RecordLoss

__all__ = ["CanaryLoss", "CanaryRecords", "Place", "place_canaries", "with_canaries"]

_NOBODY = -1


@dataclass(frozen=True)
class Place:
    """Where canaries lie in one trained tensor, a matrix (out, in)."""

    tensor: str
    layer: nn.Linear
    canaries: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def read(self, change: NDArray[np.float32]) -> NDArray[np.float64]:
        """The tensor's numbers at the canaries, in their order."""
        found: NDArray[np.float64] = change[self.rows, self.columns].astype(np.float64)
        return found


def place_canaries(
    model: AdaptedModel, trains: Sequence[str], count: int
) -> tuple[Place, ...]:
    """Spread canaries over different weights of the trained layers; public choice.

    Raises:
        StudyError: No trained tensor is a layer's weight, as with virtual tokens.
    """
    hosts = _hosts(model, trains)
    total = sum(layer.weight.numel() for layer in hosts.values())
    if total == 0 or not model.kind.by_rules:
        raise StudyError(
            "study",
            "adapter.kind",
            f"{model.kind.name!r} trains no layer that a Dirac canary could lie in; "
            "parts A and C of the audit still run",
        )
    count = min(count, total)
    chosen = public_generator(count).choice(total, size=count, replace=False)
    places, before = [], 0
    for name, layer in hosts.items():
        size = layer.weight.numel()
        here = np.flatnonzero((chosen >= before) & (chosen < before + size))
        rows, columns = np.divmod(chosen[here] - before, layer.weight.shape[1])
        if len(here):
            places.append(Place(name, layer, here, rows, columns))
        before += size
    return tuple(places)


def _hosts(model: AdaptedModel, trains: Sequence[str]) -> dict[str, nn.Linear]:
    """The trained tensors that are the whole weight of a linear layer."""
    parameters = model.named()
    owners = {
        id(layer.weight): layer
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    }
    return {
        name: owners[id(parameters[name])]
        for name in trains
        if name in parameters and id(parameters[name]) in owners
    }


@dataclass(frozen=True, repr=False)
class CanaryRecords(PrivateRecords):
    """A site's records, and behind them the canaries that are in.

    A canary's own text is a single token of zeros, of which the loss is left out.
    """

    inner: PrivateRecords
    numbers: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """As of the records; at the end (n,) the canary's number, or -1."""
        return (*self.inner.batch(rows), torch.as_tensor(self.numbers[rows]))


def with_canaries(records: PrivateRecords, members: NDArray[np.bool_]) -> CanaryRecords:
    """The records and the canaries that are in, each a unit of its own."""
    inside = np.flatnonzero(members)
    more = len(inside)
    features = records.features
    one_each = {
        name: torch.cat([part, part.new_zeros(more, *part.shape[1:])])
        for name, part in flat_parts(features).items()
    }
    last = int(features.offsets[-1])
    offsets = np.concatenate([features.offsets, last + 1 + np.arange(more)])
    inner = replace(
        records,
        features=replace(features, offsets=offsets, **one_each),
        labels=np.concatenate([records.labels, np.zeros(more, dtype=np.int64)]),
        units=np.concatenate([records.units, records.num_units + np.arange(more)]),
        num_units=records.num_units + more,
    )
    nobody = np.full(len(records.labels), _NOBODY, dtype=np.int64)
    return CanaryRecords(
        inner.features,
        inner.labels,
        inner.units,
        inner.num_units,
        inner=inner,
        numbers=np.concatenate([nobody, inside]),
    )


class CanaryLoss:
    """The study's loss for records, a Dirac gradient for canaries; a ``RecordLoss``.

    Args:
        loss: The study's.
        places: Where the canaries lie.
        norm: Of every canary's gradient, before the clip.
        count: Of all canaries, in or out.
    """

    def __init__(
        self, loss: RecordLoss, places: Sequence[Place], norm: float, count: int
    ) -> None:
        self._loss = loss
        self._places = tuple(places)
        self._norm = norm
        self._where = []
        for place in self._places:
            table = torch.full((count, 2), _NOBODY, dtype=torch.int64)
            table[place.canaries, 0] = torch.as_tensor(place.rows)
            table[place.canaries, 1] = torch.as_tensor(place.columns)
            self._where.append(table.to(place.layer.weight.device))

    def __call__(self, network: Any, *batch: torch.Tensor) -> torch.Tensor:
        """Losses (n,); a canary's does not depend on its text."""
        numbers = batch[-1]
        losses = self._loss(network, *batch[:-1])
        canary = numbers >= 0
        losses = torch.where(canary, torch.zeros_like(losses), losses)
        for place, table in zip(self._places, self._where, strict=True):
            spot = table[numbers.clamp(min=0)]
            here = canary & (spot[:, 0] >= 0)
            losses = losses + self._dirac(place.layer, spot.clamp(min=0), here)
        return losses

    def _dirac(
        self, layer: nn.Linear, spot: torch.Tensor, here: torch.Tensor
    ) -> torch.Tensor:
        rows = torch.arange(len(spot), device=spot.device)
        inputs = layer.weight.new_zeros(len(spot), 2, layer.in_features)
        inputs[rows, 0, spot[:, 1]] = 1.0
        outputs = layer(inputs)
        apart = outputs[rows, 0, spot[:, 0]] - outputs[rows, 1, spot[:, 0]]
        return torch.where(here, self._norm * apart, torch.zeros_like(apart))
