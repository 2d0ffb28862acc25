"""Local DP-SGD is what the plan says, checked against slow obvious versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small import flat, make_plan, silent, with_units
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.data import StudyData
from secfed.errors import TrainingError
from secfed.models import Features
from secfed.privacy.noise import RandomStream, simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.setup import Prepared
from secfed.study import Study
from secfed.study.sections import TrainingSection
from secfed.training import (
    ClassificationLoss,
    OpacusGradients,
    PrivateRecords,
    check_independence,
    records,
    train_privately,
    train_without_privacy,
)
from secfed.training.records import micro_batches
from secfed.training.units import clipped_sums
from secfed.types import LORA_A, Adapter

RATE = 64.0
Records = PrivateRecords
Array = NDArray[np.float64]


@pytest.fixture
def plain_sgd(study: Study) -> TrainingSection:
    """One step size for everything, so that change = -RATE * gradient."""
    return study.training.model_copy(update={"head_learning_rate": RATE})


@pytest.fixture(scope="session")
def names(busy: Adapter) -> tuple[str, ...]:
    return tuple(busy.tensors)


def some(records: Records, rows: Sequence[int]) -> Records:
    """A site that holds only these records, each its own unit."""
    texts = [
        records.features.states[
            records.features.offsets[row] : records.features.offsets[row + 1]
        ]
        for row in rows
    ]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    states = torch.cat(texts) if texts else records.features.states[:0]
    chosen = np.array(rows, dtype=np.int64)
    return PrivateRecords(
        Features(states, offsets.astype(np.int64)),
        records.labels[chosen],
        np.arange(len(rows)),
        len(rows),
    )


def one_at_a_time(
    model: AdaptedModel,
    adapter: Adapter,
    names: Sequence[str],
    records: Records,
    rows: Sequence[int],
) -> Array:
    """The slow obvious version: autograd of one record, no padding, no Opacus."""
    model.write(adapter.tensors)
    parameters = list(model.set_trainable(names).values())
    gradients = []
    for row in rows:
        states, mask = records.features.batch(np.array([row]))
        target = torch.as_tensor(records.labels[[row]])
        loss = nn.functional.cross_entropy(model(states, mask), target)
        parts = torch.autograd.grad(loss, parameters)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.array(gradients, dtype=np.float64)


RULES: list[dict[str, Any]] = [
    {"clip_rule": "flat"},
    {"clip_rule": "normalised", "clip_gamma": 0.01},
    {"clip_rule": "per-tensor"},
]


def train(
    prepared: Prepared,
    adapter: Adapter,
    names: Sequence[str],
    records: Records,
    plan: PrivacyPlan,
    settings: TrainingSection,
    stream: RandomStream,
    rate: float = RATE,
    *,
    keep_noiseless: bool = False,
) -> Array:
    update = train_privately(
        prepared.model,
        adapter,
        names,
        records,
        plan,
        settings,
        rate,
        stream,
        keep_noiseless=keep_noiseless,
    )
    if keep_noiseless:
        assert update.noiseless is not None
        assert update.noiseless.keys() == update.change.keys()
    return flat(update.change)


def distance(found: Array, expected: Array) -> float:
    """Relative to the size of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


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


# Clipping


def contribution(tensors: Sequence[Array], plan: PrivacyPlan) -> Array:
    """What one unit adds to a step's sum; the tensors are its gradient."""
    rows = [torch.from_numpy(t.astype(np.float32))[None] for t in tensors]
    sums = clipped_sums(rows, plan.clipping)
    return torch.cat(sums).double().numpy()


