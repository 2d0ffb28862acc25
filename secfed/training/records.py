"""What a site trains on, and how a batch of units becomes micro-batches of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secfed.models import Features, TokenFeatures, padded_batches
from secfed.training.losses import IGNORED

__all__ = [
    "HeldBack",
    "PrivateRecords",
    "TokenRecords",
    "micro_batches",
    "pooled_records",
]

_MICRO_BATCH_TOKENS = 512
"""A speed setting outside the plan: the sum does not depend on it.

Enough rows for a matrix product at full speed, and few enough that a batch splits by
length: 4096 padded wordings of 13 tokens to 30, 512 to 16 (`make bench-training`).
"""


@dataclass(frozen=True)
class PrivateRecords:
    """A site's cached features, class numbers and privacy units, row by row.

    ``at_once`` is the site's own choice of ``micro_batch_tokens``.
    """

    features: Features
    labels: NDArray[np.int64]
    units: NDArray[np.int64]
    num_units: int
    at_once: int | None = field(default=None, kw_only=True)

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Padded states (n, longest, hidden), mask (n, longest) and labels (n,)."""
        states, mask = self.features.batch(rows)
        return states, mask, torch.as_tensor(self.labels[rows])

    @property
    def micro_batch_tokens(self) -> int:
        """At most so many padded tokens are computed at once, or a single unit."""
        return self.at_once or _MICRO_BATCH_TOKENS

    @classmethod
    def joined_parts(cls, sites: Sequence[Any]) -> dict[str, Any]:
        """What this kind of records has besides, of all sites in their order."""
        del sites
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<private>)"


@dataclass(frozen=True, repr=False)
class TokenRecords(PrivateRecords):
    """Blocks of tokens, each to be predicted from those before it.

    ``labels`` are the numbers of the categories, which training does not see.
    """

    features: TokenFeatures

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Padded states (n, longest, hidden), mask and tokens (n, longest)."""
        states, mask = self.features.batch(rows)
        return states, mask, self.features.targets(rows, IGNORED)


@dataclass(frozen=True, repr=False)
class HeldBack:
    """What a site never trains on: each record's own states, its class and its unit.

    Nothing but a noised sum over units ever leaves the site, not even the size.
    """

    texts: tuple[Features, ...]
    labels: NDArray[np.int64]
    units: NDArray[np.int64]

    def __repr__(self) -> str:
        return "HeldBack(<private>)"


def pooled_records(sites: Sequence[PrivateRecords]) -> PrivateRecords:
    """All sites' records in one place, with units of their own; simulation only.

    A person at two sites is two units.
    """
    before = np.cumsum([0, *(held.num_units for held in sites)])
    units = [held.units + first for held, first in zip(sites, before, strict=False)]
    kind = type(sites[0])
    return kind(
        features=type(sites[0].features).joined([held.features for held in sites]),
        labels=np.concatenate([held.labels for held in sites]),
        units=np.concatenate(units),
        num_units=int(before[-1]),
        **kind.joined_parts(sites),
    )


def micro_batches(
    records: PrivateRecords, batch: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Rows of the drawn units in micro-batches of similar length, units kept whole.

    The sum over units does not depend on the split; lengths only save padding.

    Yields:
        The rows, and for each row the number of its unit within the micro-batch.
    """
    rows = np.flatnonzero(np.isin(records.units, batch))
    if len(rows) == 0:
        return
    units, position = np.unique(records.units[rows], return_inverse=True)
    longest = np.zeros(len(units), dtype=np.int64)
    np.maximum.at(longest, position, records.features.lengths[rows])
    counts = np.bincount(position)
    for chunk in padded_batches(
        longest * counts, np.arange(len(units)), records.micro_batch_tokens
    ):
        wanted = np.isin(position, chunk)
        chosen = rows[wanted]
        local = np.unique(position[wanted], return_inverse=True)[1]
        yield chosen, torch.as_tensor(local)
