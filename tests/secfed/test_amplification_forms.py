"""Closed forms from norms and shapes, for one round and for many, by Monte Carlo.

Every estimate has a fixed seed and states its error: five standard deviations of
the mean, at most 1.5 % of the expectation (2 % where a test says so), so that with
another seed a false alarm has probability below 1e-6. Every form has a control: what
one gets by leaving a factor out must lie outside the same error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secfed.amplification import (
    NO_CLOSED_FORM,
    RULES,
    Energy,
    Factors,
    NoiseLevels,
    RoundNoise,
    Setting,
    closed_form,
    closed_form_mean_of_products,
    expected_each_round,
    expected_in_all,
)
from secfed.amplification.forms import (
    accumulated,
    each_round,
    in_function_space,
    kept_by_truncation,
    of_core,
    of_isometry,
    one_round,
    truncation_bound,
)
from secfed.strategies import STRATEGIES
from secfed.types import Adapter

D, K, R, ROUNDS = 9, 7, 3, 4
SIGMAS = (0.5, 1.0, 1.5)
SITES = len(SIGMAS)
DRAWS = 40_000
SETTING = Setting(
    shapes=((D, K),),
    rank=R,
    lora_alpha=6.0,
    noise_multipliers=SIGMAS,
    clip_norm=0.8,
    expected_batch=4.0,
    steps=3,
    rounds=ROUNDS,
    learning_rate=0.7,
    norm_b2=0.6,
)


def error_of(samples):
    """Five standard deviations of the mean."""
    return 5 * samples.std() / np.sqrt(len(samples))


def check_mean(samples, expected, relative=0.015):
    assert error_of(samples) < relative * expected, "too few draws for this tolerance"
    assert abs(samples.mean() - expected) <= error_of(samples)


def check_control(samples, wrong):
    assert abs(samples.mean() - wrong) > error_of(samples)


def energy(matrices):
    return np.sum(matrices**2, axis=(-2, -1))


def with_norm2(rng, shape, norm2):
    matrix = rng.normal(size=shape)
    return matrix * np.sqrt(norm2 / np.sum(matrix**2))


def filtered(noise, axis):
    """Along the inputs of A or the outputs of B, closed to a ring."""
    weights = enumerate(STRATEGIES["la-lora"].smoothing, start=-2)
    return sum(weight * np.roll(noise, place, axis) for place, weight in weights)


# ------------------------------------------------- every rule, over several rounds


class Simulation:
    """A rule's noise without gradients, by definition: dense, one step at a time."""

    def __init__(self, name, setting=SETTING, draws=DRAWS):
        self.rng = np.random.default_rng(31)
        self.rule, self.setting, self.draws = RULES[name], setting, draws
        norm2 = {"peft": R / 3, "orthonormal": R}[setting.initial]
        self.norm2 = norm2
        first, second = with_norm2(self.rng, (R, K), norm2), setting.norm_b2
        b = with_norm2(self.rng, (D, R), second)
        if self.rule.trains == "a":
            first, b = np.zeros((R, K)), with_norm2(self.rng, (D, R), norm2)
        self.a = np.broadcast_to(first, (draws, SITES, R, K)).copy()
        self.b = np.broadcast_to(b, (draws, SITES, D, R)).copy()

    def site_noise(self, shape, steps):
        s = self.setting
        if not steps:
            return np.zeros((self.draws, SITES, *shape))
        # The sum of the steps, each eta * sigma * C / b.
        one = s.learning_rate * s.clip_norm / s.expected_batch
        stds = one * np.sqrt(steps) * np.reshape(SIGMAS, (SITES, 1, 1))
        return stds * self.rng.standard_normal((self.draws, SITES, *shape))

    def changes(self):
        """Per round: the change of every model (draws, models, D, K)."""
        for number in range(1, (ROUNDS if self.rule.accumulates else 1) + 1):
            yield self.setting.scaling * self.one(number)

    def one(self, number):
        steps = self.setting.steps
        if self.rule.trains == "core":
            u = np.linalg.qr(self.rng.normal(size=(D, R)))[0]
            v = np.linalg.qr(self.rng.normal(size=(K, R)))[0].T
            return u @ self.site_noise((R, R), steps).mean(1, keepdims=True) @ v
        alternate = {"both": (steps, steps), "b": (0, steps), "a": (steps, 0)}
        alternate["steps"] = (1, 2) if number in {1, 3} else (2, 1)
        alternate["rounds"] = (0, steps) if number in {1, 3} else (steps, 0)
        noisy_a, noisy_b = alternate[self.rule.trains]
        x_a, x_b = self.site_noise((R, K), noisy_a), self.site_noise((D, R), noisy_b)
        if self.rule.name == "la-lora":
            x_a, x_b = filtered(x_a, axis=-1), filtered(x_b, axis=-2)
        a, b = self.a, self.b
        site_products = (b + x_b) @ (a + x_a) - b @ a
        combines = self.rule.combines
        if combines not in {"keeps-a", "nothing"}:
            x_a = np.broadcast_to(x_a.mean(1, keepdims=True), a.shape)
        if combines not in {"keeps-b", "nothing"}:
            x_b = np.broadcast_to(x_b.mean(1, keepdims=True), b.shape)
        change = (b + x_b) @ (a + x_a) - b @ a
        if combines == "products":
            change = np.broadcast_to(site_products.mean(1, keepdims=True), change.shape)
        self.a, self.b = a + x_a, b + x_b
        if self.rule.name == "fedsvd":
            left, values, right = np.linalg.svd(
                (self.b @ self.a)[:, 0], full_matrices=False
            )
            self.b = (left[..., :R] * values[:, None, :R])[:, None]
            self.a = right[:, None, :R]
        if self.rule.name == "ffa-fresh":
            self.b = np.zeros_like(b)
            self.a = np.broadcast_to(with_norm2(self.rng, (R, K), self.norm2), a.shape)
        return change


