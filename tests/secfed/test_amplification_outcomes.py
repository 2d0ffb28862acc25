"""The noise in what every rule makes of the updates: definitions and Monte Carlo.

Changes are drawn, not trained. Monte Carlo tests have a fixed seed and tolerate five
standard errors, so that with another seed a false alarm has probability below 1e-6;
their controls must lie outside the same error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from played import BASE, IN, MODULES, OUT, SCALING, SITES, R, changes, initial
from small import make_plan, small_study

from secfed.amplification import (
    RULES,
    NoiseLevels,
    Outcome,
    closed_form,
    closed_form_mean_of_products,
    measure_outcomes,
)
from secfed.runtime.arms import Arm
from secfed.runtime.noise import SiteReplay, measure_rule, outcomes_of
from secfed.runtime.noise_levels import levels_of
from secfed.strategies import (
    STRATEGIES,
    ServerState,
    SiteView,
    check_maskable,
    trained_names,
)
from secfed.strategies.base import moved
from secfed.strategies.server_optimizer import (
    FedAdam,
    FedAvgM,
    WithServerOptimizer,
    adds_means,
)
from secfed.types import LORA_A, LORA_B, LORA_R, MERGED, Adapter

ROUND, STD = 3, 0.4
ABLE = [name for name, rule in STRATEGIES.items() if rule.needs != "singles"]
SPLIT = ["fedavg", "ffa-lora", "ffb-lora", "rolora", "fedsvd", "ffa-fresh", "la-lora"]
PERSONAL = ["fedsa-lora", "fedsa-lora-b", "local"]
WHOLE = [name for name in ABLE if name not in {*SPLIT, "head-only"}]
PARTS = ("linear_b", "linear_a", "quadratic")


def strategy_of(name):
    return check_maskable(STRATEGIES[name]).for_sites([R] * SITES)


def state_of(strategy):
    """A state with nothing at zero, as if rounds had been played."""
    state = strategy.init(initial(), 5, BASE)
    rng = np.random.default_rng(1)
    busy = {
        name: (value + 0.3 * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in state.adapter.tensors.items()
        if name.endswith((LORA_R, MERGED, LORA_A, LORA_B))
        and not (name.endswith((LORA_A, LORA_B)) and strategy.name == "fed-sb")
    }
    return ServerState(state.adapter.replaced(busy), ROUND - 1)


def noise(change, seed, std=STD):
    rng = np.random.default_rng(seed)
    return {
        n: (v + (0.0 if n.startswith("head") else std) * rng.normal(size=v.shape))
        .astype(np.float32)
        for n, v in change.items()
    }  # fmt: skip


def replays(strategy, state, seed=2, std=STD, rank=None):
    """Sites with kept tensors of their own where the rule keeps some."""
    found = []
    for site, clean in enumerate(changes(strategy, state.adapter, ROUND)):
        rng = np.random.default_rng([7, site])
        kept = {
            n: rng.normal(size=v.shape).astype(np.float32)
            for n, v in state.adapter.tensors.items()
            if strategy.keeps(n)
        }
        view = SiteView(rank, kept, ROUND)
        start = strategy.start(state.adapter, view)
        noisy = noise(clean, [seed, site], std)
        found.append(SiteReplay(view, start, noisy, clean))
    return found


def energy(matrix):
    return float(np.sum(matrix**2))


def uniform(std_a=STD, std_b=STD):
    return NoiseLevels.uniform([std_a] * SITES, [std_b] * SITES)


# ------------------------------------------------------------------ definitions


@pytest.mark.parametrize("name", SPLIT)
def test_the_whole_is_that_of_the_parts_where_there_are_parts(name):
    strategy = strategy_of(name)
    state = state_of(strategy)
    sites = replays(strategy, state)
    split = measure_rule(strategy, state, sites, uniform(), initial())
    own = [moved(site.start, site.noisy) for site in sites]
    whole = measure_outcomes(
        outcomes_of(strategy, state, sites), own, levels=uniform(), initial=initial()
    )
    assert None not in {getattr(split, part) for part in PARTS}
    # ``measure`` leaves what is folded away out of the products: its gap is zero.
    folded = any(n.endswith(MERGED) for n in state.adapter.tensors)
    same = ("measured", "signal", "ffa") + (() if folded else ("products",))
    for field in same:
        assert getattr(whole, field) == pytest.approx(getattr(split, field), rel=1e-4)
    assert whole.gap == pytest.approx(split.gap, rel=1e-4, abs=1e-8)
    assert whole.measured > 0
    assert [m for m, _ in whole.modules] == list(MODULES)


@pytest.mark.parametrize("name", WHOLE)
def test_other_rules_have_a_whole_and_no_parts(name):
    strategy = strategy_of(name)
    state = state_of(strategy)
    report = measure_rule(strategy, state, replays(strategy, state), None, initial())
    assert {getattr(report, part) for part in PARTS} == {None}
    assert report.quadratic_share is None
    assert report.closed_form is report.ffa is report.amplification is None
    assert report.measured > 0 < report.signal
    assert (report.aggregation_gap is None) == (name in PERSONAL)
    # A control, and no false noise: without noise the two replays are equal.
    silent = measure_rule(
        strategy, state, replays(strategy, state, std=0.0), uniform(0, 0), initial()
    )
    assert silent.measured == 0.0
    assert silent.signal == report.signal
    if name in RULES:
        assert silent.closed_form == 0.0
    assert report.to_json()["quadratic_share"] is None


def own_products(sites, which):
    """Every site's own product, by the definition in float64."""
    found = {module: [] for module in MODULES}
    for site in sites:
        after = {
            n: v.astype(float) + getattr(site, which).get(n, 0.0)
            for n, v in site.start.tensors.items()
        }
        for module in MODULES:
            core = after.get(module + LORA_R, np.eye(R))
            product = after[module + LORA_B] @ core @ after[module + LORA_A]
            merged = after.get(module + MERGED, 0.0)
            found[module].append(SCALING * product + merged)
    return found


