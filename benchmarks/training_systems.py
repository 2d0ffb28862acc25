"""The ways to train that are compared, each for one round on the same batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.data_loader import DPDataLoader
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.training_plans import Size
from benchmarks.training_subject import Subject
from secfed.privacy.noise import RandomStream, system_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.study.sections import TrainingSection
from secfed.training import PrivateRecords, train_privately
from secfed.training.losses import RecordLoss
from secfed.training.plain import train_on_batches

__all__ = [
    "CLIP",
    "NOISE",
    "SYSTEMS",
    "Batches",
    "Opacus",
    "Plain",
    "SecfedPlain",
    "SecfedPrivate",
    "Work",
    "require_same",
]

CLIP, NOISE = 1.0, 0.7
_RATE = 1e-3
_SELF_TEST_PASSES = 2  # of a private round, before its first step

Optimizers = Callable[[Any], torch.optim.Optimizer]


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of every timed round."""
    return torch.optim.Adam(parameters, lr=_RATE)


@dataclass
class Work:
    """What a round did. ``slots`` are tokens with padding."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    slots: int = 0

    def saw(self, mask: torch.Tensor) -> None:
        """A batch, or a part of one."""
        self.examples += len(mask)
        self.tokens += int(mask.sum())
        self.slots += mask.numel()


def require_same(works: Mapping[str, Work]) -> None:
    """Raise unless all took the same steps on the same number of tokens.

    Raises:
        RuntimeError: They did not, so that their times do not compare.
    """
    done = {(w.steps, w.examples, w.tokens) for w in works.values()}
    if len(done) != 1:
        raise RuntimeError(f"not the same work: {dict(works)}")


@dataclass(frozen=True)
class Batches:
    """The Poisson batches that Opacus' loader draws from one seed."""

    size: Size
    seed: int

    def loader(self, rows: Any, collate: Callable[[list[Any]], Any]) -> DataLoader[Any]:
        """What a user hands to Opacus; its generator decides the draws."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            rows, batch_size=self.size.batch, collate_fn=collate, generator=generator
        )

    def rows(self) -> list[list[int]]:
        """The record numbers of every step's batch."""
        numbers = [(row,) for row in range(self.size.records)]
        plain = self.loader(numbers, lambda drawn: [row for (row,) in drawn])
        loader = DPDataLoader.from_data_loader(plain)
        return list(islice(loader, self.size.steps))


@dataclass(frozen=True)
class Plain:
    """A training loop without privacy, as one writes it with PEFT."""

    subject: Subject
    dtype: torch.dtype | None = None  # of automatic mixed precision
    make: Optimizers = adam

    def __call__(self, batches: Batches) -> Work:
        """One round: batches in random order, padded to their longest record."""
        subject, work = self.subject, Work()
        optimizer = self.make(subject.begin().values())
        loader = DataLoader(
            subject.examples,  # type: ignore[arg-type]
            batch_sampler=batches.rows(),
            collate_fn=subject.collate,
        )
        subject.network.train()
        for batch in loader:
            optimizer.zero_grad()
            _mean_loss(subject, subject.network, batch, self.dtype).backward()
            optimizer.step()
            work.steps += 1
            work.saw(batch["attention_mask"])
        return work


@dataclass(frozen=True)
class Opacus:
    """``PrivacyEngine.make_private`` on the same model, with its own loader."""

    subject: Subject
    dtype: torch.dtype | None = None
    clip: float = CLIP
    noise: float = NOISE
    make: Optimizers = adam

    def __call__(self, batches: Batches) -> Work:
        """One round; its preparation belongs to it."""
        subject, work = self.subject, Work()
        with _quiet():
            optimizer = self.make(subject.begin().values())
            subject.network.train()
            network, optimizer, loader = PrivacyEngine().make_private(
                module=subject.network,
                optimizer=optimizer,
                data_loader=batches.loader(subject.examples, subject.collate),
                noise_multiplier=self.noise,
                max_grad_norm=self.clip,
            )
            for batch in islice(loader, batches.size.steps):
                optimizer.zero_grad()
                _mean_loss(subject, network, batch, self.dtype).backward()
                optimizer.step()
                work.steps += 1
                work.saw(batch["attention_mask"])
            optimizer.zero_grad()
            network.cleanup()
        return work


