"""Steps that move some of the tensors are DP-SGD on these tensors and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import Silent, make_plan, silent
from torch import nn

from secfed.errors import TrainingError
from secfed.models import Features
from secfed.privacy.noise import RandomStream, simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.setup import Prepared
from secfed.strategies import get_strategy
from secfed.study import Study
from secfed.study.sections import TrainingSection
from secfed.training import (
    LocalSteps,
    LocalUpdate,
    PrivateRecords,
    train_privately,
    train_without_privacy,
)
from secfed.types import LORA_A, LORA_B, Adapter

RATE, SIZE, CLIP = 8.0, 12, 0.05
KERNEL = (0.0625, 0.25, 0.375, 0.25, 0.0625)
RULE = get_strategy("la-lora")
ALTERNATE = LocalSteps(RULE.active)
Array = NDArray[np.float64]


class Counting(Silent):
    """Counts the normal numbers that were asked for."""

    __slots__ = ("asked",)

    def normal(self, size: int) -> Array:
        self.asked = [*getattr(self, "asked", []), size]
        return super().normal(size)


@pytest.fixture(scope="module")
def held(everybody: PrivateRecords) -> PrivateRecords:
    """A few records, each its own unit."""
    offsets = everybody.features.offsets[: SIZE + 1]
    states = everybody.features.states[: offsets[-1]]
    labels = everybody.labels[:SIZE]
    return PrivateRecords(Features(states, offsets), labels, np.arange(SIZE), SIZE)


@pytest.fixture
def plain_sgd(study: Study) -> TrainingSection:
    """One step size for everything, so that change = -RATE * gradient."""
    return study.training.model_copy(update={"head_learning_rate": RATE})


def plan_of(steps: int, batch: int = SIZE) -> PrivacyPlan:
    return make_plan(
        SIZE if batch == SIZE else 10_000, batch, clip_norm=CLIP, steps_per_round=steps
    )


def train(
    prepared: Prepared,
    start: Adapter,
    held: PrivateRecords,
    settings: TrainingSection,
    local: LocalSteps | None,
    plan: PrivacyPlan,
    stream: RandomStream,
) -> LocalUpdate:
    return train_privately(
        prepared.model,
        start,
        tuple(start.tensors),
        held,
        plan,
        settings,
        RATE,
        stream,
        local=local,
        keep_noiseless=True,
    )


def slow_step(
    prepared: Prepared, start: Adapter, held: PrivateRecords, moving: list[str]
) -> dict[str, Array]:
    """Autograd of one record at a time, clipped over the tensors that move."""
    prepared.model.write(start.tensors)
    chosen = prepared.model.set_trainable(moving)
    total = {name: np.zeros(tuple(p.shape)) for name, p in chosen.items()}
    for row in range(SIZE):
        states, mask = held.features.batch(np.array([row]))
        target = torch.as_tensor(held.labels[[row]])
        loss = nn.functional.cross_entropy(prepared.model(states, mask), target)
        parts = torch.autograd.grad(loss, list(chosen.values()))
        own = [part.double().numpy() for part in parts]
        norm = np.sqrt(sum(np.sum(part**2) for part in own))
        for name, part in zip(chosen, own, strict=True):
            total[name] += part * min(1.0, CLIP / norm)
    return {name: -RATE * value / SIZE for name, value in total.items()}


@pytest.mark.parametrize(("first", "resting"), [(1, LORA_A), (2, LORA_B)])
def test_a_step_clips_and_moves_the_tensors_that_take_part(
    prepared: Prepared,
    busy: Adapter,
    held: PrivateRecords,
    plain_sgd: TrainingSection,
    first: int,
    resting: str,
) -> None:
    local = replace(ALTERNATE, first=first)
    stream = Counting(simulation_stream(7, "count").bytes(32), simulated=True)
    update = train(prepared, busy, held, plain_sgd, local, plan_of(1), stream)
    moving = [name for name in busy.tensors if not name.endswith(resting)]
    expected = slow_step(prepared, busy, held, moving)
    assert 0 < len(moving) < len(busy.tensors)
    for name, change in update.change.items():
        if name in moving:
            norm = np.linalg.norm(expected[name])
            assert np.linalg.norm(change - expected[name]) < 1e-3 * norm, name
        else:
            assert not change.any()
    # Noise is drawn for the numbers that move and for no other.
    assert stream.asked == [sum(busy.tensors[name].size for name in moving)]
    # Control: clipped with all tensors, the contributions would be shorter.
    everything = slow_step(prepared, busy, held, list(busy.tensors))
    name = next(n for n in moving if "lora" in n)
    gap = np.linalg.norm(everything[name] - expected[name])
    assert gap > 0.01 * np.linalg.norm(expected[name])


def test_the_replay_of_a_silent_stream_takes_the_same_steps(
    prepared: Prepared,
    busy: Adapter,
    held: PrivateRecords,
    plain_sgd: TrainingSection,
) -> None:
    settings = plain_sgd.model_copy(update={"momentum": 0.5})
    local = replace(ALTERNATE, smoothing=KERNEL)
    update = train(prepared, busy, held, settings, local, plan_of(4), silent("replay"))
    plain = train(
        prepared, busy, held, settings, ALTERNATE, plan_of(4), silent("replay")
    )
    assert update.noiseless is not None
    for name, change in update.change.items():
        assert change.any()
        np.testing.assert_allclose(change, update.noiseless[name], atol=1e-7)
    name = next(n for n in busy.tensors if n.endswith(LORA_B))
    assert not np.allclose(update.change[name], plain.change[name], rtol=0.05)


def test_a_gradient_is_not_used_again_in_a_step_without_records(
    prepared: Prepared, busy: Adapter, held: PrivateRecords, plain_sgd: TrainingSection
) -> None:
    # Nobody is drawn, so no backward pass clears what the step before has left.
    def changes(steps: int) -> LocalUpdate:
        stream = simulation_stream(7, "stale")
        plan = plan_of(steps, batch=1)
        return train(prepared, busy, held, plain_sgd, ALTERNATE, plan, stream)

    one, two = changes(1), changes(2)
    for name in busy.tensors:
        if name.endswith(LORA_B):
            assert one.change[name].any()
            assert np.array_equal(one.change[name], two.change[name])
        if name.endswith(LORA_A):
            assert not one.change[name].any()
            assert two.change[name].any()


def test_one_record_moves_the_sum_of_either_phase_by_at_most_the_clip_norm(
    prepared: Prepared, busy: Adapter, held: PrivateRecords, plain_sgd: TrainingSection
) -> None:
    # Without its last record the site sums the others' contributions, as before.
    fewer = PrivateRecords(
        Features(held.features.states, held.features.offsets[:-1]),
        held.labels[:-1],
        held.units[:-1],
        SIZE - 1,
    )
    for first in (1, 2):
        local = replace(ALTERNATE, first=first)
        both = [
            train(prepared, busy, own, plain_sgd, local, plan_of(1), silent("one"))
            for own in (held, fewer)
        ]
        difference = np.concatenate(
            [(both[0].change[n] - both[1].change[n]).ravel() for n in busy.tensors]
        )
        moved = np.linalg.norm(difference) * SIZE / RATE
        assert 0.5 * CLIP < moved <= CLIP * (1 + 1e-3)  # float32 weights round


def test_the_filter_is_a_ring_of_weighted_means() -> None:
    rng = np.random.default_rng(3)
    names = {"m.lora_A": (3, 9), "m.lora_B": (7, 3), "head.weight": (4, 9)}
    gradients = {n: rng.normal(size=s).astype(np.float32) for n, s in names.items()}
    chosen = {n: nn.Parameter(torch.zeros(s)) for n, s in names.items()}
    for name, parameter in chosen.items():
        parameter.grad = torch.from_numpy(gradients[name].copy())
    LocalSteps(smoothing=KERNEL).settle(chosen, frozenset(names))
    found = {n: p.grad.numpy() for n, p in chosen.items() if p.grad is not None}
    assert np.array_equal(found["head.weight"], gradients["head.weight"])
    a, b = gradients["m.lora_A"], gradients["m.lora_B"]
    np.testing.assert_allclose(found["m.lora_A"], a @ circulant(9).T, atol=1e-6)
    np.testing.assert_allclose(found["m.lora_B"], circulant(7) @ b, atol=1e-6)


def circulant(size: int) -> Array:
    """The filter as a matrix: each row's weights around its own number."""
    matrix = np.zeros((size, size))
    for row in range(size):
        for offset, weight in enumerate(KERNEL, start=-2):
            matrix[row, (row + offset) % size] += weight
    return matrix


