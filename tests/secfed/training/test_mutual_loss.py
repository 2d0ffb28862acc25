"""Student and mentor as one model: one gradient per record, clipped and noised as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mentored import make_folder, mentored, prepared_for
from numpy.typing import NDArray
from small import make_plan, randomised, silent
from torch import nn

from secfed.adapters import MENTOR, ModelPair, parted
from secfed.errors import TrainingError
from secfed.privacy.noise import simulation_stream
from secfed.runtime.mentoring import Mentor
from secfed.runtime.setup import Prepared
from secfed.strategies import STRATEGIES
from secfed.study.sections import TrainingSection
from secfed.training import (
    MutualLoss,
    OpacusGradients,
    PairedRecords,
    check_independence,
    pooled_records,
    train_privately,
    train_whole_site,
)
from secfed.types import Adapter

Array = NDArray[np.float64]
ROWS = np.arange(10)
WEIGHT, HEAT = 0.7, 2.0
CLIP, RATE = 0.1, 1.0
SETTINGS = TrainingSection.model_validate(
    {
        "method": "ffa-lora",
        "rounds": 1,
        "steps_per_round": 1,
        "expected_batch": 4,
        "optimizer": "sgd",
        "head_learning_rate": RATE,
        "learning_rate": {"ffa-lora": RATE},
    }
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    folder = make_folder(tmp_path_factory.mktemp("mutual"))
    return prepared_for(mentored(folder), folder)


@pytest.fixture(scope="module")
def mentor(prepared: Prepared) -> Mentor:
    assert prepared.mentor is not None
    return prepared.mentor


@pytest.fixture(scope="module")
def start(prepared: Prepared, mentor: Mentor) -> Adapter:
    """What both train from, no number at rest."""
    return randomised(prepared.start.with_tensors(mentor.start), 0.2)


@pytest.fixture(scope="module")
def records(prepared: Prepared) -> PairedRecords:
    held = prepared.records["north"]
    assert isinstance(held, PairedRecords)
    return held


def reference(pair: ModelPair, batch: Any, *, adaptive: bool) -> torch.Tensor:
    """The loss of one record by another way, with constants that are plain numbers."""
    states, mask, labels, mentor_states, mentor_mask = batch
    own = pair.student(states, mask)[0], pair.mentor(mentor_states, mentor_mask)[0]
    hard = sum(-torch.log_softmax(logits, 0)[labels[0]] for logits in own)
    assert isinstance(hard, torch.Tensor)
    soft = torch.zeros(())
    for pupil, other in (own, own[::-1]):
        said = torch.softmax(torch.tensor(other.tolist()) / HEAT, 0)
        found = torch.softmax(pupil / HEAT, 0)
        soft = soft + HEAT**2 * (said * (said / found).log()).sum()
    return hard + WEIGHT * soft / (hard.item() if adaptive else 1.0)


def one_at_a_time(
    pair: ModelPair, start: Adapter, records: PairedRecords, *, adaptive: bool
) -> Array:
    """Autograd of one record at a time, without padding and without Opacus."""
    pair.write(start.tensors)
    chosen = list(pair.set_trainable(start.tensors).values())
    rows = []
    for row in ROWS:
        loss = reference(pair, records.batch(np.array([row])), adaptive=adaptive)
        parts = torch.autograd.grad(loss, chosen)
        rows.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.array(rows, np.float64)


def flat(names: Any, tensors: Any) -> Array:
    return np.concatenate([np.asarray(tensors[n], np.float64).ravel() for n in names])


def some(records: PairedRecords, rows: Array | Any) -> PairedRecords:
    """Only these records are in a unit that can be drawn."""
    units = np.full(len(records.labels), 10_000)
    units[rows] = np.arange(len(rows))
    return replace(records, units=units, num_units=len(rows))


# The gradient


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_records_gradient_is_that_of_the_pair_by_brute_force(
    mentor: Mentor, start: Adapter, records: PairedRecords, adaptive: bool
) -> None:
    expected = one_at_a_time(mentor.pair, start, records, adaptive=adaptive)
    chosen = mentor.pair.set_trainable(start.tensors)
    loss = MutualLoss(WEIGHT, HEAT, adaptive=adaptive)
    with OpacusGradients(mentor.pair, chosen) as gradients:
        parts = gradients(loss, records.batch(ROWS))
    found = torch.cat([part.flatten(1) for part in parts], dim=1).double().numpy()
    scale = np.linalg.norm(expected, axis=1)
    assert (np.linalg.norm(found - expected, axis=1) / scale).max() < 1e-4
    other = one_at_a_time(mentor.pair, start, records, adaptive=not adaptive)
    assert (np.linalg.norm(other - expected, axis=1) / scale).max() > 0.02
    of_mentor = np.concatenate(
        [np.full(p.numel(), name.endswith(MENTOR)) for name, p in chosen.items()]
    )
    for part in (of_mentor, ~of_mentor):
        assert (np.linalg.norm(expected[:, part], axis=1) > 0).all()


def test_two_that_know_a_record_well_divide_by_no_zero() -> None:
    sure = torch.tensor([[200.0, 0.0]])

    def network(*_states: Any) -> Any:
        return sure, sure

    model: Any = network
    labels = torch.zeros(1, dtype=torch.int64)
    loss = MutualLoss(1.0, 1.0, adaptive=True)(model, sure, sure, labels, sure, sure)
    assert loss.tolist() == [0.0]


def batch_adaptive(network: Any, *batch: torch.Tensor) -> torch.Tensor:
    """The control: divided by the mean over the batch, as FedKD's code may be read."""
    plain = MutualLoss(WEIGHT, HEAT)(network, *batch)
    return plain / plain.detach().mean()