def cut(matrix):
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :R] * s[:R]) @ vt[:R]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("flexlora", cut),
        ("flexlora-sketch", cut),
        ("fedex-lora", np.asarray),
        ("fed-sb", np.asarray),
    ],
)
def test_rules_on_products_by_their_definition(name, made):
    strategy = strategy_of(name)
    state = state_of(strategy)
    if name == "fedex-lora":  # What is folded in is the same at all sites.
        state = replace(state, adapter=strategy.init(initial(), 5).adapter)
    sites = replays(strategy, state)
    report = measure_rule(strategy, state, sites, None, initial())
    noisy, clean = own_products(sites, "noisy"), own_products(sites, "clean")
    measured = signal = gap = 0.0
    for module in MODULES:
        mean = np.mean(noisy[module], axis=0)
        after, twin = made(mean), made(np.mean(clean[module], axis=0))
        measured += energy(after - twin)
        signal += energy(twin - state.adapter.delta(module))
        gap += energy(after - mean)
    assert report.measured == pytest.approx(measured, rel=1e-4)
    assert report.signal == pytest.approx(signal, rel=1e-4)
    assert report.gap == pytest.approx(gap, rel=1e-3, abs=1e-8)
    assert (report.aggregation_gap > 1e-3) == (made is cut)


@pytest.mark.parametrize("name", PERSONAL)
def test_personal_models_by_their_definition(name):
    strategy = strategy_of(name)
    state = state_of(strategy)
    sites = replays(strategy, state)
    report = measure_rule(strategy, state, sites, None, initial())

    def models(which):
        own = [moved(site.start, getattr(site, which)).tensors for site in sites]
        for tensors in own:
            yield np.stack(
                [
                    SCALING
                    * factor(own, tensors, module + LORA_B)
                    @ factor(own, tensors, module + LORA_A)
                    for module in MODULES
                ]
            )

    def factor(own, tensors, tensor):
        if strategy.keeps(tensor):
            return tensors[tensor].astype(float)
        return np.mean([one[tensor].astype(float) for one in own], axis=0)

    noisy, clean = list(models("noisy")), list(models("clean"))
    started = [
        np.stack([site.start.delta(module) for module in MODULES]) for site in sites
    ]
    measured = [energy(x - y) for x, y in zip(noisy, clean, strict=True)]
    signal = [energy(x - y) for x, y in zip(clean, started, strict=True)]
    assert report.measured == pytest.approx(np.mean(measured), rel=1e-4)
    assert report.signal == pytest.approx(np.mean(signal), rel=1e-4)