@pytest.mark.parametrize("name", RULES)
def test_every_rule_over_rounds_by_monte_carlo(name):
    simulation = Simulation(name)
    whole, by_round = 0.0, []
    for change in simulation.changes():
        by_round.append(energy(change).mean(axis=1))
        whole = whole + change
    expected = expected_each_round(RULES[name], SETTING)
    assert len(expected) == len(by_round)
    for samples, one in zip(by_round, expected, strict=True):
        check_mean(samples, one.total)
    samples = energy(whole).mean(axis=1)
    (module,) = expected_in_all(RULES[name], SETTING)
    check_mean(samples, module.total)
    # The parts of the rounds differ, their sum does not.
    assert sum(one.total for one in expected) == pytest.approx(module.total)
    # Control: the noise of the sites added up without the weights of the mean.
    if RULES[name].combines != "nothing":
        noise_of_sum = replace(SETTING, lora_alpha=SETTING.lora_alpha * SITES**0.5)
        (wrong,) = expected_in_all(RULES[name], noise_of_sum)
        check_control(samples, wrong.total)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("fedex-lora", "fedavg"),  # the quadratic term once over K too few
        ("flexlora", "fedavg"),
        ("fedsa-lora", "fedavg"),  # what stays at the site is not averaged
        ("fedsa-lora-b", "fedsa-lora"),
        ("local", "fedavg"),
        ("fedsvd", "ffa-lora"),  # A with orthonormal rows is longer
        ("la-lora", "fedavg"),
        ("rolora", "la-lora"),
    ],
)
def test_rules_are_told_apart_by_monte_carlo(name, other):
    simulation = Simulation(name, draws=20_000)
    samples = energy(sum(simulation.changes())).mean(axis=1)
    rounds = ROUNDS if RULES[name].accumulates else 1
    (wrong,) = expected_in_all(RULES[other], replace(SETTING, rounds=rounds))
    check_control(samples, wrong.total)


def test_alternation_keeps_the_product_of_noises_of_different_rounds():
    start = replace(SETTING, norm_b2=0.0)
    simulation = Simulation("rolora", start)
    samples = energy(sum(simulation.changes())).mean(axis=1)
    (whole,) = expected_in_all(RULES["rolora"], start)
    check_mean(samples, whole.total)
    # Control: "alternation has no quadratic term".
    check_control(samples, whole.linear_b + whole.linear_a)
    assert all(
        one.quadratic == 0 for one in expected_each_round(RULES["rolora"], start)
    )
    # T_A T_B a b d k r, with two rounds of each factor.
    variance = sum(start.noise_std(s, 3) ** 2 for s in SIGMAS) / SITES**2
    assert whole.quadratic == pytest.approx(
        start.scaling**2 * 2 * 2 * variance**2 * D * K * R
    )


