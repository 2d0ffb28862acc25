"""Ordinary training, alone and as the inside of a site that is one unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.models import moved
from secfed.privacy.noise import RandomStream
from secfed.study.sections import TrainingSection
from secfed.training.local_steps import LocalSteps
from secfed.training.losses import ClassificationLoss, RecordLoss
from secfed.training.records import PrivateRecords, micro_batches
from secfed.training.selftest import check_moved
from secfed.training.steps import LocalUpdate
from secfed.types import Adapter

__all__ = [
    "plain_batches",
    "plain_step",
    "train_on_batches",
    "train_without_privacy",
]

_RATE = 2e-3
_HEAD_RATE = 5e-2


def train_without_privacy(
    model: AdaptedModel,
    adapter: Adapter,
    trains: Sequence[str],
    records: PrivateRecords,
    settings: TrainingSection,
    nominal_units: int,
    stream: RandomStream,
    *,
    loss: RecordLoss | None = None,
    local: LocalSteps | None = None,
    learning_rate: float | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> LocalUpdate:
    """Ordinary Adam training on the same Poisson batches: NOT PRIVATE, a baseline.

    No clipping and no noise; the loss is the mean over the records drawn. The
    rates are its own, because gradients that are not clipped have another scale;
    ``learning_rate`` is that of the factors, 2e-3 if it is None.
    Used for the upper bound that a comparison shows, never in a study that sends.
    It takes the study's steps and batch and the site's public size, and no plan:
    what has no noise has none.
    """
    batches = plain_batches(settings, nominal_units, records.num_units, stream)
    steps = settings.steps_per_round
    return train_on_batches(
        model,
        adapter,
        trains,
        records,
        batches,
        loss=loss,
        local=local,
        learning_rate=learning_rate,
        progress=lambda done: progress(done, steps),
    )


def train_on_batches(
    model: AdaptedModel,
    adapter: Adapter,
    trains: Sequence[str],
    records: PrivateRecords,
    batches: Iterable[NDArray[np.int64]],
    *,
    loss: RecordLoss | None = None,
    local: LocalSteps | None = None,
    learning_rate: float | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> LocalUpdate:
    """``train_without_privacy`` on given batches of units: NOT PRIVATE."""
    model.write(adapter.tensors)
    chosen = model.set_trainable(trains)
    loss = ClassificationLoss() if loss is None else loss
    rate = _RATE if learning_rate is None else learning_rate
    groups = [
        {"params": [p], "lr": _HEAD_RATE if n.startswith("head.") else rate}
        for n, p in chosen.items()
    ]
    optimizer = torch.optim.Adam(groups)
    local = LocalSteps() if local is None else local
    model.train()
    steps = 0
    for batch in batches:
        steps += 1
        settle = partial(local.settle, chosen, local.moving(chosen, steps))
        plain_step(model, optimizer, loss, records, batch, settle)
        progress(steps)
    model.eval()
    after = check_moved(model, adapter.tensors, trains, must_move=False)
    change = {name: after[name] - adapter.tensors[name] for name in chosen}
    return LocalUpdate(change=change, noiseless=change, steps=steps)


def plain_batches(
    settings: TrainingSection,
    nominal_units: int,
    num_units: int,
    stream: RandomStream,
) -> Iterator[NDArray[np.int64]]:
    """The round's Poisson batches of units, drawn one by one, perhaps empty."""
    share = settings.expected_batch / nominal_units
    for _ in range(settings.steps_per_round):
        included = 1.0 - stream.uniform(num_units) <= share
        yield np.flatnonzero(included).astype(np.int64)


def plain_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: RecordLoss,
    records: PrivateRecords,
    batch: NDArray[np.int64],
    settle: Callable[[], None] = lambda: None,
) -> None:
    """One step on the mean loss of the drawn units' records: NOT PRIVATE.

    ``settle`` is called between the gradients and the step.
    """
    optimizer.zero_grad(set_to_none=True)
    drawn = int(np.isin(records.units, batch).sum())
    for rows, _ in micro_batches(records, batch):
        found = loss(model, *moved(records.batch(rows), model))
        mean = found.sum() / max(drawn, 1)
        mean.backward()  # type: ignore[no-untyped-call]
    settle()
    optimizer.step()
