"""The site's update of a round as one privacy unit: clipped and noised as a whole.

What happens inside the round is ordinary training and released nowhere. Its
outcome, the change of the adapter, is bounded by the plan's rule and noised once
(the client-level mechanism of McMahan et al., ICLR 2018, seen from one site). No
gradient of a single record is needed, so any model will do, and no record has to be
independent of another: the self-test of ``selftest`` has nothing to protect here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from secfed.adapters import AdaptedModel
from secfed.errors import TrainingError
from secfed.privacy.noise import RandomStream
from secfed.privacy.plan import PrivacyPlan
from secfed.study.sections import TrainingSection
from secfed.training.losses import ClassificationLoss, RecordLoss
from secfed.training.optimizers import make_optimizer
from secfed.training.plain import plain_batches, plain_step
from secfed.training.records import PrivateRecords
from secfed.training.selftest import FrozenWeights
from secfed.training.steps import LocalUpdate
from secfed.training.units import clipped_sums
from secfed.types import Adapter, Tensors

__all__ = ["train_whole_site"]


def train_whole_site(
    model: AdaptedModel,
    adapter: Adapter,
    trains: Sequence[str],
    records: PrivateRecords,
    plan: PrivacyPlan,
    settings: TrainingSection,
    learning_rate: float,
    stream: RandomStream,
    *,
    loss: RecordLoss | None = None,
    keep_noiseless: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> LocalUpdate:
    """Train a round without noise, then clip and noise its change as one unit.

    Guarantees:
        ``change`` is one release of the plan's Gaussian mechanism: a vector of norm
        at most C, plus noise. A change that is not finite counts as zero. The model
        is left at the adapter received: the trained weights are private.

    Args:
        model: The adapted base; its weights are overwritten.
        adapter: What the coordinator sent.
        trains: Names of the tensors that are trained (and sent).
        records: The site's private records.
        plan: Clip and noise; its unit is the site.
        settings: Local steps, batch and optimizer, which cannot change the
            guarantee.
        learning_rate: For the LoRA factors; the head has its own.
        stream: The site's cryptographic randomness for this round.
        loss: One number per record; unweighted cross-entropy by default.
        keep_noiseless: Also return the change before noise (simulation only).
        progress: Called with (steps done, steps in all).

    Raises:
        TrainingError: The plan's unit is another one, or a frozen weight moved.
    """
    if plan.unit != "site":
        raise TrainingError(f"the plan's unit is the {plan.unit}, not the whole site")
    model.write(adapter.tensors)
    chosen = model.set_trainable(trains)
    frozen = FrozenWeights(model.network)
    optimizer = make_optimizer(chosen, settings, learning_rate)
    loss = ClassificationLoss() if loss is None else loss
    try:
        model.train()
        for step, drawn in enumerate(
            plain_batches(settings, plan.nominal_units, records.num_units, stream),
            start=1,
        ):
            plain_step(model, optimizer, loss, records, drawn)
            progress(step, settings.steps_per_round)
        frozen.check()
        change = {
            name: parameter.detach().numpy(force=True) - adapter.tensors[name]
            for name, parameter in chosen.items()
        }
    finally:
        for parameter in chosen.values():
            parameter.grad = None
        model.write(adapter.tensors)
        model.eval()
    clean = _clipped(change, plan)
    return LocalUpdate(
        change=_noised(clean, plan, stream),
        noiseless=clean if keep_noiseless else None,
        steps=plan.steps_per_round,
    )


def _clipped(change: Tensors, plan: PrivacyPlan) -> Tensors:
    rows = [torch.from_numpy(value).reshape(1, -1) for value in change.values()]
    sums = clipped_sums(rows, plan.clipping)
    return {
        name: total.numpy().reshape(value.shape)
        for (name, value), total in zip(change.items(), sums, strict=True)
    }


def _noised(clean: Tensors, plan: PrivacyPlan, stream: RandomStream) -> Tensors:
    drawn = plan.noise(stream, sum(value.size for value in clean.values()))
    noisy, start = {}, 0
    for name, value in clean.items():
        noise = drawn[start : start + value.size].reshape(value.shape)
        noisy[name] = (value + noise).astype(np.float32)
        start += value.size
    return noisy