def test_accumulation_is_linear_in_rounds_except_the_product():
    (one,) = expected_in_all(RULES["fedavg"], replace(SETTING, rounds=1))
    (five,) = expected_in_all(RULES["fedavg"], replace(SETTING, rounds=5))
    assert five.linear_b == pytest.approx(5 * one.linear_b)
    assert five.linear_a == pytest.approx(5 * one.linear_a)
    assert five.quadratic == pytest.approx(25 * one.quadratic)
    # Steps within a round do the same: s**2 = T (eta sigma C / b)**2.
    (steps,) = expected_in_all(RULES["fedavg"], replace(SETTING, rounds=1, steps=15))
    assert steps.total == pytest.approx(five.total)


def test_a_site_that_dropped_out_carries_no_weight():
    everybody = [(True, True, True), (True, False, True), (False, False, False)]
    found = expected_each_round(
        RULES["ffa-lora"], replace(SETTING, rounds=3), everybody
    )
    stds = [SETTING.noise_std(sigma, 3) for sigma in SIGMAS]
    energies = [
        SETTING.scaling**2 * D * R / 3 * sum(std**2 for std in alive) / len(alive) ** 2
        for alive in (stds, [stds[0], stds[2]])
    ]
    assert [one.total for one in found] == pytest.approx([*energies, 0.0])


# -------------------------------------------------------------- one form at a time


def test_the_mean_of_products_has_k_times_the_quadratic_noise_of_fedavg():
    levels = NoiseLevels.uniform([0.3] * 5, [0.2] * 5)
    means, products = RoundNoise.of_means(levels), RoundNoise.of_products(levels)
    assert (products.a, products.b) == (means.a, means.b)
    assert products.ab == pytest.approx(5 * means.ab)


@pytest.mark.parametrize("weights", [(0.25,) * 4, (0.1, 0.2, 0.3, 0.4)])
def test_forms_from_norms_are_the_forms_around_an_adapter(weights):
    rng = np.random.default_rng(1)
    tensors = {"m.lora_A": rng.normal(size=(R, K)), "m.lora_B": rng.normal(size=(D, R))}
    adapter = Adapter({n: v.astype(np.float32) for n, v in tensors.items()}, 2.0)
    levels = NoiseLevels((0.1, 0.8, 0.3, 0.5), (0.9, 0.2, 0.4, 0.1), weights)
    factors = Factors(
        D,
        K,
        R,
        float(np.sum(adapter.tensors["m.lora_A"].astype(float) ** 2)),
        float(np.sum(adapter.tensors["m.lora_B"].astype(float) ** 2)),
    )
    names = tuple(tensors)
    for noise, expected in (
        (RoundNoise.of_means(levels), closed_form(adapter, names, levels)),
        (
            RoundNoise.of_products(levels),
            closed_form_mean_of_products([adapter] * 4, names, levels),
        ),
    ):
        assert one_round(factors, noise).times(4.0).total == pytest.approx(expected)


def test_a_core_between_frozen_factors_by_monte_carlo():
    rng = np.random.default_rng(2)
    u, v = rng.normal(size=(D, R)), rng.normal(size=(R, K))
    x = 0.3 * rng.normal(size=(DRAWS, R, R))
    samples = energy(u @ x @ v)
    norm_u2, norm_v2 = np.sum(u**2), np.sum(v**2)
    check_mean(samples, of_core(0.09, norm_u2, norm_v2).total, 0.02)
    # Controls: the energy of the product, and that of orthonormal factors.
    check_control(samples, 0.09 * np.sum((u @ v) ** 2))
    check_control(samples, 0.09 * R**2)


def test_an_isometric_parametrisation_by_monte_carlo():
    rng = np.random.default_rng(3)
    numbers = 13
    # Thirteen orthonormal directions in the space of matrices.
    directions = np.linalg.qr(rng.normal(size=(D * K, numbers)))[0]
    x = 0.4 * rng.normal(size=(20_000, numbers))
    samples = np.sum((x @ directions.T) ** 2, axis=1)
    check_mean(samples, of_isometry(0.16, numbers), 0.02)
    check_control(samples, of_isometry(0.16, D * K))
    # B alone between orthonormal rows of A, and a core between orthonormal factors.
    factors = Factors(D, K, R, norm_a2=R, norm_b2=0.0)
    assert one_round(factors, RoundNoise(0, 0.16, 0)).total == pytest.approx(
        of_isometry(0.16, D * R)
    )
    assert of_core(0.16, R, R).total == pytest.approx(of_isometry(0.16, R * R))


