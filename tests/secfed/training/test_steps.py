"""Local DP-SGD is what the plan says, checked against slow obvious versions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from at_a_site import (
    RATE,
    RULES,
    Array,
    Records,
    distance,
    expected_contribution,
    one_at_a_time,
    some,
    train,
)
from small import flat, make_plan, silent, with_units
from torch import nn

from secfed.data import StudyData
from secfed.models import Features
from secfed.privacy.noise import simulation_stream
from secfed.runtime.setup import Prepared
from secfed.study import Study
from secfed.study.sections import TrainingSection
from secfed.training import (
    ClassificationLoss,
    OpacusGradients,
    records,
    train_privately,
)
from secfed.training.records import micro_batches
from secfed.types import LORA_A, Adapter

# Gradients of single records

ROWS = tuple(range(12))


def test_opacus_gradients_are_those_of_single_records(
    prepared: Prepared, busy: Adapter, everybody: Records, names: tuple[str, ...]
) -> None:
    expected = one_at_a_time(prepared.model, busy, names, everybody, ROWS)
    chosen = prepared.model.set_trainable(names)
    with OpacusGradients(prepared.model, chosen) as gradients:
        samples = gradients(ClassificationLoss(), everybody.batch(np.array(ROWS)))
    found = torch.cat([g.reshape(len(g), -1) for g in samples], dim=1)
    each = [
        distance(row, wanted)
        for row, wanted in zip(found.numpy(), expected, strict=True)
    ]
    assert max(each) < 1e-4
    # Controls: the comparison sees a neighbour's gradient and one per cent.
    shuffled = np.roll(found.numpy(), 1, axis=0)
    assert distance(shuffled, expected) > 0.5
    assert distance(1.01 * found.numpy(), expected) > 9e-3


def test_every_tensor_has_a_gradient(
    prepared: Prepared, busy: Adapter, everybody: Records, names: tuple[str, ...]
) -> None:
    # Without this the comparison above could hold because all is zero.
    gradients = one_at_a_time(prepared.model, busy, names, everybody, [0])[0]
    start = 0
    for name, value in busy.tensors.items():
        assert np.abs(gradients[start : start + value.size]).max() > 0, name
        start += value.size


# Whole steps, without noise, against the slow version


def clipped_sum(gradients: Array, clip: float) -> Array:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    total: Array = (gradients * np.minimum(1.0, clip / norms)).sum(axis=0)
    return total


def test_a_big_batch_in_micro_batches_is_the_same_sum(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "_MICRO_BATCH_TOKENS", 48)
    held = some(everybody, range(24))
    size = held.num_units
    chunks = list(micro_batches(held, np.arange(size)))
    assert len(chunks) >= 4
    assert sorted(np.concatenate([rows for rows, _ in chunks])) == list(range(size))
    gradients = one_at_a_time(prepared.model, busy, names, held, range(size))
    clip = float(np.median(np.linalg.norm(gradients, axis=1)))
    plan = make_plan(size, size, clip_norm=clip)  # q = 1: every unit is drawn
    found = train(prepared, busy, names, held, plan, plain_sgd, silent("big"))
    expected = -RATE / size * clipped_sum(gradients, clip)
    assert distance(found, expected) < 1e-4
    # Controls: half of the units are clipped, and one unit left out is seen.
    assert distance(-RATE / size * gradients.sum(axis=0), expected) > 0.05
    assert distance(-RATE / size * clipped_sum(gradients[1:], clip), expected) > 1e-3


def test_a_person_is_averaged_and_clipped_as_one(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "_MICRO_BATCH_TOKENS", 48)
    people = np.random.default_rng(2).integers(0, 8, size=24)
    people = np.unique(people, return_inverse=True)[1]
    count = int(people.max()) + 1
    held = with_units(some(everybody, range(24)), people)
    gradients = one_at_a_time(prepared.model, busy, names, held, range(24))
    means = np.array([gradients[people == p].mean(axis=0) for p in range(count)])
    clip = float(np.median(np.linalg.norm(means, axis=1)))
    plan = make_plan(
        count, count, clip_norm=clip, unit="person", max_records_per_unit=9
    )
    for rows, units in micro_batches(held, np.arange(count)):
        assert len(np.unique(people[rows])) == int(units.max()) + 1
        for person in np.unique(people[rows]):
            assert set(np.flatnonzero(people == person)) <= set(rows)
    found = train(prepared, busy, names, held, plan, plain_sgd, silent("people"))
    expected = -RATE / count * clipped_sum(means, clip)
    assert distance(found, expected) < 1e-4
    # Control: clipping each record by itself is something else.
    assert distance(-RATE / count * clipped_sum(gradients, clip), expected) > 0.1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
@pytest.mark.parametrize(
    ("row", "bad"), [(0, float("nan")), (2, float("inf")), (9, float("nan"))]
)
def test_a_record_that_is_not_finite_changes_nobody_else(
    row: int,
    bad: float,
    rule: dict[str, Any],
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    healthy = some(everybody, range(20))
    states = healthy.features.states.clone()
    offsets = healthy.features.offsets
    states[offsets[row] : offsets[row + 1]] = bad
    spoiled = replace(healthy, features=Features(states, offsets))
    plan = make_plan(20, 20, clip_norm=0.5, **rule)
    found = train(prepared, busy, names, spoiled, plan, plain_sgd, silent("nan"))
    others = [other for other in range(20) if other != row]
    gradients = one_at_a_time(prepared.model, busy, names, healthy, others)
    bounds = np.cumsum([value.size for value in busy.tensors.values()])[:-1]
    total = sum(
        expected_contribution(np.split(gradient, bounds), plan)
        for gradient in gradients
    )
    assert distance(found, -RATE / 20 * np.asarray(total)) < 1e-4


def test_one_site_without_noise_and_clipping_is_ordinary_training(
    prepared: Prepared, data: StudyData, study: Study, busy: Adapter
) -> None:
    """Plain PEFT and torch on the raw texts, on the same batches, with momentum."""
    site = study.sites[0]
    records, texts = prepared.records[site], data.sites[site].records.texts
    names = tuple(name for name in busy.tensors if not name.endswith(LORA_A))
    settings = study.training.model_copy(
        update={"momentum": 0.9, "head_learning_rate": 0.5}
    )
    plan = make_plan(100, 16, steps_per_round=4, clip_norm=1e6)
    found = train(
        prepared, busy, names, records, plan, settings, silent("plain"), rate=0.05
    )

    model = prepared.model
    model.write(busy.tensors)
    chosen = model.set_trainable(names)
    head = [p for n, p in chosen.items() if n.startswith("head.")]
    lora = [p for n, p in chosen.items() if not n.startswith("head.")]
    groups = [{"params": head, "lr": 0.5}, {"params": lora, "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    stream = silent("plain")
    drawn = 0
    for _ in range(4):
        rows = plan.sample_units(stream, records.num_units)
        drawn += len(rows)
        tokens = prepared.base.tokenizer(
            [texts[row] for row in rows],
            truncation=True,
            max_length=study.model.max_length,
            padding=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"][:, :, None].float()
        logits = (model.network(**tokens).logits * mask).sum(1) / mask.sum(1)
        labels = torch.as_tensor(records.labels[rows])
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / 16
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = model.read()
    expected = flat({name: after[name] - busy.tensors[name] for name in names})
    assert drawn > 32
    assert distance(found, expected) < 1e-3
    # Control: with a clip that bites, it is not ordinary training.
    tight = replace(plan, clip_norm=0.1)
    clipped = train(
        prepared, busy, names, records, tight, settings, silent("plain"), rate=0.05
    )
    assert distance(clipped, expected) > 0.1


# Noise


def nothing(records: Records) -> Records:
    return some(records, [])


@pytest.mark.parametrize("optimizer_steps", [1, 3])
def test_noise_of_an_update_without_data(
    optimizer_steps: int,
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    plan = make_plan(
        100, 10, steps_per_round=optimizer_steps, clip_norm=0.7, noise_multiplier=1.3
    )
    found = train(
        prepared,
        busy,
        names,
        nothing(everybody),
        plan,
        plain_sgd,
        simulation_stream(5, "noise", str(optimizer_steps)),
    )
    expected = RATE * np.sqrt(optimizer_steps) * 1.3 * 0.7 / 10
    ratio = found.std() / expected
    # Six standard errors of a sample deviation: a false alarm in 5e8 runs.
    tolerance = 6 / np.sqrt(2 * found.size)
    assert abs(ratio - 1) < tolerance
    assert abs(found.mean()) < 6 * expected / np.sqrt(found.size)
    # The tolerance tells the plan's noise from one that is 5 % too small.
    assert tolerance < 0.05


def test_an_empty_batch_is_a_step_of_noise_only(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    records = some(everybody, range(30))
    plan = make_plan(10**8, 1, delta=1e-10)  # nobody is drawn, except by a miracle
    stream = simulation_stream(5, "empty")
    assert len(plan.sample_units(stream, records.num_units)) == 0
    drawn = plan.noise(stream, flat(busy.tensors).size)
    found = train(
        prepared,
        busy,
        names,
        records,
        plan,
        plain_sgd,
        simulation_stream(5, "empty"),
        keep_noiseless=True,
    )
    np.testing.assert_allclose(found, -RATE * drawn, rtol=1e-5, atol=1e-5)
    assert (found != 0).mean() > 0.999  # the weights moved


def test_the_replay_leaves_out_the_noise_and_nothing_else(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    records = some(everybody, range(30))
    plan = make_plan(30, 30)
    stream = simulation_stream(5, "replay")
    plan.sample_units(stream, 30)
    drawn = plan.noise(stream, flat(busy.tensors).size)
    update = train_privately(
        prepared.model,
        busy,
        names,
        records,
        plan,
        plain_sgd,
        RATE,
        simulation_stream(5, "replay"),
        keep_noiseless=True,
    )
    assert update.noiseless is not None
    noise = flat(update.change) - flat(update.noiseless)
    np.testing.assert_allclose(noise, -RATE * drawn / 30, rtol=1e-3, atol=1e-5)
    assert "private" in repr(update)
