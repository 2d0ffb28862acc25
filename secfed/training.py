"""One site's local training in one round; the only module that touches Opacus.

DP-SGD (Abadi et al., CCS 2016, algorithm 1) on privacy units: Opacus computes
per-record gradients, this module averages them within a unit, clips, sums over
the Poisson batch, adds the plan's noise and divides by the public expected batch.

Guarantees, for a plan that the caller charged before calling:
    the update depends on one unit's records only through ``steps`` releases of
    the Poisson-subsampled Gaussian mechanism of the plan;
    an empty batch is a noise-only step; a large batch is split into micro-batches
    whose sum is the same;
    a unit whose gradient is not finite contributes zero and nobody else's
    contribution changes (PITFALLS 14a).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.errors import TrainingError
from secfed.models import Features, padded_batches
from secfed.privacy.noise import RandomStream
from secfed.privacy.plan import PrivacyPlan
from secfed.study.sections import TrainingSection
from secfed.types import Adapter, Tensors

__all__ = [
    "LocalUpdate",
    "PrivateRecords",
    "check_independence",
    "train_privately",
    "train_without_privacy",
]

_MICRO_BATCH_TOKENS = 4096
_SELF_TEST_RECORDS = 4
_PLAIN_RATE = 2e-3
_PLAIN_HEAD_RATE = 5e-2


@dataclass(frozen=True)
class PrivateRecords:
    """A site's cached features, class numbers and privacy units, row by row."""

    features: Features
    labels: NDArray[np.int64]
    units: NDArray[np.int64]
    num_units: int

    def __repr__(self) -> str:
        return "PrivateRecords(<private>)"


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


class UnitOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with unit-level clipping and noise from a plan's stream.

    Differs from ``DPOptimizer`` in three places: gradients are averaged within a
    unit before clipping; a unit that is not finite counts as zero; the noise comes
    from ``plan.noise`` (a cryptographic stream), not from torch's generator.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, plan: PrivacyPlan, stream: RandomStream
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.plan = plan
        self.stream = stream
        self.unit_of_row: torch.Tensor | None = None

    def clip_and_accumulate(self) -> None:
        """Add this micro-batch's clipped unit gradients to ``summed_grad``."""
        if self.unit_of_row is None:
            raise TrainingError("a micro-batch arrived without its privacy units")
        flat = torch.cat(
            [g.reshape(len(g), -1).float() for g in self.grad_samples], dim=1
        )
        units = int(self.unit_of_row.max()) + 1
        counts = torch.bincount(self.unit_of_row, minlength=units)[:, None]
        per_unit = torch.zeros(units, flat.shape[1]).index_add_(
            0, self.unit_of_row, flat
        )
        clipped = clip_units(per_unit / counts, self.max_grad_norm)
        self._accumulate(clipped.sum(0))
        self.unit_of_row = None

    def _accumulate(self, total: torch.Tensor) -> None:
        start = 0
        for parameter in self.params:
            part = total[start : start + parameter.numel()].view_as(parameter)
            held = parameter.summed_grad
            parameter.summed_grad = part if held is None else held + part
            start += parameter.numel()

    def add_noise(self) -> None:
        """Noise and scale the summed gradient: ``(sum + z) / expected batch``."""
        size = sum(parameter.numel() for parameter in self.params)
        drawn = torch.from_numpy(self.plan.noise(self.stream, size)).float()
        start = 0
        for parameter in self.params:
            noise = drawn[start : start + parameter.numel()].view_as(parameter)
            total = parameter.summed_grad
            clean = torch.zeros_like(parameter) if total is None else total
            parameter.grad = (clean + noise) / self.plan.expected_batch
            start += parameter.numel()

    def noiseless_gradients(self) -> list[torch.Tensor]:
        """The clipped sums over the expected batch. Private: simulation only."""
        return [
            torch.zeros_like(p)
            if p.summed_grad is None
            else p.summed_grad / self.plan.expected_batch
            for p in self.params
        ]


