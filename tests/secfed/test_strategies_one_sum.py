"""What fedsvd, ffa-fresh, fed-sb, fedrot-lora and la-lora have in common."""

from __future__ import annotations

import numpy as np
import pytest
from played import (
    MODULES,
    SITES,
    changes,
    deltas,
    distance,
    mean_of,
    payloads,
    play,
    start_of,
)

from secfed.codec import Codec
from secfed.errors import RoundAbortedError
from secfed.strategies import get_strategy, sent_names, trained_names
from secfed.strategies.base import moved
from secfed.types import LORA_A, LORA_B, LORA_R

NEW = ("fedsvd", "ffa-fresh", "fed-sb", "fedrot-lora", "la-lora")
EXACT = ("fedsvd", "ffa-fresh", "fed-sb")


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("fedsvd", (LORA_B,)),
        ("ffa-fresh", (LORA_B,)),
        ("fed-sb", (LORA_R,)),
        ("fedrot-lora", (LORA_A, LORA_B)),
        ("la-lora", (LORA_A, LORA_B)),
    ],
)
def test_what_each_trains_and_sends(name, factors):
    strategy, state = get_strategy(name), start_of(name)
    expected = {m + f for m in MODULES for f in factors} | {"head.weight"}
    for number in (1, 2):
        assert set(trained_names(strategy, state.adapter, number)) == expected
        assert sent_names(strategy, state.adapter, number) == tuple(
            n for n in state.adapter.tensors if n in expected
        )
        for payload in payloads(strategy, state, changes(strategy, state.adapter, 1)):
            shapes = {n: v.shape for n, v in payload.items()}
            assert shapes == strategy.shapes(state.adapter, number)
            assert all(v.dtype == np.float32 for v in payload.values())


@pytest.mark.parametrize("name", NEW)
def test_shapes_stay_the_same_over_the_rounds(name):
    strategy, state = get_strategy(name), start_of(name)
    first = {n: v.shape for n, v in state.adapter.tensors.items()}
    assert not deltas(state.adapter).any()
    sent = strategy.shapes(state.adapter, 1)
    for number in (1, 2, 4):  # Round 3 was interrupted.
        state, _ = play(strategy, state, number)
        assert state.round == number
        assert {n: v.shape for n, v in state.adapter.tensors.items()} == first
        assert all(v.dtype == np.float32 for v in state.adapter.tensors.values())
        assert strategy.shapes(state.adapter, number + 1) == sent
        assert deltas(state.adapter).any()


@pytest.mark.parametrize("name", EXACT)
def test_the_new_product_is_the_mean_of_the_sites_products(name):
    strategy, state = get_strategy(name), start_of(name)
    assert strategy.exact
    for number in (1, 2, 3):
        state, sites = play(strategy, state, number)
        ideal = np.mean([deltas(site) for site in sites], axis=0)
        assert distance(deltas(state.adapter), ideal) < 1e-6
        heads = [site.tensors["head.weight"].astype(float) for site in sites]
        found = state.adapter.tensors["head.weight"]
        np.testing.assert_allclose(found, np.mean(heads, axis=0), atol=1e-6)


@pytest.mark.parametrize("name", NEW)
def test_one_site_without_noise_is_training_in_one_place(name):
    strategy, state = get_strategy(name), start_of(name)
    for number in (1, 2, 3):
        update = changes(strategy, state.adapter, number)[0]
        alone = deltas(moved(state.adapter, update))
        [payload] = payloads(strategy, state, [update])
        state = strategy.apply(state, payload, number)
        assert distance(deltas(state.adapter), alone) < 1e-6


@pytest.mark.parametrize("name", NEW)
def test_permuting_the_sites_changes_no_bit(name):
    class OneKey:
        def bytes(self, size: int, /):
            return bytes(size)

    strategy = get_strategy(name)
    state, _ = play(strategy, start_of(name), 1)
    sent = payloads(strategy, state, changes(strategy, state.adapter, 2))
    codec = Codec.for_tensors(sent[0], value_range=16.0, num_sites=SITES)

    def result(order):
        total = np.zeros(codec.length, dtype=np.uint32)
        for i in order:
            total += codec.encode(sent[i], OneKey()).vector
        new = strategy.apply(state, codec.decode_mean(total, SITES), 2)
        return {n: v.tobytes() for n, v in new.adapter.tensors.items()}

    assert result([0, 1, 2, 3]) == result([3, 1, 0, 2]) == result([2, 3, 1, 0])
    assert result([0, 1, 2, 3]) != result([0, 0, 2, 3])


@pytest.mark.parametrize("name", NEW)
def test_apply_refuses_what_is_not_this_round_and_leaves_its_arguments_alone(name):
    strategy = get_strategy(name)
    state, _ = play(strategy, start_of(name), 1)
    before = {n: v.copy() for n, v in state.adapter.tensors.items()}
    mean = mean_of(payloads(strategy, state, changes(strategy, state.adapter, 2)))
    strategy.apply(state, mean, 2)
    assert all(np.array_equal(before[n], v) for n, v in state.adapter.tensors.items())
    with pytest.raises(ValueError, match="round 1 after round 1"):
        strategy.apply(state, mean, 1)
    with pytest.raises(ValueError, match="sends"):
        strategy.apply(state, {"head.weight": mean["head.weight"]}, 2)
    with pytest.raises(ValueError, match="fit"):
        strategy.apply(state, mean | {"head.weight": np.zeros(1, np.float32)}, 2)
    for name_of, value in mean.items():
        bad = mean | {name_of: np.full_like(value, np.nan)}
        with pytest.raises(RoundAbortedError):
            strategy.apply(state, bad, 2)
