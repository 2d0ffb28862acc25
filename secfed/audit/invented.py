"""Records that an audit invents: nobody's data, in the shape of the study's.

States are standard normal, classes and tokens are drawn at random. They exercise the
real training functions as real records do, and cost no budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from secfed.audit.streams import public_generator
from secfed.models import Features
from secfed.training import DistilledRecords, PrivateRecords, RecordLoss

__all__ = [
    "WeightedLoss",
    "WeightedRecords",
    "empty_records",
    "flat_parts",
    "invented",
    "taken",
]

_TOKENS: Final = 6
_VOCABULARY: Final = 32
"""Every model has so many tokens."""

Rows = Sequence[int] | NDArray[np.int64]


def invented(like: PrivateRecords, count: int, classes: int) -> PrivateRecords:
    """Some records of the kind and shape of ``like``; nothing of it is used."""
    draw = torch.Generator().manual_seed(count)
    flat = count * _TOKENS
    own: dict[str, Any] = {}
    for name, part in flat_parts(like.features).items():
        if part.is_floating_point():
            made = torch.randn(flat, *part.shape[1:], generator=draw).to(part.dtype)
        elif part.dtype is torch.bool:  # The end of a text is the answer.
            made = torch.arange(_TOKENS).repeat(count) >= _TOKENS - 1
        else:
            made = torch.randint(1, _VOCABULARY, (flat,), generator=draw)
        own[name] = made
    offsets = np.arange(count + 1, dtype=np.int64) * _TOKENS
    features = replace(like.features, offsets=offsets, **own)
    generator = public_generator(count)
    own = {"labels": generator.integers(0, max(classes, 1), size=count)}
    if isinstance(like, DistilledRecords):
        words = generator.standard_normal((count, like.teacher.shape[1]))
        own["teacher"] = words.astype(np.float32)
    units = np.arange(count)
    return replace(like, features=features, units=units, num_units=count, **own)


def taken(records: PrivateRecords, rows: Rows) -> PrivateRecords:
    """Some of the records, each its own unit."""
    chosen = np.asarray(rows, dtype=np.int64)
    features = records.features
    offsets = features.offsets
    place = [np.arange(offsets[i], offsets[i + 1]) for i in chosen]
    flat = torch.as_tensor(np.concatenate([*place, np.zeros(0, np.int64)]))
    own = {name: part[flat] for name, part in flat_parts(features).items()}
    lengths = features.lengths[chosen]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if isinstance(records, DistilledRecords):
        records = replace(records, teacher=records.teacher[chosen])
    return replace(
        records,
        features=replace(features, offsets=bounds, **own),
        labels=records.labels[chosen],
        units=np.arange(len(chosen)),
        num_units=len(chosen),
    )


def empty_records(like: PrivateRecords) -> PrivateRecords:
    """A site that holds nothing."""
    return taken(like, [])


def flat_parts(features: Features) -> Mapping[str, torch.Tensor]:
    """What features hold per token, by the name of the field."""
    names = [part.name for part in fields(features) if part.name != "offsets"]
    return {name: getattr(features, name) for name in names}


@dataclass(frozen=True, repr=False)
class WeightedRecords(PrivateRecords):
    """Invented records of which each has a weight that its loss is multiplied by.

    A record of weight 1e6 has a huge gradient, one of weight -1 the opposite of its
    gradient, and one of weight infinity is poison.
    """

    inner: PrivateRecords
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, inner: PrivateRecords, weights: Sequence[float]) -> WeightedRecords:
        """The records with these weights, in their order."""
        return cls(
            inner.features,
            inner.labels,
            inner.units,
            inner.num_units,
            inner=inner,
            weights=np.asarray(weights, dtype=np.float32),
        )

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """As of the records, with the weights (n,) at the end."""
        return (*self.inner.batch(rows), torch.as_tensor(self.weights[rows]))


@dataclass(frozen=True)
class WeightedLoss:
    """A study's loss times each record's weight; a ``RecordLoss``."""

    loss: RecordLoss

    def __call__(self, network: Any, *batch: torch.Tensor) -> torch.Tensor:
        """Losses (n,)."""
        return self.loss(network, *batch[:-1]) * batch[-1]
