"""The aggregation rules against slow, dense float64 references."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from secfed.amplification import measure
from secfed.codec import Codec
from secfed.errors import RoundAbortedError, StudyError
from secfed.strategies import (
    STRATEGIES,
    ServerState,
    Strategy,
    check_maskable,
    get_strategy,
    trained_names,
)
from secfed.types import LORA_A, LORA_B, Adapter

MODULES = ("layer.0.query", "layer.1.value")
AVERAGING = [  # They send all that they train, and add its mean.
    name
    for name, rule in STRATEGIES.items()
    if rule.needs == "sum"
    and not rule.personal
    and not rule.uses_base
    and type(rule).apply is Strategy.apply
]
SITES, OUT, IN, R = 4, 7, 6, 3
KNOWN_FFB_ENTRY = 0.0240923483  # Seed 5, module layer.0.query, entry (0, 0).


def initial(seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in MODULES:
        tensors[module + LORA_A] = rng.normal(size=(R, IN)).astype(np.float32)
        tensors[module + LORA_B] = np.zeros((OUT, R), np.float32)
    tensors["head.weight"] = rng.normal(size=(5, IN)).astype(np.float32)
    tensors["head.bias"] = np.zeros(5, np.float32)
    return Adapter(tensors, scaling=2.0)


def updates_for(strategy, state, round_number, seed=1):
    rng = np.random.default_rng(seed)
    return [
        {
            name: rng.normal(size=state.adapter.tensors[name].shape).astype(np.float32)
            for name in trained_names(strategy, state.adapter, round_number)
        }
        for _ in range(SITES)
    ]


def mean_of(updates):
    return {
        name: np.mean([u[name].astype(float) for u in updates], axis=0).astype(
            np.float32
        )
        for name in updates[0]
    }


def product(adapter: Adapter, module: str) -> np.ndarray:
    """dW of one module, dense, float64."""
    b = adapter.tensors[module + LORA_B].astype(float)
    return adapter.scaling * b @ adapter.tensors[module + LORA_A].astype(float)


def moved(adapter: Adapter, update) -> Adapter:
    return adapter.replaced({n: adapter.tensors[n] + v for n, v in update.items()})


def after_rounds(strategy, rounds: int) -> ServerState:
    state = strategy.init(initial(), 5)
    for number in range(1, rounds + 1):
        updates = updates_for(strategy, state, number, seed=number)
        state = strategy.apply(state, mean_of(updates), number)
    return state


@pytest.mark.parametrize("name", AVERAGING)
def test_new_tensors_are_the_mean_of_the_sites_tensors(name):
    strategy = get_strategy(name)
    for number in (1, 2, 3):
        state = after_rounds(strategy, number - 1)
        updates = updates_for(strategy, state, number, seed=90 + number)
        new = strategy.apply(state, mean_of(updates), number)
        assert new.round == number
        assert list(new.adapter.tensors) == list(state.adapter.tensors)
        sites = [moved(state.adapter, update) for update in updates]
        for tensor, value in new.adapter.tensors.items():
            reference = np.mean(
                [s.tensors[tensor].astype(float) for s in sites], axis=0
            )
            assert value.dtype == np.float32
            assert np.allclose(value, reference, atol=2e-6)
            if tensor not in updates[0]:
                assert value.tobytes() == state.adapter.tensors[tensor].tobytes()


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_exact_means_product_of_means_is_mean_of_products(name, number):
    strategy = get_strategy(name)
    state = after_rounds(strategy, number - 1)
    updates = updates_for(strategy, state, number, seed=50)
    new = strategy.apply(state, mean_of(updates), number)
    sites = [moved(state.adapter, update) for update in updates]
    error = norm = 0.0
    for module in MODULES:
        ideal = np.mean([product(site, module) for site in sites], axis=0)
        error += np.sum((product(new.adapter, module) - ideal) ** 2)
        norm += np.sum(ideal**2)
    if strategy.exact:
        assert error <= 1e-12 * max(norm, 1.0)
    else:
        assert error > 0.01 * norm
    trained = trained_names(strategy, state.adapter, number)
    reported = measure(state.adapter, updates, updates, trained).aggregation_gap
    assert reported == pytest.approx(error / norm if norm else 0.0, rel=1e-4, abs=1e-10)
    if strategy.exact:
        assert reported == 0.0


@pytest.mark.parametrize("name", AVERAGING)
def test_permuting_the_sites_changes_no_bit(name):
    class OneKey:
        def bytes(self, size: int, /):
            return bytes(size)

    strategy = get_strategy(name)
    state = strategy.init(initial(), 5)
    updates = updates_for(strategy, state, 1)
    codec = Codec.for_tensors(updates[0], value_range=8.0, num_sites=SITES)

    def result(order):
        total = np.zeros(codec.length, dtype=np.uint32)
        for i in order:
            total += codec.encode(updates[i], OneKey()).vector
        new = strategy.apply(state, codec.decode_mean(total, SITES), 1)
        return {n: v.tobytes() for n, v in new.adapter.tensors.items()}

    assert result([0, 1, 2, 3]) == result([3, 1, 0, 2]) == result([2, 3, 1, 0])
    # The order does not matter, the values do.
    assert result([0, 1, 2, 3]) != result([0, 0, 2, 3])


@pytest.mark.parametrize(
    ("name", "factors_by_round"),
    [
        ("fedavg", {1: "AB", 2: "AB"}),
        ("ffa-lora", {1: "B", 2: "B"}),
        ("ffb-lora", {1: "A", 2: "A"}),
        ("rolora", {1: "B", 2: "A", 3: "B"}),
        ("head-only", {1: "", 2: ""}),
        ("flora", {1: "AB"}),
    ],
)
def test_what_each_rule_trains(name, factors_by_round):
    for number, factors in factors_by_round.items():
        expected = {f"{m}.lora_{f}" for m in MODULES for f in factors}
        trained = trained_names(get_strategy(name), initial(), number)
        assert set(trained) == expected | {"head.weight", "head.bias"}
        # The order on the wire is the adapter's.
        assert list(trained) == [n for n in initial().tensors if n in trained]


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_training_starts_from_the_base_model(name):
    base = {module: np.eye(OUT, IN, dtype=np.float32) for module in MODULES}
    state = get_strategy(name).for_sites([R] * SITES).init(initial(), 5, base)
    assert state.round == 0
    assert all(not state.adapter.delta(module).any() for module in MODULES)


def test_ffb_starts_the_other_way_round():
    start = initial()
    state = get_strategy("ffb-lora").init(start, 5)
    for module in MODULES:
        assert not state.adapter.tensors[module + LORA_A].any()
        b = state.adapter.tensors[module + LORA_B]
        assert b.dtype == np.float32
        assert (np.abs(b) <= 1 / np.sqrt(OUT)).all()
        assert np.unique(b).size == b.size
    first, second = (state.adapter.tensors[m + LORA_B] for m in MODULES)
    assert not np.array_equal(first, second)
    again = get_strategy("ffb-lora").init(start, 5).adapter
    other = get_strategy("ffb-lora").init(start, 6).adapter
    name = MODULES[0] + LORA_B
    assert np.array_equal(again.tensors[name], first)
    assert not np.array_equal(other.tensors[name], first)
    # A known answer: the value is public, so it must never change.
    assert float(first[0, 0]) == pytest.approx(KNOWN_FFB_ENTRY, abs=1e-7)


def test_ffb_energy_is_that_of_a_peft_factor():
    # E|B|^2 = r/3; 8000 uniform entries: relative deviation 1 %, 5 % allowed.
    big = Adapter(
        {
            "m.lora_A": np.ones((8, 4), np.float32),
            "m.lora_B": np.zeros((1000, 8), np.float32),
        },
        1.0,
    )
    b = get_strategy("ffb-lora").init(big, 0).adapter.tensors["m.lora_B"]
    assert np.sum(b.astype(float) ** 2) == pytest.approx(8 / 3, rel=0.05)
    assert abs(b.mean()) < 0.001


@pytest.mark.parametrize("name", AVERAGING)
def test_apply_leaves_its_arguments_alone(name):
    strategy = get_strategy(name)
    state = strategy.init(initial(), 5)
    before = {n: v.copy() for n, v in state.adapter.tensors.items()}
    mean = mean_of(updates_for(strategy, state, 1))
    strategy.apply(state, mean, 1)
    assert all(np.array_equal(before[n], v) for n, v in state.adapter.tensors.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.round = 9


@pytest.mark.parametrize("name", AVERAGING)
def test_apply_refuses_what_is_not_this_round(name):
    strategy = get_strategy(name)
    state = strategy.init(initial(), 5)
    mean = mean_of(updates_for(strategy, state, 1))
    done = strategy.apply(state, mean, 1)
    with pytest.raises(ValueError, match="round 1 after round 1"):
        strategy.apply(done, mean, 1)
    with pytest.raises(ValueError, match="sends"):
        strategy.apply(state, mean | {"stranger": np.zeros(1, np.float32)}, 1)
    with pytest.raises(ValueError, match="sends"):
        strategy.apply(state, {n: v for n, v in mean.items() if n != "head.bias"}, 1)
    with pytest.raises(ValueError, match="fit"):
        strategy.apply(state, mean | {"head.bias": np.zeros(1, np.float32)}, 1)
    bad = mean | {"head.bias": np.full(5, np.nan, np.float32)}
    with pytest.raises(RoundAbortedError, match=r"head\.bias"):
        strategy.apply(state, bad, 1)


def test_an_interrupted_round_is_skipped():
    strategy = get_strategy("rolora")
    state = after_rounds(strategy, 1)
    third = strategy.apply(state, mean_of(updates_for(strategy, state, 3)), 3)
    assert third.round == 3


def test_names_are_the_keys_and_every_rule_has_a_reference():
    assert set(STRATEGIES) == {
        "fedavg",
        "fedex-lora",
        "fedsa-lora",
        "fedsa-lora-b",
        "ffa-lora",
        "ffb-lora",
        "flexlora",
        "flexlora-sketch",
        "hetlora",
        "lora-fair",
        "rolora",
        "head-only",
        "local",
        "flora",
        "fedsvd",
        "ffa-fresh",
        "fed-sb",
        "fedrot-lora",
        "la-lora",
    }
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name
        assert strategy.title
        assert "20" in strategy.reference
        assert bool(strategy.refusal) == (strategy.needs == "singles")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("fedavgg", "fedavg"), ("ffa_lora", "ffa-lora"), ("RoLoRA", "rolora")],
)
def test_an_unknown_name_gets_the_nearest(wrong, nearest):
    with pytest.raises(StudyError, match=f"did you mean '{nearest}'") as caught:
        get_strategy(wrong, path="my.toml")
    assert caught.value.path == "my.toml"
    assert caught.value.key == "training.method"
    with pytest.raises(StudyError) as far:
        get_strategy("zzz")
    assert "did you mean" not in str(far.value)


def test_flora_is_known_and_refused_with_the_reason():
    flora = get_strategy("flora")
    with pytest.raises(StudyError, match="each site's update"):
        check_maskable(flora)
    with pytest.raises(StudyError, match="flora"):
        flora.apply(flora.init(initial(), 0), {}, 1)
    for name in STRATEGIES.keys() - {"flora"}:
        assert check_maskable(get_strategy(name)) is get_strategy(name)
