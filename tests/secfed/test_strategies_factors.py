"""ffa-fresh, fed-sb, fedrot-lora and la-lora: what each does to its factors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from played import (
    BASE,
    IN,
    MODULES,
    OUT,
    SCALING,
    SITES,
    R,
    changes,
    deltas,
    distance,
    initial,
    mean_of,
    payloads,
    play,
    start_of,
)

from secfed.errors import StudyError
from secfed.release import plain_lora
from secfed.strategies import STRATEGIES, get_strategy
from secfed.strategies.base import moved
from secfed.types import LORA_A, LORA_B, LORA_R, MERGED, Adapter

KNOWN_FRESH_ENTRY = -0.0938897040  # After round 1 from A = arange / 100: entry (0, 0).

# ffa-fresh


def test_ffa_fresh_adds_up_all_rounds_and_its_rank_grows():
    strategy, state = get_strategy("ffa-fresh"), start_of("ffa-fresh")
    expected = np.zeros((len(MODULES), OUT, IN))
    for number, rank in ((1, 3), (2, 6), (3, 8)):
        updates = changes(strategy, state.adapter, number)
        for i, module in enumerate(MODULES):
            assert not state.adapter.tensors[module + LORA_B].any()
            a = state.adapter.tensors[module + LORA_A].astype(float)
            b = [update[module + LORA_B].astype(float) for update in updates]
            expected[i] += SCALING * np.mean(b, axis=0) @ a
        mean = mean_of(payloads(strategy, state, updates))
        state = strategy.apply(state, mean, number)
        assert distance(deltas(state.adapter), expected) < 1e-6
        released = plain_lora(state.adapter)
        assert released.tensors[MODULES[0] + LORA_A].shape == (rank, IN)
        assert distance(deltas(released), expected) < 1e-5


def test_ffa_fresh_begins_as_ffa_lora():
    fresh, ffa = get_strategy("ffa-fresh"), get_strategy("ffa-lora")
    state = start_of("ffa-fresh")
    update = changes(fresh, state.adapter, 1)[0]
    one = fresh.apply(state, update, 1)
    other = ffa.apply(ffa.init(initial(), 5), update, 1)
    assert distance(deltas(one.adapter), deltas(other.adapter)) < 1e-7
    assert all(one.adapter.tensors[m + MERGED].any() for m in MODULES)


def test_every_a_of_ffa_fresh_is_public_and_new():
    strategy = get_strategy("ffa-fresh")

    def drawn(seed: int, updates: int) -> list[NDArray[np.float32]]:
        state = strategy.init(initial(seed), 0)
        found = []
        for number in (1, 2, 3):
            state, _ = play(strategy, state, number, updates)
            found += [state.adapter.tensors[m + LORA_A] for m in MODULES]
        return found

    one, again, other = drawn(0, 1), drawn(0, 2), drawn(1, 1)
    # From the seed alone: what the sites sent has no part in it.
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({a.tobytes() for a in one}) == len(one)
    values = np.concatenate([a.ravel() for a in one])
    assert np.abs(values).max() <= 1 / np.sqrt(IN)
    # 144 uniform numbers: the mean square is within 5 standard errors of 1 / (3 IN).
    error = 5 * np.sqrt(4 / 45 / len(values)) / IN
    assert abs(np.mean(values.astype(float) ** 2) - 1 / (3 * IN)) < error


def test_the_second_a_of_ffa_fresh_is_a_known_answer():
    # The value is public, so it must never change.
    first = np.arange(R * IN, dtype=np.float32).reshape(R, IN) / 100
    zeros = np.zeros((OUT, R), np.float32)
    start = Adapter({"m.lora_A": first, "m.lora_B": zeros}, 1.0)
    strategy = get_strategy("ffa-fresh")
    state = strategy.apply(strategy.init(start, 0), {"m.lora_B": zeros}, 1)
    found = float(state.adapter.tensors["m.lora_A"][0, 0])
    assert found == pytest.approx(KNOWN_FRESH_ENTRY, abs=1e-7)


# fed-sb


def test_fed_sb_trains_a_core_between_the_leading_singular_vectors():
    strategy, state = get_strategy("fed-sb"), start_of("fed-sb")
    after, sites = play(strategy, state, 1)
    for module in MODULES:
        a, b = (state.adapter.tensors[module + end] for end in (LORA_A, LORA_B))
        np.testing.assert_allclose(a @ a.T, np.eye(R), atol=1e-6)
        np.testing.assert_allclose(b.T @ b, np.eye(R), atol=1e-6)
        # They span the best approximation of the weight (Eckart and Young).
        weight = BASE[module].astype(float)
        values = np.linalg.svd(weight, compute_uv=False)
        rest = np.linalg.norm(weight - b @ (b.T @ weight @ a.T) @ a)
        assert rest == pytest.approx(np.linalg.norm(values[R:]), rel=1e-5)
        assert after.adapter.tensors[module + LORA_A] is a
        assert after.adapter.tensors[module + LORA_B] is b
        cores = [site.tensors[module + LORA_R].astype(float) for site in sites]
        dense = SCALING * b.astype(float) @ np.mean(cores, axis=0) @ a.astype(float)
        assert distance(after.adapter.delta(module), dense) < 1e-6
        # Orthonormal bases: the change is as long as its coordinates.
        length = SCALING * np.linalg.norm(np.mean(cores, axis=0))
        assert np.linalg.norm(dense) == pytest.approx(length, rel=1e-5)


def test_fed_sb_refuses_to_start_without_a_base_or_above_its_rank():
    strategy = get_strategy("fed-sb")
    with pytest.raises(ValueError, match="frozen weight of layer"):
        strategy.init(initial(), 0)
    thin = {module: weight[:, : R - 1] for module, weight in BASE.items()}
    with pytest.raises(StudyError, match="above the rank") as caught:
        strategy.init(initial(), 0, thin)
    assert caught.value.key == "adapter.r"
    assert [n for n, rule in STRATEGIES.items() if rule.uses_base] == ["fed-sb"]


# fedrot-lora


def test_fedrot_averages_equal_products_in_turned_factors_exactly():
    rng = np.random.default_rng(4)
    rot, avg = get_strategy("fedrot-lora"), get_strategy("fedavg")
    state, _ = play(rot, start_of("fedrot-lora"), 1)
    goal = {
        n: v + 0.1 * rng.normal(size=v.shape) for n, v in state.adapter.tensors.items()
    }
    updates = []
    for _ in range(SITES):
        own = dict(goal)
        for module in MODULES:
            q, _ = np.linalg.qr(rng.normal(size=(R, R)))
            own[module + LORA_B] = goal[module + LORA_B] @ q
            own[module + LORA_A] = q.T @ goal[module + LORA_A]
        updates.append(
            {
                n: (v - state.adapter.tensors[n]).astype(np.float32)
                for n, v in own.items()
            }
        )
    expected = deltas(moved(state.adapter, updates[0]))
    turned = rot.apply(state, mean_of(payloads(rot, state, updates)), 2)
    assert distance(deltas(turned.adapter), expected) < 1e-5
    plain = avg.apply(state, mean_of(updates), 2)
    assert distance(deltas(plain.adapter), expected) > 0.5
    head = turned.adapter.tensors["head.weight"]
    np.testing.assert_allclose(head, goal["head.weight"], atol=1e-6)


def test_fedrot_sends_the_same_product_and_the_nearest_factors():
    strategy = get_strategy("fedrot-lora")
    state, _ = play(strategy, start_of("fedrot-lora"), 1)
    rng = np.random.default_rng(5)
    for update in changes(strategy, state.adapter, 2):
        [payload] = payloads(strategy, state, [update])
        site, sent = moved(state.adapter, update), moved(state.adapter, payload)
        assert distance(deltas(sent), deltas(site)) < 1e-6
        for module in MODULES:
            length = apart(payload[module + LORA_A], payload[module + LORA_B])
            for _ in range(50):  # No other turn is nearer, nor is no turn at all.
                q, _ = np.linalg.qr(rng.normal(size=(R, R)))
                a = q.T @ site.tensors[module + LORA_A]
                b = site.tensors[module + LORA_B] @ q
                a -= state.adapter.tensors[module + LORA_A]
                b -= state.adapter.tensors[module + LORA_B]
                assert length <= apart(a, b)
            assert length < apart(update[module + LORA_A], update[module + LORA_B])


def apart(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.sum(np.square(a, dtype=float)) + np.sum(np.square(b, dtype=float)))


# la-lora


def test_la_lora_moves_b_first_and_then_alternates():
    strategy = get_strategy("la-lora")
    for step, suffix in ((1, LORA_B), (2, LORA_A), (3, LORA_B), (4, LORA_A)):
        active = {n for n in initial().tensors if strategy.active(n, step)}
        assert active == {m + suffix for m in MODULES} | {"head.weight"}
    plain = [name for name, rule in STRATEGIES.items() if rule.plain_steps]
    assert set(STRATEGIES) - set(plain) == {"la-lora"}
    for name in plain:
        assert not STRATEGIES[name].smoothing
        assert all(STRATEGIES[name].active(n, 2) for n in initial().tensors)
