"""Rules that send products, against slow dense references and through the ring."""

from __future__ import annotations

import numpy as np
import pytest
from masked import (
    IN,
    MODULES,
    OUT,
    R,
    best_of_rank,
    busy,
    codec_of,
    initial,
    masked_mean,
    mean_of,
    mean_product,
    play,
    product,
    train,
)

from secfed.errors import MatrixError, RoundAbortedError, StudyError
from secfed.strategies import STRATEGIES, get_strategy
from secfed.strategies.flexlora_sketch import LEFT, RIGHT, FlexLoraSketch
from secfed.strategies.lora_fair import LoraFair
from secfed.strategies.products import PRODUCT
from secfed.types import LORA_A, LORA_B, MERGED

PRODUCTS = ("flexlora", "flexlora-sketch", "fedex-lora", "lora-fair")
CUTTING = ("flexlora", "flexlora-sketch")
SAME = (None, None, None)
UNEQUAL = (None, 1, 3)
FLOAT32 = 2.0**-24


def rule(name, ranks=SAME):
    return get_strategy(name).for_sites([R if rank is None else rank for rank in ranks])


def started(strategy, seed=1):
    return busy(strategy.init(initial(), 0), seed)


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


# What all of them share


@pytest.mark.parametrize("name", PRODUCTS)
def test_training_starts_from_the_base_model(name):
    state = rule(name).init(initial(), 0)
    assert not any(state.adapter.delta(module).any() for module in MODULES)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_shapes_are_those_of_the_payload_in_every_round(name):
    strategy = rule(name)
    state, seen = strategy.init(initial(), 0), []
    for number in (1, 2, 3):
        sent = train(strategy, state, SAME, seed=number)
        shapes = dict(strategy.shapes(state.adapter, number))
        for one in sent:
            assert {n: v.shape for n, v in one.payload.items()} == shapes
            assert all(v.dtype == np.float32 for v in one.payload.values())
        seen.append(list(shapes.items()))
        state = play(strategy, state, sent)
        assert state.round == number
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_product_enters_the_ring_as_an_update_within_the_codecs_error(name):
    strategy = rule(name)
    state = started(strategy)
    sent = train(strategy, state, SAME)
    mean = masked_mean(strategy, state, sent)
    bound = codec_of(strategy, state, len(sent)).error_bound
    for module in MODULES if name != "flexlora-sketch" else ():
        change = mean_product(sent, module) - product(state.adapter, module)
        error = np.abs(mean[module + PRODUCT] - change).max()
        # The payload itself is float32.
        assert error <= bound + FLOAT32 * np.abs(change).max() * len(sent)
    head = np.mean([one.payload["head.bias"] for one in sent], axis=0)
    assert np.abs(mean["head.bias"] - head).max() <= bound + FLOAT32


@pytest.mark.parametrize("name", PRODUCTS)
def test_permuting_the_sites_changes_no_bit(name):
    strategy = rule(name)
    state = started(strategy)
    sent = train(strategy, state, SAME)

    def result(order):
        after = play(strategy, state, [sent[i] for i in order]).adapter.tensors
        return {n: v.tobytes() for n, v in after.items()}

    assert result([0, 1, 2]) == result([2, 0, 1]) == result([1, 0, 2])
    assert result([0, 1, 2]) != result([0, 0, 2])


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_mean_of_another_round_is_refused(name):
    strategy = rule(name)
    state = started(strategy)
    mean = masked_mean(strategy, state, train(strategy, state, SAME))
    done = strategy.apply(state, mean, 1)
    with pytest.raises(ValueError, match="round 1 after round 1"):
        strategy.apply(done, mean, 1)
    last = next(iter(mean))
    with pytest.raises(ValueError, match="sends"):
        strategy.apply(state, {n: v for n, v in mean.items() if n != last}, 1)
    with pytest.raises(RoundAbortedError, match="not finite"):
        strategy.apply(state, mean | {last: np.full_like(mean[last], np.inf)}, 1)


# flexlora, dense and by sketches


@pytest.mark.parametrize("ranks", [SAME, UNEQUAL])
@pytest.mark.parametrize(
    ("name", "tolerance"), [("flexlora", 1e-6), ("flexlora-sketch", 1e-5)]
)
def test_flexlora_is_the_mean_of_products_cut_to_the_rank(name, tolerance, ranks):
    strategy = rule(name, ranks)
    state = started(strategy)
    for number in (1, 2):
        sent = train(strategy, state, ranks, seed=number)
        after = play(strategy, state, sent)
        for module in MODULES:
            wanted = best_of_rank(mean_product(sent, module), R)
            assert relative(product(after.adapter, module), wanted) < tolerance
            a = after.adapter.tensors[module + LORA_A].astype(float)
            assert np.allclose(a @ a.T, np.eye(R), atol=1e-5)
        head = mean_of(sent, "head.bias")
        assert np.allclose(after.adapter.tensors["head.bias"], head, atol=1e-6)
        state = after


