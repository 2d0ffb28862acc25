"""One noisy sum of the real training function, made visible.

A probe trains a single step in which everybody is drawn, with step size ``batch``, so
that the change of the adapter is minus the noisy sum. Under one seed the noise is the
same for any records (``SameNoise``): two probes differ by what their records add, also
if a mistake lies behind the clip or in the release itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfed.adapters import AdaptedModel
from secfed.audit.invented import WeightedLoss, WeightedRecords, empty_records, taken
from secfed.audit.rehearsal import Rehearsal
from secfed.audit.streams import CountedStream, SameNoise, public_generator
from secfed.privacy.noise import RandomStream
from secfed.privacy.plan import PrivacyPlan
from secfed.strategies import trained_names
from secfed.study.sections import TrainingSection
from secfed.training import (
    LocalUpdate,
    PrivateRecords,
    train_privately,
    train_whole_site,
)
from secfed.types import Adapter, Tensors

__all__ = ["Probe", "flat", "probe_of"]

_SEED: Final = 1
_BATCH: Final = 64
_SMALLEST_DELTA: Final = 1e-12
_MOVED: Final = 0.05

Numbers = NDArray[np.float64]


def flat(tensors: Tensors) -> Numbers:
    """All numbers in wire order."""
    parts = [np.asarray(value, np.float64).ravel() for value in tensors.values()]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Probe:
    """The training function of one site, ready for one noisy sum at a time.

    Attributes:
        model: The study's model.
        start: The adapter before round 1 with every number moved, so that no
            gradient is zero.
        trains: What the rule trains in round 1.
        plan: The study's clip and noise; one step, everybody drawn.
        settings: Plain SGD whose step is the sum itself.
        loss: The study's, times a weight.
        records: Invented.
    """

    model: AdaptedModel
    start: Adapter
    trains: tuple[str, ...]
    plan: PrivacyPlan
    settings: TrainingSection
    loss: WeightedLoss
    records: PrivateRecords

    def added(self, rows: Sequence[int], weights: Sequence[float]) -> Numbers:
        """What these records add to the noisy sum of nobody."""
        return self.sum_of(rows, weights) - self.nobody

    @cached_property
    def nobody(self) -> Numbers:
        """The noisy sum of nobody."""
        return self.sum_of([], [])

    def sum_of(self, rows: Sequence[int], weights: Sequence[float]) -> Numbers:
        """The noisy sum over some records; the noise is always the same."""
        held = taken(self.records, rows) if len(rows) else empty_records(self.records)
        return self.release(WeightedRecords.of(held, weights), SameNoise(_SEED))

    def release(self, records: PrivateRecords, stream: RandomStream) -> Numbers:
        """The noisy sum of one step over these records."""
        return -flat(self._train(records, self.plan, stream).change)

    def counted(self, steps: int) -> CountedStream:
        """The stream after several steps over a few records."""
        stream = CountedStream(_SEED)
        settings = self.settings.model_copy(update={"steps_per_round": steps})
        plan = self.plan
        if plan.unit != "site":
            plan = replace(plan, steps_per_round=steps)
        weighted = WeightedRecords.of(taken(self.records, range(4)), [1.0] * 4)
        self._train(weighted, plan, stream, settings)
        return stream

    def _train(
        self,
        records: PrivateRecords,
        plan: PrivacyPlan,
        stream: RandomStream,
        settings: TrainingSection | None = None,
    ) -> LocalUpdate:
        whole = plan.unit == "site"
        train = train_whole_site if whole else train_privately
        return train(
            self.model,
            self.start,
            self.trains,
            records,
            plan,
            settings or self.settings,
            1.0 if whole else float(plan.expected_batch),
            stream,
            loss=self.loss,
        )


def probe_of(rehearsal: Rehearsal, records: PrivateRecords) -> Probe:
    """The probe of the audited site; its own records take no part."""
    state = rehearsal.begin()
    trains = trained_names(rehearsal.strategy, state.adapter, 1)
    study, plan = rehearsal.study, rehearsal.plan
    return Probe(
        model=rehearsal.prepared.model,
        start=state.adapter.replaced(_moved(state.adapter.tensors)),
        trains=trains,
        plan=_one_step(plan),
        settings=study.training.model_copy(
            update={
                "steps_per_round": 1,
                "expected_batch": plan.nominal_units,  # Of a whole site's training.
                "head_learning_rate": 1.0 if plan.unit == "site" else float(_BATCH),
            }
        ),
        loss=WeightedLoss(rehearsal.prepared.loss),
        records=records,
    )


def _one_step(plan: PrivacyPlan) -> PrivacyPlan:
    """The same clip and noise; one step in which everybody is drawn."""
    if plan.unit == "site":
        return plan
    return replace(
        plan,
        sampling_probability=1.0,
        expected_batch=_BATCH,
        nominal_units=_BATCH,
        steps_per_round=1,
        delta=_SMALLEST_DELTA,
    )


def _moved(tensors: Tensors) -> Mapping[str, NDArray[np.float32]]:
    draw = public_generator(_SEED)
    return {
        name: (value + _MOVED * draw.normal(size=value.shape)).astype(np.float32)
        for name, value in tensors.items()
    }