def test_function_space_by_monte_carlo():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(R, K)), rng.normal(size=(D, R))
    x = rng.normal(size=K)
    x_a = 0.3 * rng.normal(size=(DRAWS, R, K))
    x_b = 0.5 * rng.normal(size=(DRAWS, D, R))
    samples = np.sum((((b + x_b) @ (a + x_a)) @ x - b @ a @ x) ** 2, axis=1)
    noise = RoundNoise(0.09, 0.25, 0.09 * 0.25)
    factors = Factors(D, K, R, norm_a2=0.0, norm_b2=float(np.sum(b**2)))
    found = in_function_space(factors, noise, np.sum(x**2), np.sum((a @ x) ** 2))
    check_mean(samples, found.total, 0.02)
    check_control(samples, found.linear_b + found.linear_a)


def truncated(matrices, rank):
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]


def test_truncation_stays_below_its_bound():
    rng = np.random.default_rng(5)
    for scale in (0.01, 0.3, 3.0):
        for rank in (R, K):  # of the clean matrix: with and without a tail
            clean = rng.normal(size=(D, rank)) @ rng.normal(size=(rank, K))
            noise = scale * rng.normal(size=(500, D, K))
            moved = energy(truncated(clean + noise, R) - truncated(clean, R))
            tail = float(energy(clean - truncated(clean, R)))
            assert moved.mean() <= truncation_bound(energy(noise).mean(), tail)
            each = [truncation_bound(one, tail) for one in energy(noise)]
            assert np.all(moved <= each)


def test_truncation_can_double_the_noise():
    # Control for the factor four: noise just above the signal turns the subspace, so
    # "truncation only removes noise" is false.
    clean, noise = np.zeros((2, 2)), np.zeros((2, 2))
    clean[0, 0], noise[1, 1] = 1.0, 1.01
    moved = float(energy(truncated(clean + noise, 1) - clean))
    assert moved == pytest.approx(1 + 1.01**2)
    assert energy(noise) < moved <= truncation_bound(float(energy(noise)))


def test_truncation_far_below_the_signal_keeps_the_tangent_space():
    rng = np.random.default_rng(6)
    clean = rng.normal(size=(D, R)) @ rng.normal(size=(R, K))
    noise = 1e-4 * rng.normal(size=(20_000, D, K))
    share = energy(truncated(clean + noise, R) - clean) / (1e-8 * D * K)
    check_mean(share, kept_by_truncation(D, K, R))
    check_control(share, R / min(D, K))
    # Without signal there is no tangent space, and more is kept.
    alone = energy(truncated(noise, R)) / (1e-8 * D * K)
    check_control(alone, kept_by_truncation(D, K, R))


def test_each_round_and_all_rounds_have_the_same_total():
    rng = np.random.default_rng(7)
    factors = [Factors(D, K, R, 1.3, 0.4)] * 6
    noise = [RoundNoise(*rng.uniform(size=3)) for _ in factors]
    total = sum(each_round(factors, noise), Energy())
    whole = accumulated(factors, noise)
    assert whole.total == pytest.approx(total.total)
    # Round by round, earlier noise counts to the factors and not to the product.
    assert whole.linear_b < total.linear_b
    assert whole.quadratic > total.quadratic


# ------------------------------------------------------------------- the rules


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name in RULES])
def test_a_rule_is_noisy_where_its_strategy_trains(name):
    rule, strategy = RULES[name], STRATEGIES[name]
    for number in range(1, 5):
        noisy_a, noisy_b = rule.noisy_steps(number, 10)
        assert bool(noisy_a) == strategy.trains("m.lora_A", number)
        assert rule.filtered == pytest.approx(
            sum(weight**2 for weight in strategy.smoothing) or 1.0
        )
        if rule.trains != "core":
            assert bool(noisy_b) == strategy.trains("m.lora_B", number)


def test_every_strategy_has_closed_forms_or_a_reason():
    assert set(STRATEGIES) <= set(RULES) | set(NO_CLOSED_FORM)
    assert not set(RULES) & set(NO_CLOSED_FORM)
    assert all(NO_CLOSED_FORM.values())


def test_two_factors_are_those_with_a_quadratic_part():
    for rule in RULES.values():
        (whole,) = expected_in_all(rule, SETTING)
        assert (whole.quadratic > 0) == rule.two_factors


@pytest.mark.parametrize(
    "arguments", [(D, K, 0, 1, 1), (D, K, K + 1, 1, 1), (D, K, R, -1, 1)]
)
def test_impossible_factors_are_refused(arguments):
    with pytest.raises(ValueError):
        Factors(*arguments)