@pytest.mark.parametrize("name", CUTTING)
def test_a_smaller_site_starts_from_the_best_approximation_of_its_rank(name):
    strategy = rule(name, UNEQUAL)
    state = play(strategy, started(strategy), train(strategy, started(strategy), SAME))
    for rank, one in zip(
        UNEQUAL, train(strategy, state, UNEQUAL, scale=0), strict=True
    ):
        for module in MODULES:
            whole = product(state.adapter, module)
            wanted = best_of_rank(whole, R if rank is None else rank)
            assert relative(product(one.own, module), wanted) < 1e-5
            assert not one.own.tensors[module + LORA_A][rank or R :].any()
            assert not one.own.tensors[module + LORA_B][:, rank or R :].any()


@pytest.mark.parametrize("name", CUTTING)
def test_one_site_without_noise_gets_its_own_product_back(name):
    strategy = rule(name, (None,))
    state = started(strategy)
    (site,) = train(strategy, state, (None,))
    after = play(strategy, state, [site])
    for module in MODULES:
        own = product(site.own, module)
        assert relative(product(after.adapter, module), own) < 1e-5


def test_a_product_that_vanished_can_be_learned_again():
    strategy = rule("flexlora")
    state = strategy.init(initial(), 0)
    after = play(strategy, state, train(strategy, state, SAME, scale=0))
    for module in MODULES:
        assert not product(after.adapter, module).any()
        assert (
            np.linalg.norm(after.adapter.tensors[module + LORA_A], axis=1).min() > 0.9
        )


def test_sketches_have_fewer_numbers_and_a_seed_for_every_adapter():
    sketched, dense = rule("flexlora-sketch", UNEQUAL), rule("flexlora", UNEQUAL)
    state = started(sketched)
    shapes = sketched.shapes(state.adapter, 1)
    # Ranks add up to 4 + 1 + 3; 8 more columns, and 8 more rows.
    assert shapes[MODULES[0] + RIGHT] == (OUT, 16)
    assert shapes[MODULES[0] + LEFT] == (24, IN)
    assert sum(np.prod(s) for s in shapes.values()) < sum(
        np.prod(s) for s in dense.shapes(state.adapter, 1).values()
    )
    assert sketched.remarks(state.adapter) == ()
    first = train(sketched, state, UNEQUAL)[0].payload
    assert first[MODULES[0] + RIGHT].tobytes() == (
        train(sketched, state, UNEQUAL)[0].payload[MODULES[0] + RIGHT].tobytes()
    )
    public = sketched._public(state.adapter)[MODULES[0]].omega
    again = sketched._public(started(sketched).adapter)[MODULES[0]].omega
    other = sketched._public(started(sketched, seed=2).adapter)[MODULES[0]].omega
    assert np.array_equal(public, again)
    assert not np.allclose(public, other)


def test_where_sketches_are_larger_the_dense_product_is_sent_and_said():
    ranks = (R,) * 6
    sketched, dense = rule("flexlora-sketch", ranks), rule("flexlora", ranks)
    state = started(sketched)
    assert sketched.shapes(state.adapter, 1) == dense.shapes(state.adapter, 1)
    (sentence,) = sketched.remarks(state.adapter)
    assert "24" in sentence
    assert "2 of 2 modules" in sentence
    sent = train(sketched, state, (None,) * 6)
    first, second = (play(s, state, sent).adapter.tensors for s in (sketched, dense))
    assert all(first[n].tobytes() == second[n].tobytes() for n in second)


def test_wrong_widths_are_refused_before_training():
    for columns, word in [(11, "cannot hold"), (61, "choose 1 to 60")]:
        with pytest.raises(MatrixError, match=word):
            FlexLoraSketch(ranks=(R, R, R), columns=columns).init(initial(), 0)
    FlexLoraSketch(ranks=(R, R, R), columns=12).init(initial(), 0)
    with pytest.raises(StudyError, match="ranks of all sites"):
        FlexLoraSketch().init(initial(), 0)
    with pytest.raises(MatrixError, match="choose 1 to 60"):
        FlexLoraSketch().for_sites([R, 61]).init(initial(), 0)


