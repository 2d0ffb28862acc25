"""The loop of private steps: sample, gradients, clip, sum, noise, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress

import torch
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.privacy.noise import RandomStream
from secfed.privacy.plan import PrivacyPlan
from secfed.study.sections import TrainingSection
from secfed.training.gradients import RecordGradients, gradients_of
from secfed.training.local_steps import LocalSteps
from secfed.training.losses import ClassificationLoss, RecordLoss
from secfed.training.optimizers import make_optimizer
from secfed.training.preflight import preflight
from secfed.training.records import PrivateRecords, micro_batches
from secfed.training.replay import Replay
from secfed.training.selftest import FrozenWeights, check_independence, check_moved
from secfed.training.units import clipped_sums, unit_means
from secfed.types import Adapter, Tensors

__all__ = ["LocalUpdate", "NoisySum", "train_privately"]


@dataclass(frozen=True)
class LocalUpdate:
    """What local training changed, relative to the adapter received.

    ``change`` is what may leave the site (masked). ``noiseless`` is the same steps
    with the same clipped sums but the noise left out: it is NOT private, exists
    only when the simulator asked for it, and never enters a message.
    """

    change: Tensors
    noiseless: Tensors | None
    steps: int

    def __repr__(self) -> str:
        return f"LocalUpdate(steps={self.steps}, <private>)"


class NoisySum:
    """One step's sum: clipped unit gradients go in, a noisy mean comes out.

    The only place where gradients of records become a gradient of the model.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], plan: PrivacyPlan) -> None:
        self._parameters = list(parameters)
        self._plan = plan
        self._active: list[bool] = []
        self._sums: list[torch.Tensor] = []
        self.clear()

    def clear(self, active: Sequence[bool] | None = None) -> None:
        """Start a step: nobody has been added.

        Args:
            active: Which parameters take part in the step; None: all of them.
        """
        self._active = [True] * len(self._parameters)
        if active is not None:
            self._active = list(active)
        self._sums = [torch.zeros(p.numel(), device=p.device) for p in self._chosen()]

    def _chosen(self) -> list[nn.Parameter]:
        return list(compress(self._parameters, self._active))

    def add(self, samples: Sequence[torch.Tensor], unit_of_row: torch.Tensor) -> None:
        """Add the clipped contributions of whole units.

        Args:
            samples: Per parameter the gradients of a micro-batch's records; those of
                parameters that take no part are ignored, also by the clipping.
            unit_of_row: Each record's unit within the micro-batch.
        """
        units = unit_means(list(compress(samples, self._active)), unit_of_row)
        sums = clipped_sums(units, self._plan.clipping)
        for total, part in zip(self._sums, sums, strict=True):
            total.add_(part)

    def clean(self) -> list[torch.Tensor | None]:
        """The sum over the expected batch, without noise. Private: simulation only.

        None for a parameter that takes no part.
        """
        sums = iter(self._sums)
        return [
            (next(sums) / self._plan.expected_batch).view_as(parameter)
            if active
            else None
            for parameter, active in zip(self._parameters, self._active, strict=True)
        ]

    def release(self, stream: RandomStream) -> None:
        """Set the gradients to ``(sum + noise) / expected batch``, or to None."""
        for parameter in self._parameters:
            parameter.grad = None  # Also of the step before: it was used there.
        chosen = self._chosen()
        drawn = torch.from_numpy(
            self._plan.noise(stream, sum(parameter.numel() for parameter in chosen))
        ).float()
        parts = torch.split(drawn, [parameter.numel() for parameter in chosen])
        for parameter, total, noise in zip(chosen, self._sums, parts, strict=True):
            noisy = total + noise.to(total.device)
            parameter.grad = (noisy / self._plan.expected_batch).view_as(parameter)


def train_privately(
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
    local: LocalSteps | None = None,
    keep_noiseless: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> LocalUpdate:
    """Run one round's DP-SGD steps from ``adapter``; returns the change.

    1. load the received adapter, let only ``trains`` require gradients;
    2. refuse layers that cannot be trained privately; test that records are
       independent;
    3. per step: Poisson batch, per-record gradients, clip, sum, noise, step, all of it
       for the tensors that the step moves;
    4. after the first step and after the last one, check that what was to move so far
       moved and nothing else did.

    Args:
        model: The adapted base; its weights are overwritten.
        adapter: What the coordinator sent.
        trains: Names of the tensors that are trained (and sent).
        records: The site's private records.
        plan: Sampler, clip and noise; its ``steps_per_round`` steps are run.
        settings: Optimizer settings, which cannot change the guarantee.
        learning_rate: For the LoRA factors; the head has its own.
        stream: The site's cryptographic randomness for this round.
        loss: One number per record; unweighted cross-entropy by default.
        local: Which tensors a step moves, and how noisy gradients are smoothed; None:
            all of them, as they are. Every trained tensor goes through the checks of
            2, so they hold for every step.
        keep_noiseless: Also replay the steps without noise (simulation only).
        progress: Called with (steps done, steps in all).

    Raises:
        TrainingError: The model is refused or a self-check failed; the round must
            not be sent.
    """
    # 1
    model.write(adapter.tensors)
    chosen = model.set_trainable(trains)
    loss = ClassificationLoss() if loss is None else loss
    optimizer = make_optimizer(chosen, settings, learning_rate)
    local = LocalSteps() if local is None else local
    replay = Replay(chosen, settings, learning_rate) if keep_noiseless else None
    total = NoisySum(list(chosen.values()), plan)
    # 2
    by_rules = model.kind.by_rules
    preflight(model, by_rules=by_rules)
    frozen = FrozenWeights(model.network)
    with gradients_of(model, chosen, by_rules=by_rules) as gradients:
        check_independence(gradients, loss, records)
        # 3
        moved: frozenset[str] = frozenset()
        for step in range(1, plan.steps_per_round + 1):
            moving = local.moving(chosen, step)
            total.clear([name in moving for name in chosen])
            _sum_batch(gradients, loss, records, plan, stream, total)
            if replay is not None:
                replay.step(total.clean(), partial(local.settle, moving=moving))
            total.release(stream)
            local.settle(chosen, moving)
            optimizer.step()
            moved |= moving
            # 4
            if step in {1, plan.steps_per_round}:
                frozen.check()
                after = check_moved(model, adapter.tensors, moved)
            progress(step, plan.steps_per_round)
    change = {name: after[name] - adapter.tensors[name] for name in chosen}
    noiseless = None if replay is None else replay.change(adapter)
    return LocalUpdate(change=change, noiseless=noiseless, steps=plan.steps_per_round)


def _sum_batch(
    gradients: RecordGradients,
    loss: RecordLoss,
    records: PrivateRecords,
    plan: PrivacyPlan,
    stream: RandomStream,
    total: NoisySum,
) -> None:
    """Draw a batch of units and sum their contributions; nobody may be drawn."""
    drawn = plan.sample_units(stream, records.num_units)
    for rows, unit_of_row in micro_batches(records, drawn):
        total.add(gradients(loss, records.batch(rows)), unit_of_row)