def _mean_loss(
    subject: Subject,
    network: nn.Module,
    batch: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
) -> torch.Tensor:
    there = {name: part.to(subject.device) for name, part in batch.items()}
    enabled = dtype is not None
    with torch.autocast(subject.device, dtype=dtype, enabled=enabled):
        logits = network(there["input_ids"], there["attention_mask"])
    return subject.plain_loss(logits.float(), there).mean()


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus warns of its generator, and that hooks fire without an input gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


@dataclass(frozen=True)
class GivenBatches(PrivacyPlan):
    """A plan whose batches were drawn before; it draws its own all the same."""

    drawn: list[list[int]] = field(default_factory=list)

    def sample_units(self, stream: RandomStream, num_units: int) -> NDArray[np.int64]:
        """The next of ``drawn``, after the work of sampling."""
        super().sample_units(stream, num_units)
        return np.array(self.drawn.pop(0), dtype=np.int64)


def plan_of(batches: Batches, clip: float, noise: float) -> GivenBatches:
    """The plan of one round on these batches."""
    size = batches.size
    return GivenBatches(
        unit="record",
        max_records_per_unit=1,
        neighbouring="add-remove",
        clip_norm=clip,
        noise_multiplier=noise,
        sampling_probability=size.batch / size.records,
        expected_batch=size.batch,
        steps_per_round=size.steps,
        rounds=1,
        delta=1e-6,
        nominal_units=size.records,
        drawn=batches.rows(),
    )


@dataclass
class Counting:
    """A loss that notes what it was asked for, after its first ``skip`` calls."""

    loss: RecordLoss
    work: Work
    skip: int = 0

    def __call__(self, network: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
        """As the loss itself; the second part of a batch is the mask."""
        if self.skip:
            self.skip -= 1
        else:
            self.work.saw(batch[1])
        return self.loss(network, *batch)


@dataclass(frozen=True)
class SecfedPrivate:
    """secfed's private round, with all its checks."""

    subject: Subject
    records: PrivateRecords
    clip: float = CLIP
    noise: float = NOISE
    sgd: bool = False  # of step size 1, to read gradients off the change
    kept: list[Any] = field(default_factory=list)  # updates, for the comparison

    def __call__(self, batches: Batches) -> Work:
        """One round from the subject's start."""
        subject, work = self.subject, Work()
        update = train_privately(
            subject.model,
            subject.adapter,
            subject.trains,
            self.records,
            plan_of(batches, self.clip, self.noise),
            self._settings(batches.size),
            1.0 if self.sgd else _RATE,
            system_stream(),
            loss=Counting(subject.loss, work, skip=_SELF_TEST_PASSES),
            keep_noiseless=self.sgd,
        )
        if self.sgd:
            self.kept.append(update)
        work.steps = update.steps
        return work

    def _settings(self, size: Size) -> TrainingSection:
        return TrainingSection(
            method="fedavg",
            rounds=1,
            steps_per_round=size.steps,
            expected_batch=size.batch,
            optimizer="sgd" if self.sgd else "adam",
            head_learning_rate=1.0 if self.sgd else _RATE,
            learning_rate={"fedavg": _RATE},
        )


@dataclass(frozen=True)
class SecfedPlain:
    """secfed's round without privacy: the same records, states and micro-batches."""

    subject: Subject
    records: PrivateRecords

    def __call__(self, batches: Batches) -> Work:
        """One round from the subject's start."""
        subject, work = self.subject, Work()
        update = train_on_batches(
            subject.model,
            subject.adapter,
            subject.trains,
            self.records,
            map(np.asarray, batches.rows()),
            loss=Counting(subject.loss, work),
        )
        work.steps = update.steps
        return work


SYSTEMS: Mapping[str, Callable[[Subject], Callable[[Batches], Work]]] = {
    "plain": Plain,
    "plain bf16": lambda subject: Plain(subject, torch.bfloat16),
    "Opacus": Opacus,
    "secfed": lambda subject: SecfedPrivate(subject, subject.encode()),
    "secfed, no privacy": lambda subject: SecfedPlain(subject, subject.encode()),
}
"""By name, for the processes that measure memory."""