def test_the_rules_filter_makes_no_number_and_no_norm_larger() -> None:
    assert RULE.smoothing == KERNEL
    matrix = circulant(32)
    assert np.linalg.norm(matrix, 2) <= 1 + 1e-12
    np.testing.assert_allclose(matrix.sum(axis=0), 1.0)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)


def test_training_without_privacy_alternates_too(
    prepared: Prepared, busy: Adapter, held: PrivateRecords, plain_sgd: TrainingSection
) -> None:
    settings = plain_sgd.model_copy(
        update={"steps_per_round": 1, "expected_batch": SIZE}
    )
    update = train_without_privacy(
        prepared.model,
        busy,
        tuple(busy.tensors),
        held,
        settings,
        SIZE,
        simulation_stream(7, "plain"),
        local=replace(ALTERNATE, first=2),
    )
    for name, change in update.change.items():
        assert change.any() == (not name.endswith(LORA_B))


def test_a_loss_that_couples_records_is_refused_in_every_phase(
    prepared: Prepared, busy: Adapter, held: PrivateRecords, plain_sgd: TrainingSection
) -> None:
    def coupled(network, states, mask, labels):
        logits = network(states, mask)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return losses * losses.detach().mean()

    for first in (1, 2):
        with pytest.raises(TrainingError, match="another record's gradient"):
            train_privately(
                prepared.model,
                busy,
                tuple(busy.tensors),
                held,
                plan_of(1),
                plain_sgd,
                RATE,
                silent("coupled"),
                loss=coupled,
                local=replace(ALTERNATE, first=first),
            )


def test_bad_filters_and_steps_that_move_nothing_are_refused() -> None:
    for weights in ((0.5, 0.5), (1.0, 0.0, 0.1), (-0.5, 2.0, -0.5)):
        with pytest.raises(TrainingError, match="not weights of a filter"):
            LocalSteps(smoothing=weights)
    with pytest.raises(TrainingError, match="no tensor takes part in local step 3"):
        LocalSteps(lambda _tensor, _step: False, first=2).moving(["a"], 2)