def test_no_record_moves_another_and_a_mean_over_the_batch_would(
    mentor: Mentor, start: Adapter, records: PairedRecords
) -> None:
    mentor.pair.write(start.tensors)
    chosen = mentor.pair.set_trainable(start.tensors)
    with OpacusGradients(mentor.pair, chosen) as gradients:
        check_independence(gradients, MutualLoss(WEIGHT, HEAT, adaptive=True), records)
        with pytest.raises(TrainingError, match="moved another record's gradient"):
            check_independence(gradients, batch_adaptive, records)


# What is released of it


def one_step(
    prepared: Prepared, start: Adapter, records: PairedRecords, rows: Any, **how: Any
) -> Array:
    """The sum of a step over these records, of both models, without noise."""
    count = len(ROWS)
    update = train_privately(
        prepared.trained,
        start,
        tuple(start.tensors),
        some(records, rows),
        make_plan(count, count, clip_norm=how.pop("clip", CLIP), **how),
        SETTINGS,
        RATE,
        silent("step"),
        loss=MutualLoss(WEIGHT, HEAT),
    )
    return flat(start.tensors, update.change) * -count / RATE


def part_norms(start: Adapter, array: Array) -> tuple[float, float]:
    """The norms of the student's part and of the mentor's."""
    names = [n for n, v in start.tensors.items() for _ in range(v.size)]
    of_mentor = np.array([name.endswith(MENTOR) for name in names])
    return (
        float(np.linalg.norm(array[~of_mentor])),
        float(np.linalg.norm(array[of_mentor])),
    )


def test_one_record_changes_the_sum_of_both_by_the_clip_norm_at_most(
    prepared: Prepared, mentor: Mentor, start: Adapter, records: PairedRecords
) -> None:
    gradients = one_at_a_time(mentor.pair, start, records, adaptive=False)
    norms = np.linalg.norm(gradients, axis=1)
    assert norms.min() > CLIP  # so that each is clipped, to the clip norm itself
    whole = one_step(prepared, start, records, ROWS)
    expected = (gradients * (CLIP / norms)[:, None]).sum(axis=0)
    # A step's change is a difference of 32-bit weights.
    assert np.linalg.norm(whole - expected) / np.linalg.norm(expected) < 1e-3
    for left_out in (0, 3):
        apart = whole - one_step(prepared, start, records, np.delete(ROWS, left_out))
        assert np.linalg.norm(apart) == pytest.approx(CLIP, rel=1e-2)
        student, own = part_norms(start, apart)
        assert 0.01 * CLIP < min(student, own) < max(student, own) < 0.9999 * CLIP
        # Control: clipped one by one, the two would be longer than the noise is for.
        parts = part_norms(start, gradients[left_out])
        assert np.hypot(*(min(CLIP, part) for part in parts)) > 1.1 * CLIP


def test_both_are_noised_alike(
    prepared: Prepared, start: Adapter, records: PairedRecords
) -> None:
    count = len(ROWS)
    update = train_privately(
        prepared.trained,
        start,
        tuple(start.tensors),
        replace(some(records, ROWS[:1]), num_units=0),  # Nobody is drawn.
        make_plan(count, count, clip_norm=CLIP, noise_multiplier=3.0),
        SETTINGS,
        RATE,
        simulation_stream(1, "noise"),
        loss=MutualLoss(WEIGHT, HEAT),
    )
    for part in parted(update.change):
        noise = flat(part, part) * count
        assert len(noise) > 100
        assert noise.std() == pytest.approx(3.0 * CLIP, rel=0.25)


def test_where_the_site_is_the_unit_both_changes_are_clipped_as_one(
    prepared: Prepared, start: Adapter, records: PairedRecords
) -> None:
    plan = make_plan(
        100, 1, clip_norm=CLIP, unit="site", sampling_probability=1.0, expected_batch=1
    )
    settings = SETTINGS.model_copy(update={"steps_per_round": 3})
    update = train_whole_site(
        prepared.trained,
        start,
        tuple(start.tensors),
        records,
        replace(plan, nominal_units=8),
        settings,
        RATE,
        silent("whole"),
        loss=MutualLoss(WEIGHT, HEAT),
    )
    change = flat(start.tensors, update.change)
    assert np.linalg.norm(change) == pytest.approx(CLIP, rel=1e-4)
    assert min(part_norms(start, change)) > 0.05 * CLIP


# The pair


def test_no_rule_rests_or_keeps_a_mentors_tensor(start: Adapter) -> None:
    mentors = parted(start.tensors)[1]
    assert any(name.startswith("head.") for name in mentors)
    for strategy in STRATEGIES.values():
        for name in mentors:
            assert all(strategy.active(name, step) for step in (1, 2))
    assert all(MENTOR not in module for module in start.modules())


def test_each_model_reads_its_own_numbers(
    prepared: Prepared, mentor: Mentor, start: Adapter
) -> None:
    mentor.pair.write(start.tensors)
    own, other = parted(start.tensors)
    read = prepared.model.read()
    assert read.keys() == own.keys()
    assert all(np.array_equal(read[name], own[name]) for name in own)
    assert {n + MENTOR for n in mentor.pair.mentor.read()} == other.keys()
    assert isinstance(mentor.pair.network, nn.ModuleList)


def test_pooled_records_keep_the_mentors_states(prepared: Prepared) -> None:
    held = list(prepared.records.values())
    pooled = pooled_records(held)
    *_, states, mask = pooled.batch(np.array([len(held[0].labels)]))
    *_, expected, seen = held[1].batch(np.array([0]))
    assert torch.equal(states, expected)
    assert torch.equal(mask, seen)