def test_hetlora_weighs_the_clean_updates_by_clean_products():
    # Control: with the noisy weights on both sides another energy comes out.
    strategy = strategy_of("hetlora")
    state = state_of(strategy)
    sites = replays(strategy, state)
    report = measure_rule(strategy, state, sites, None, initial())
    own = own_products(sites, "noisy"), own_products(sites, "clean")
    weights = [
        np.array([np.hypot(*(np.linalg.norm(one[m][i]) for m in MODULES)) for i in
                  range(SITES)])
        for one in own
    ]  # fmt: skip

    def aggregate(which, weight):
        total = []
        for module in MODULES:
            pair = []
            for end in (LORA_B, LORA_A):
                parts = [
                    getattr(site, which)[module + end].astype(float) for site in sites
                ]
                mean = np.average(parts, axis=0, weights=weight)
                pair.append(state.adapter.tensors[module + end] + mean)
            total.append(SCALING * pair[0] @ pair[1])
        return np.stack(total)

    noisy = aggregate("noisy", weights[0])
    clean, wrong = (aggregate("clean", weight) for weight in weights[::-1])
    # The pull of self-pruning moves the last rank by a thousandth.
    assert report.measured == pytest.approx(energy(noisy - clean), rel=0.01)
    assert abs(energy(noisy - wrong) / report.measured - 1) > 0.02


def test_moments_are_those_before_the_round_in_both_replays():
    state = state_of(strategy_of("ffa-lora"))
    sites = replays(strategy_of("ffa-lora"), state)
    plain = measure_rule(strategy_of("ffa-lora"), state, sites, uniform(), initial())
    strategy = WithServerOptimizer(strategy_of("ffa-lora"), FedAvgM(2.0))
    before = replace(
        state,
        memory={
            name + ".momentum": np.ones_like(state.adapter.tensors[name])
            for name in strategy.shapes(state.adapter, ROUND)
        },
    )
    report = measure_rule(strategy, before, sites, uniform(), initial())
    # The moment is in both, so the step size alone is left: twice the change.
    assert report.measured == pytest.approx(4 * plain.measured, rel=1e-4)
    assert report.signal != pytest.approx(4 * plain.signal, rel=0.1)
    assert report.closed_form is None
    assert report.ffa == plain.ffa


@pytest.mark.parametrize(
    "name", [n for n in ABLE if adds_means(STRATEGIES[n]) and n != "head-only"]
)
def test_an_optimizer_at_the_coordinator_is_in_the_energy(name):
    rule = strategy_of(name)
    state = state_of(rule)
    sites = replays(rule, state)
    plain = measure_rule(rule, state, sites, None, initial())
    adam = WithServerOptimizer(rule, FedAdam(1e-3))
    small = measure_rule(adam, state, sites, None, initial())
    # What stays at a site keeps its noise, whatever the coordinator does.
    assert 0 < small.measured < (0.8 if rule.personal else 0.1) * plain.measured


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("name", [*PERSONAL, "fed-sb", "fedex-lora"])
def test_closed_forms_by_monte_carlo(name):
    strategy = strategy_of(name)
    state = state_of(strategy)
    levels = NoiseLevels.uniform([STD] * SITES, [STD] * SITES)
    first = replays(strategy, state)
    expected = measure_rule(strategy, state, first, levels, initial()).closed_form
    samples = []
    for seed in range(400):
        sites = [
            replace(site, noisy=noise(site.clean, [9, seed, place]))
            for place, site in enumerate(first)
        ]
        report = measure_rule(strategy, state, sites, levels, initial())
        # Around the clean factors: the same for every draw.
        assert report.closed_form == pytest.approx(expected, rel=1e-9)
        samples.append(report.measured)
    error = 5 * np.std(samples) / np.sqrt(len(samples))
    assert error < 0.1 * expected
    assert abs(np.mean(samples) - expected) < error
    # Control: as if the factors of all sites had been averaged.
    found = outcomes_of(strategy, state, first)
    names = trained_names(strategy, state.adapter, ROUND)
    wrong = np.mean([closed_form(one.clean, names, levels) for one in found])
    assert abs(np.mean(samples) - wrong) > error