def test_sketches_as_wide_as_the_ranks_hold_the_sum_over_a_received_product():
    # The sum of changes has rank 16, that of the products 12.
    strategy = FlexLoraSketch(ranks=(R, R, R), columns=12)
    state = started(strategy)
    sent = train(strategy, state, SAME)
    after = play(strategy, state, sent)
    for module in MODULES:
        wanted = best_of_rank(mean_product(sent, module), R)
        assert relative(product(after.adapter, module), wanted) < 1e-3


def test_a_sum_of_a_higher_rank_than_the_sketches_hold_is_not_published():
    # Told of one site of rank 1, so 9 columns; the sum has rank 12.
    strategy = FlexLoraSketch(ranks=(1,))
    state = started(strategy)
    sent = train(strategy, state, SAME)
    with pytest.raises(RoundAbortedError, match="estimated error"):
        play(strategy, state, sent)


# fedex-lora


def test_fedex_is_the_mean_of_the_sites_changes_over_rounds():
    strategy = rule("fedex-lora")
    state = started(strategy)
    assert strategy.exact
    for number in (1, 2, 3):
        sent = train(strategy, state, SAME, seed=number)
        wanted = [
            np.mean([one.own.delta(module) for one in sent], axis=0)
            for module in MODULES
        ]
        averaged = [
            mean_of(sent, m + LORA_B) @ mean_of(sent, m + LORA_A) for m in MODULES
        ]
        state = play(strategy, state, sent)
        for module, whole, biased in zip(MODULES, wanted, averaged, strict=True):
            assert relative(state.adapter.delta(module), whole) < 1e-6
            assert relative(product(state.adapter, module), biased) < 1e-6
            # Not a rule that is exact by accident: the folded part is large.
            folded = state.adapter.tensors[module + MERGED]
            assert np.linalg.norm(folded) > 0.01 * np.linalg.norm(whole)


def test_fedex_of_one_site_folds_nothing_in():
    strategy = rule("fedex-lora", (None,))
    state = started(strategy)
    (site,) = train(strategy, state, (None,))
    after = play(strategy, state, [site])
    for module in MODULES:
        whole = site.own.delta(module)
        assert relative(after.adapter.delta(module), whole) < 1e-6
        assert np.abs(after.adapter.tensors[module + MERGED]).max() < 1e-6


def test_what_is_folded_in_is_never_trained_or_sent():
    strategy = rule("fedex-lora")
    state = strategy.init(initial(), 0)
    for module in MODULES:
        assert state.adapter.tensors[module + MERGED].shape == (OUT, IN)
        assert not strategy.trains(module + MERGED, 1)
        assert module + MERGED not in strategy.shapes(state.adapter, 1)


# lora-fair


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0])
def test_lora_fair_solves_the_ridge_problem(penalty):
    strategy = LoraFair(penalty=penalty)
    state = started(strategy)
    sent = train(strategy, state, SAME)
    after = play(strategy, state, sent)
    for module in MODULES:
        a, b = mean_of(sent, module + LORA_A), mean_of(sent, module + LORA_B)
        target = mean_product(sent, module) - b @ a
        wanted = b + target @ a.T @ np.linalg.inv(a @ a.T + penalty * np.eye(R))
        assert relative(after.adapter.tensors[module + LORA_A], a) < 1e-6
        assert relative(after.adapter.tensors[module + LORA_B], wanted) < 1e-5


def test_lora_fair_is_nearer_to_the_mean_of_products_than_the_means():
    strategy = rule("lora-fair")
    state = started(strategy)
    sent = train(strategy, state, SAME)
    after = play(strategy, state, sent)
    for module in MODULES:
        ideal = mean_product(sent, module)
        averaged = mean_of(sent, module + LORA_B) @ mean_of(sent, module + LORA_A)
        corrected = relative(product(after.adapter, module), ideal)
        assert 0.01 < corrected < relative(averaged, ideal)
    assert not strategy.exact


def test_lora_fair_of_one_site_corrects_nothing():
    strategy = rule("lora-fair", (None,))
    state = started(strategy)
    (site,) = train(strategy, state, (None,))
    after = play(strategy, state, [site]).adapter.tensors
    for name, value in site.own.tensors.items():
        assert np.allclose(after[name], value, atol=1e-6)


def test_only_the_rules_that_can_do_it_take_unequal_ranks():
    able = {name for name, found in STRATEGIES.items() if found.unequal_ranks}
    # The head alone has no rank.
    assert able == {"flexlora", "flexlora-sketch", "hetlora", "head-only"}