def clip_units(gradients: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """Scale each row to norm at most ``clip_norm``; a non-finite row becomes zero.

    Ensures: row norms <= clip_norm up to float32 rounding of one multiplication.
    """
    finite = torch.isfinite(gradients).all(dim=1, keepdim=True)
    gradients = torch.where(finite, gradients, torch.zeros_like(gradients))
    norms = gradients.double().norm(dim=1, keepdim=True)
    # A finite row can have a norm beyond double's square range only in theory;
    # its factor is then 0 and it contributes nothing.
    factors = (clip_norm / norms.clamp(min=clip_norm)).float()
    scaled: torch.Tensor = gradients * factors
    return scaled


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
    keep_noiseless: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> LocalUpdate:
    """Run one round's DP-SGD steps from ``adapter``; returns the change.

    1. load the received adapter, let only ``trains`` require gradients;
    2. per step: Poisson batch, per-record gradients, clip, sum, noise, step;
    3. check that the trained tensors moved and the frozen ones did not.

    Args:
        model: The adapted base; its weights are overwritten.
        adapter: What the coordinator sent.
        trains: Names of the tensors that are trained (and sent).
        records: The site's private records.
        plan: Sampler, clip and noise; its ``steps_per_round`` steps are run.
        settings: Optimizer settings, which cannot change the guarantee.
        learning_rate: For the LoRA factors; the head has its own.
        stream: The site's cryptographic randomness for this round.
        keep_noiseless: Also replay the steps without noise (simulation only).
        progress: Called with (steps done, steps in all).

    Raises:
        TrainingError: A self-check failed; the round must not be sent.
    """
    model.write(adapter.tensors)
    chosen = model.set_trainable(trains)
    optimizer = _optimizer(chosen, settings, learning_rate)
    private = UnitOptimizer(optimizer, plan, stream)
    replay = _Replay(chosen, settings, learning_rate) if keep_noiseless else None
    wrapped = GradSampleModule(model, loss_reduction="sum")
    wrapped.train()
    quiet = warnings.catch_warnings()
    quiet.__enter__()
    # The lowest trained layer has no input that requires a gradient: expected.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    try:
        check_independence(wrapped, private, records)
        for step in range(plan.steps_per_round):
            batch = plan.sample_units(stream, records.num_units)
            private.zero_grad(set_to_none=True)
            for rows, unit_of_row in _micro_batches(records, batch):
                _backward(wrapped, records, rows)
                private.unit_of_row = unit_of_row
                private.clip_and_accumulate()
                for parameter in private.params:
                    parameter.grad_sample = None
            if replay is not None:
                replay.step(private.noiseless_gradients())
            private.add_noise()
            optimizer.step()
            progress(step + 1, plan.steps_per_round)
    finally:
        quiet.__exit__(None, None, None)
        wrapped.remove_hooks()
        for parameter in chosen.values():
            for name in ("grad_sample", "summed_grad", "_forward_counter"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
        model.eval()
    change = _change(model, adapter, trains)
    noiseless = None if replay is None else replay.change(adapter)
    return LocalUpdate(change=change, noiseless=noiseless, steps=plan.steps_per_round)


def train_without_privacy(
    model: AdaptedModel,
    adapter: Adapter,
    trains: Sequence[str],
    records: PrivateRecords,
    plan: PrivacyPlan,
    stream: RandomStream,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> LocalUpdate:
    """Ordinary Adam training on the same Poisson batches: NOT PRIVATE, a baseline.

    No clipping and no noise; the loss is the mean over the records drawn. The
    rates are its own, because gradients that are not clipped have another scale.
    Used for the upper bound that a comparison shows, never in a study that sends.
    """
    model.write(adapter.tensors)
    chosen = model.set_trainable(trains)
    groups = [
        {
            "params": [p],
            "lr": _PLAIN_HEAD_RATE if n.startswith("head.") else _PLAIN_RATE,
        }
        for n, p in chosen.items()
    ]
    optimizer = torch.optim.Adam(groups)
    model.train()
    for step in range(plan.steps_per_round):
        batch = plan.sample_units(stream, records.num_units)
        optimizer.zero_grad(set_to_none=True)
        drawn = int(np.isin(records.units, batch).sum())
        for rows, _ in _micro_batches(records, batch):
            loss = _losses(model, records, rows).sum() / max(drawn, 1)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step + 1, plan.steps_per_round)
    model.eval()
    change = _change(model, adapter, trains, must_move=False)
    return LocalUpdate(change=change, noiseless=change, steps=plan.steps_per_round)


def check_independence(
    wrapped: nn.Module, private: UnitOptimizer, records: PrivateRecords
) -> None:
    """Perturb one record; no other record's gradient may move by a bit.

    Catches losses that couple records and modules that mix samples (PITFALLS 1,
    10). Uses a few of the site's records; nothing of the result leaves.

    Raises:
        TrainingError: Records influence each other's gradients.
    """
    rows = np.arange(min(_SELF_TEST_RECORDS, len(records.labels)))
    if len(rows) < 2:  # noqa: PLR2004 - a single record cannot influence another
        return
    states, mask = records.features.batch(rows)
    labels = torch.as_tensor(records.labels[rows])

    def others(changed: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        _losses_of(wrapped, changed, mask, targets).sum().backward()  # type: ignore[no-untyped-call]
        samples = [g.reshape(len(g), -1)[1:].clone() for g in private.grad_samples]
        private.zero_grad(set_to_none=True)
        return torch.cat(samples, dim=1)

    before = others(states, labels)
    perturbed = states.clone()
    perturbed[0] = -perturbed[0]
    moved = labels.clone()
    moved[0] = labels[1]
    # Bit for bit; a record whose gradient is not finite is nobody's fault here.
    after = others(perturbed, moved)
    if not torch.allclose(before, after, rtol=0.0, atol=0.0, equal_nan=True):
        raise TrainingError(
            "self-test failed: changing one record moved another record's gradient, "
            "so clipping would not bound a person's influence; nothing was sent"
        )


class _Replay:
    """The same steps with the noise left out, along the noisy trajectory.

    Holds shadow copies of the trained parameters and feeds an optimizer of the
    same kind with the clipped sums before noise (DESIGN: replay of recorded noise).
    """

    def __init__(
        self,
        chosen: dict[str, nn.Parameter],
        settings: TrainingSection,
        learning_rate: float,
    ) -> None:
        self.shadows = {
            name: nn.Parameter(p.detach().clone()) for name, p in chosen.items()
        }
        self.optimizer = _optimizer(self.shadows, settings, learning_rate)

    def step(self, gradients: list[torch.Tensor]) -> None:
        for shadow, gradient in zip(self.shadows.values(), gradients, strict=True):
            shadow.grad = gradient.clone()
        self.optimizer.step()

    def change(self, adapter: Adapter) -> Tensors:
        return {
            name: shadow.detach().numpy() - adapter.tensors[name]
            for name, shadow in self.shadows.items()
        }


def _optimizer(
    chosen: dict[str, nn.Parameter], settings: TrainingSection, learning_rate: float
) -> torch.optim.Optimizer:
    """One optimizer, two groups in wire order: the LoRA factors and the head."""
    groups = [
        {
            "params": [parameter],
            "lr": settings.head_learning_rate
            if name.startswith("head.")
            else learning_rate,
        }
        for name, parameter in chosen.items()
    ]
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.SGD(groups, momentum=settings.momentum)


def _micro_batches(
    records: PrivateRecords, batch: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Rows of the drawn units in micro-batches of similar length, units kept whole.

    The sum over units does not depend on the split; lengths only save padding.
    """
    rows = np.flatnonzero(np.isin(records.units, batch))
    if len(rows) == 0:
        return
    units, position = np.unique(records.units[rows], return_inverse=True)
    longest = np.zeros(len(units), dtype=np.int64)
    np.maximum.at(longest, position, records.features.lengths[rows])
    counts = np.bincount(position)
    for chunk in padded_batches(
        longest * counts, np.arange(len(units)), _MICRO_BATCH_TOKENS
    ):
        wanted = np.isin(position, chunk)
        chosen = rows[wanted]
        local = np.unique(position[wanted], return_inverse=True)[1]
        yield chosen, torch.as_tensor(local)


def _backward(
    wrapped: nn.Module, records: PrivateRecords, rows: NDArray[np.int64]
) -> None:
    _losses(wrapped, records, rows).sum().backward()  # type: ignore[no-untyped-call]


def _losses(
    network: nn.Module, records: PrivateRecords, rows: NDArray[np.int64]
) -> torch.Tensor:
    states, mask = records.features.batch(rows)
    return _losses_of(network, states, mask, torch.as_tensor(records.labels[rows]))


def _losses_of(
    network: nn.Module, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each record by itself, shape (n,): never a batch mean."""
    logits: torch.Tensor = network(states, mask)
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _change(
    model: AdaptedModel,
    adapter: Adapter,
    trains: Sequence[str],
    *,
    must_move: bool = True,
) -> Tensors:
    """What moved, after checking that the rest did not (PITFALLS 11).

    Without noise a factor may rightly stay (A has no gradient while B is zero).
    """
    after = model.read()
    wanted = set(trains)
    for name, value in after.items():
        same = np.array_equal(value, adapter.tensors[name])
        if must_move and name in wanted and same:
            raise TrainingError(
                f"self-test failed: {name} was trained and did not move"
            )
        if name not in wanted and not same:
            raise TrainingError(f"self-test failed: {name} is frozen and moved")
    return {
        name: after[name] - adapter.tensors[name] for name in after if name in wanted
    }