def test_a_mean_of_products_counts_the_ranks_that_are_trained():
    strategy = strategy_of("flexlora")
    state = state_of(strategy)
    sites = replays(strategy, state, rank=2)
    report = measure_rule(strategy, state, sites, uniform(), initial())
    thin = []
    for site in sites:
        own = moved(site.start, site.clean).tensors
        thin.append(
            Adapter(
                {
                    n: v[:2] if n.endswith(LORA_A) else v[:, :2]
                    for n, v in own.items()
                    if not n.startswith("head")
                },
                SCALING,
            )
        )
    expected = closed_form_mean_of_products(thin, list(thin[0].tensors), uniform())
    assert report.closed_form == pytest.approx(expected)


def test_outcomes_must_be_there_and_finite():
    with pytest.raises(ValueError, match="no model"):
        measure_outcomes([], None)
    bad = initial().replaced(
        {MODULES[0] + LORA_B: np.full((OUT, R), np.inf, np.float32)}
    )
    with (
        pytest.raises(ValueError, match="not finite"),
        np.errstate(invalid="ignore", over="ignore"),
    ):
        measure_outcomes([Outcome(initial(), bad, initial())], None)


# ------------------------------------------------------- the noise of local steps


def levels_in_round(number, steps, method="la-lora", **training):
    study = small_study(method="fedavg", seed=1)
    values = {
        "method": method,
        "steps_per_round": steps,
        "learning_rate": {method: 0.7},
        **training,
    }
    changed = study.training.model_copy(update=values)
    study = study.model_copy(update={"training": changed})
    plans = [make_plan(80, 16, steps_per_round=steps)] * SITES
    return levels_of(Arm(method, study), strategy_of(method), plans, initial(), number)


def test_a_filtered_factor_has_the_noise_of_its_own_steps():
    strategy = strategy_of("la-lora")
    one = 0.7 * 1.0 * 1.0 / 16  # eta sigma C / b
    left = sum(weight**2 for weight in strategy.smoothing)
    assert left == pytest.approx(70 / 256)
    # Three steps: B, A, B in the first round and A, B, A in the second.
    for number, (steps_a, steps_b) in {1: (1, 2), 2: (2, 1), 3: (1, 2)}.items():
        found = levels_in_round(number, 3, momentum=0.0)
        assert found.std_a == pytest.approx([one * np.sqrt(left * steps_a)] * SITES)
        assert found.std_b == pytest.approx([one * np.sqrt(left * steps_b)] * SITES)
    assert levels_in_round(1, 3, optimizer="adam") is None
    plain = levels_in_round(1, 3, method="fed-sb", momentum=0.0)
    assert (set(plain.std_a), plain.std_b[0]) == ({0.0}, pytest.approx(0.0))


def test_filtered_noise_by_monte_carlo():
    # The numbers along the filter depend on each other; the energies need not care.
    weights = strategy_of("la-lora").smoothing
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(R, IN)), rng.normal(size=(OUT, R))
    draws = 20_000

    def filtered(shape, axis):
        drawn = rng.normal(size=(draws, *shape))
        return sum(
            w * np.roll(drawn, place - 2, axis) for place, w in enumerate(weights)
        )

    x_b, x_a = STD * filtered((OUT, R), 1), STD * filtered((R, IN), 2)
    changed = (b + x_b) @ (a + x_a) - b @ a
    samples = np.sum(changed**2, axis=(1, 2))
    std = STD * np.sqrt(sum(w**2 for w in weights))
    adapter = Adapter(
        {"m.lora_A": a.astype(np.float32), "m.lora_B": b.astype(np.float32)}, 1.0
    )
    levels = NoiseLevels((std,), (std,), (1.0,))
    error = 5 * samples.std() / np.sqrt(draws)
    expected = closed_form(adapter, tuple(adapter.tensors), levels)
    assert error < 0.02 * expected
    assert abs(samples.mean() - expected) < error
    plain = NoiseLevels((STD,), (STD,), (1.0,))
    wrong = closed_form(adapter, tuple(adapter.tensors), plain)
    assert abs(samples.mean() - wrong) > error