def expected_contribution(tensors: Sequence[Array], plan: PrivacyPlan) -> Array:
    """The rules as the docstring of ``secfed.privacy.clipping`` writes them."""
    norms = [np.linalg.norm(t) for t in tensors]
    whole = float(np.linalg.norm(norms))
    factors = {
        "flat": [min(1.0, plan.clip_norm / max(whole, 1e-300))] * len(tensors),
        "normalised": [plan.clip_norm / (whole + (plan.clip_gamma or 0.0))]
        * len(tensors),
        "per-tensor": [
            min(1.0, plan.clip_norm / np.sqrt(len(tensors)) / max(norm, 1e-300))
            for norm in norms
        ],
    }[plan.clip_rule]
    return np.concatenate([t * f for t, f in zip(tensors, factors, strict=True)])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    exponents=st.lists(st.integers(-40, 37), min_size=4, max_size=4),
    clip=st.sampled_from([1e-6, 1e-3, 0.5, 1.0, 37.0, 1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_clipped_norms(
    rule: dict[str, Any], sizes: list[int], exponents: list[int], clip: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    plan = make_plan(100, 10, clip_norm=clip, **rule)
    tensors = [
        (rng.uniform(-3, 3, size=size) * 10.0**exponent).astype(np.float32)
        for size, exponent in zip(sizes, exponents, strict=False)
    ]
    found = contribution(tensors, plan)
    # Not "up to rounding": a sensitivity that is exceeded a little is exceeded.
    assert np.linalg.norm(found) <= clip
    # The direction stays, and what is short enough is all but untouched.
    expected = expected_contribution([t.astype(np.float64) for t in tensors], plan)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-10 * clip)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
@given(
    values=st.lists(
        st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), 3e38]),
        min_size=3,
        max_size=24,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_bits_contribute_at_most_the_clip_norm(
    rule: dict[str, Any], values: list[float]
) -> None:
    plan = make_plan(100, 10, clip_norm=0.3, **rule)
    tensors = [np.array(values[:1]), np.array(values[1:])]
    found = contribution(tensors, plan)
    assert np.linalg.norm(found) <= 0.3
    if not np.isfinite(values).all():
        assert not found.any()


def test_the_bound_of_each_rule_is_reached() -> None:
    # Without this the test above would pass for a rule that returns nothing.
    long = [np.full(8, 1e4), np.full(8, 1e4)]
    for rule in RULES:
        plan = make_plan(100, 10, clip_norm=0.3, **rule)
        assert np.linalg.norm(contribution(long, plan)) > 0.2999
        bad = replace(plan, clip_norm=0.301)
        assert np.linalg.norm(contribution(long, bad)) > plan.clipping.sensitivity


def test_one_tensor_cannot_use_up_another_ones_share() -> None:
    plan = make_plan(100, 10, clip_norm=1.0, clip_rule="per-tensor")
    one, other = np.zeros(4), np.full(4, 0.01)
    one[0] = 1e6
    found = contribution([one, other], plan)
    np.testing.assert_allclose(found[4:], 0.01, rtol=1e-6)
    flat_plan = make_plan(100, 10, clip_norm=1.0)
    assert np.abs(contribution([one, other], flat_plan)[4:]).max() < 1e-7


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_unit_that_is_not_finite_counts_as_zero(
    bad: float, rule: dict[str, Any]
) -> None:
    clipping = make_plan(100, 10, clip_norm=1.0, **rule).clipping
    rows = [torch.tensor([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]]), torch.rand(3, 5)]
    others = clipped_sums([row[[0, 2]] for row in rows], clipping)
    for tensor in (0, 1):
        spoiled = [row.clone() for row in rows]
        spoiled[tensor][1, 0] = bad
        found = clipped_sums(spoiled, clipping)
        for one, two in zip(found, others, strict=True):
            torch.testing.assert_close(one, two, rtol=3e-7, atol=0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
def test_a_huge_finite_unit_is_clipped_and_finite(rule: dict[str, Any]) -> None:
    plan = make_plan(100, 10, clip_norm=1.0, **rule)
    found = contribution([np.full(64, 3e38)], plan)
    assert np.linalg.norm(found) == pytest.approx(1.0, rel=1e-5)


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


# What trains and what does not


def frozen_and_trained(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    frozen = tuple(name for name in names if name.endswith(LORA_A))
    return frozen, tuple(name for name in names if name not in frozen)


@pytest.mark.parametrize("private", [True, False])
def test_frozen_tensors_stay_bit_for_bit(
    private: bool,
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    frozen, trained = frozen_and_trained(names)
    assert frozen
    base = {
        name: value.clone()
        for name, value in prepared.model.network.state_dict().items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    records = some(everybody, range(30))
    plan = make_plan(30, 15, steps_per_round=2)
    stream = simulation_stream(5, "frozen")
    if private:
        update = train_privately(
            prepared.model, busy, trained, records, plan, plain_sgd, 1.0, stream
        )
    else:
        update = train_without_privacy(
            prepared.model, busy, trained, records, plain_sgd, 30, stream
        )
    assert tuple(update.change) == trained
    assert all(np.abs(value).max() > 0 for value in update.change.values())
    after = prepared.model.read()
    for name in frozen:
        assert np.array_equal(after[name], busy.tensors[name])
    state = prepared.model.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())


def test_a_frozen_tensor_that_moves_is_found(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    frozen, trained = frozen_and_trained(names)

    forwards = 0

    def nudge(_module: nn.Module, _inputs: object) -> None:
        nonlocal forwards
        forwards += 1
        if forwards <= 2:  # the two passes of the independence test
            return
        with torch.no_grad():
            prepared.model.named()[frozen[0]].add_(1e-3)

    with hooked(prepared.model, nudge), pytest.raises(TrainingError, match="frozen"):
        train(
            prepared,
            busy,
            trained,
            some(everybody, range(20)),
            make_plan(20, 20),
            plain_sgd,
            silent("nudge"),
        )


@pytest.mark.parametrize("what", ["adapter", "base"])
def test_a_frozen_weight_that_moves_is_found_after_the_first_step(
    what: str,
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    frozen, trained = frozen_and_trained(names)
    layer = prepared.model.upper[0].output.dense.weight
    weight = prepared.model.named()[frozen[0]] if what == "adapter" else layer

    def nudge(_module: nn.Module, _inputs: object) -> None:
        with torch.no_grad():
            weight[0, 0].add_(0.0)  # A write is enough, whatever it writes.

    done: list[int] = []
    plan = make_plan(20, 20, steps_per_round=3)
    with hooked(prepared.model, nudge), pytest.raises(TrainingError, match="frozen"):
        train_privately(
            prepared.model,
            busy,
            trained,
            some(everybody, range(20)),
            plan,
            plain_sgd,
            RATE,
            silent("first"),
            progress=lambda step, _steps: done.append(step),
        )
    assert not done


def test_class_weights_are_in_the_private_loss(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    held = some(everybody, range(12))
    weights = np.linspace(0.25, 4.0, len(prepared.label_names))
    plan = make_plan(12, 12, clip_norm=1e6)
    update = train_privately(
        prepared.model,
        busy,
        names,
        held,
        plan,
        plain_sgd,
        RATE,
        silent("weights"),
        loss=ClassificationLoss(tuple(weights)),
    )
    gradients = one_at_a_time(prepared.model, busy, names, held, range(12))
    expected = -RATE / 12 * (weights[held.labels] @ gradients)
    assert distance(flat(update.change), expected) < 1e-4
    assert distance(-RATE / 12 * gradients.sum(axis=0), expected) > 0.1


def test_a_trained_tensor_that_stays_is_found(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    with pytest.raises(TrainingError, match="did not move"):
        train(
            prepared,
            busy,
            names,
            some(everybody, range(20)),
            make_plan(20, 20),
            plain_sgd,
            silent("rate"),
            rate=0.0,
        )


# Independence of records


@contextmanager
def hooked(model: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def centred(_module: nn.Module, inputs: Any) -> Any:
    """Subtracts the batch mean: every record sees every other."""
    states, mask = inputs
    return states - states.mean(dim=0, keepdim=True), mask


def slightly_mixed(_module: nn.Module, inputs: Any) -> Any:
    states, mask = inputs
    return states + 1e-4 * states.roll(1, dims=0), mask


def test_records_are_independent_in_the_real_model(
    prepared: Prepared, busy: Adapter, everybody: Records, names: tuple[str, ...]
) -> None:
    prepared.model.write(busy.tensors)
    chosen = prepared.model.set_trainable(names)
    with OpacusGradients(prepared.model, chosen) as gradients:
        check_independence(gradients, ClassificationLoss(), everybody)


@pytest.mark.parametrize("mix", [centred, slightly_mixed])
def test_a_model_that_mixes_records_is_refused(
    mix: Callable[..., Any],
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    stream = simulation_stream(5, "mix")
    with (
        hooked(prepared.model, mix),
        pytest.raises(TrainingError, match="another record's gradient"),
    ):
        train(
            prepared,
            busy,
            names,
            some(everybody, range(20)),
            make_plan(20, 20),
            plain_sgd,
            stream,
        )
    # It stopped before the first step: the stream has not been read.
    assert stream.bytes(8) == simulation_stream(5, "mix").bytes(8)


def test_batch_normalisation_is_refused(
    prepared: Prepared, busy: Adapter, everybody: Records, names: tuple[str, ...]
) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = prepared.model

        def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(states, mask)
            return logits / logits.std(dim=0, keepdim=True)

    prepared.model.write(busy.tensors)
    chosen = prepared.model.set_trainable(names)
    with (
        OpacusGradients(Normalised(), chosen) as gradients,
        pytest.raises(TrainingError, match="self-test"),
    ):
        check_independence(gradients, ClassificationLoss(), everybody)


def test_nothing_stays_on_the_parameters_after_training(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    # Per-record gradients are private; a later reader of the model finds none.
    train(
        prepared,
        busy,
        names,
        some(everybody, range(20)),
        make_plan(20, 20),
        plain_sgd,
        silent("left"),
    )
    assert_nothing_left(prepared.model)


def assert_nothing_left(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is None
        for name in ("grad_sample", "_current_grad_sample", "_forward_counter"):
            assert not hasattr(parameter, name)
    for module in model.modules():
        for name in ("activations", "max_batch_len", "autograd_grad_sample_hooks"):
            assert not hasattr(module, name)
        assert not module._backward_hooks
        assert not module.training


class HalfwayError(Exception):
    pass


@pytest.mark.parametrize("passes", [0, 2])  # The self-test makes the first two.
def test_an_exception_inside_backward_leaves_nothing_behind(
    passes: int,
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    def once() -> Array:
        held = some(everybody, range(20))
        plan = make_plan(20, 20)
        return train(prepared, busy, names, held, plan, plain_sgd, silent("half"))

    healthy = once()
    # Half-way: the head's gradients are there, the lower factors' are not yet.
    lowest = prepared.model.upper[0].attention.self.query.lora_B.default
    seen = 0

    def stop(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > passes:
            raise HalfwayError

    handle = lowest.register_full_backward_hook(stop)
    try:
        with pytest.raises(HalfwayError):
            once()
    finally:
        handle.remove()
    assert seen == passes + 1
    assert_nothing_left(prepared.model)
    assert np.array_equal(once(), healthy)
