"""The audit's statistics: known answers, false alarms and power on fixed seeds.

Many seeds use the mechanism alone: the plan's own sampling, clip and noise, without a
model. ``test_audit_controls.py`` repeats a few in the real pipeline.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from secfed.audit.curves import ClaimedCurve, GaussianCurve, claimed_curve
from secfed.audit.laws import (
    LEVEL,
    correlation_p,
    inclusion_p,
    ks_p,
    neighbours_p,
    variance_p,
)
from secfed.audit.mechanism import drawn_members, kept_norm, mechanism_scores, power
from secfed.audit.membership import area, lira_scores, points_on_curve
from secfed.audit.one_run import (
    Guesses,
    fdp_epsilon,
    fdp_p_value,
    fdp_refutes,
    make_guesses,
    steinke_epsilon,
    steinke_p_value,
)
from secfed.audit.refutation import Counts, Scores, clopper_pearson, p_value, refute
from secfed.privacy.noise import simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.privacy.tradeoff import true_positive_rate

CANARIES, SEEDS, LEVEL_1_PERCENT = 4000, 200, 0.01


def claim(noise_multiplier: float = 1.0, steps: int = 100) -> PrivacyPlan:
    """q = 0.1, C = 2; with the defaults epsilon 7.05 at delta 1e-5."""
    return PrivacyPlan(
        unit="record",
        max_records_per_unit=1,
        neighbouring="add-remove",
        clip_norm=2.0,
        noise_multiplier=noise_multiplier,
        sampling_probability=0.1,
        expected_batch=100,
        steps_per_round=steps,
        rounds=1,
        delta=1e-5,
        nominal_units=1000,
    )


@pytest.fixture(scope="module")
def curve() -> ClaimedCurve:
    return claimed_curve([claim().round_event()])


SHORT = claim(noise_multiplier=0.8, steps=30)
"""Epsilon 6.58 in 30 steps: the many seeds take a third of the time."""


@pytest.fixture(scope="module")
def short() -> ClaimedCurve:
    return claimed_curve([SHORT.round_event()])


def audited(plan: PrivacyPlan, seed: int, canaries: int = CANARIES) -> Scores:
    stream = simulation_stream(seed, "audit-test", str(plan.noise_multiplier))
    members = drawn_members(stream, canaries)
    return mechanism_scores(plan, 1, members, stream)


# The curve


def test_the_curve_is_that_of_the_accountant(curve: ClaimedCurve) -> None:
    # 14.6 % at a false positive rate of 1 %: known from another implementation.
    found = float(curve.highest_tpr(np.array(0.01)))
    assert found == pytest.approx(0.146, abs=5e-4)
    events = [claim().round_event()]
    for rate in (0.001, 0.01, 0.1, 0.5):
        bound = true_positive_rate(events, rate)
        assert float(curve.highest_tpr(np.array(rate))) == pytest.approx(bound, 2e-3)


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_both_ways_of_a_curve_agree(curve: ClaimedCurve, mu: float) -> None:
    for one in (curve, GaussianCurve(mu)):
        for rate in (1e-4, 0.01, 0.3, 0.9):
            tpr = float(one.highest_tpr(np.array(rate)))
            assert one.least_fpr(tpr) == pytest.approx(rate, rel=1e-6)


def test_a_claim_of_no_privacy_forbids_nothing() -> None:
    curve = claimed_curve([claim(noise_multiplier=0.011).round_event()])
    assert float(curve.highest_tpr(np.array(0.0))) == 1.0
    assert p_value(Counts(500, 500, 0, 500), curve) == 1.0


# The primary statistic


def test_clopper_pearson_is_scipys() -> None:
    low, high = clopper_pearson(np.array([0.0, 3, 20]), np.full(3, 20.0), 0.025)
    for hits, lower, upper in zip((0, 3, 20), low, high, strict=True):
        expected = stats.binomtest(hits, 20).proportion_ci(0.95, method="exact")
        assert (lower, upper) == pytest.approx((expected.low, expected.high))


def test_the_p_value_is_where_the_bounds_meet_the_curve(curve: ClaimedCurve) -> None:
    counts = Counts(400, 500, 40, 500)
    p = p_value(counts, curve)
    assert 0 < p < 1

    def margin(level: float) -> float:
        low, high = clopper_pearson(
            np.array([400.0, 40]), np.array([500.0, 500]), level / 2
        )
        return float(low[0] - curve.highest_tpr(high[1:])[0])

    assert margin(1.001 * p) > 0 > margin(0.999 * p)
    assert p_value(Counts(499, 500, 1, 500), curve) < 1e-20
    assert p_value(Counts(250, 500, 250, 500), curve) == 1.0


def test_the_exact_mechanism_is_flagged_in_at_most_7_of_200_seeds(
    short: ClaimedCurve,
) -> None:
    flags = [
        refute(audited(SHORT, seed), short).p < LEVEL_1_PERCENT for seed in range(SEEDS)
    ]
    # At level 1 % eight or more of 200 have a probability of 0.1 %.
    assert sum(flags) <= 7


def test_half_the_noise_is_refuted_in_at_least_18_of_20_seeds(
    short: ClaimedCurve,
) -> None:
    half = replace(SHORT, noise_multiplier=0.4)
    ps = [refute(audited(half, seed), short).p for seed in range(20)]
    assert sum(p < LEVEL_1_PERCENT for p in ps) >= 18


def test_an_epsilon_bound_alone_cannot_refute_what_the_curve_refutes(
    curve: ClaimedCurve,
) -> None:
    """Without noise and with 1,000 canaries: epsilon 5.1 is below the claim of 7."""
    silent = replace(claim(), noise_multiplier=0.01)
    scores = audited(silent, 1, canaries=1000)
    guesses = make_guesses(scores, 1.0)
    assert steinke_epsilon(guesses, 0.05, 0.0) < 6 < claim().epsilon()
    assert refute(scores, curve).p < 1e-6


def test_power_tells_weak_audits_from_strong_ones(curve: ClaimedCurve) -> None:
    def told(canaries: int) -> float:
        return power(
            claim(),
            1,
            canaries,
            curve,
            simulation_stream(3, "power", str(canaries)),
            noise=0.5,
            level=LEVEL_1_PERCENT,
            repetitions=10,
        )

    assert told(100) <= 0.3
    assert told(2000) >= 0.9


def test_canaries_count_c_after_the_clip() -> None:
    assert kept_norm(claim()) == pytest.approx(2.0, rel=1e-5)
    limited = replace(claim(), clip_rule="per-tensor")
    assert kept_norm(limited, tensors=4) == pytest.approx(1.0, rel=1e-5)


# The bounds on epsilon


@pytest.mark.parametrize(
    ("guessed", "expected"),
    [(10, 1.05), (100, 3.49), (500, 5.11), (1000, 5.81), (5000, 7.42)],
)
def test_all_guesses_right_bounds_epsilon_by_this(
    guessed: int, expected: float
) -> None:
    found = steinke_epsilon(Guesses(guessed, guessed, guessed), 0.05, 0.0)
    assert found == pytest.approx(expected, abs=5e-3)


def test_steinkes_p_value_is_the_slow_formula() -> None:
    guesses, epsilon, delta = Guesses(300, 80, 60), 0.7, 1e-3
    q = np.exp(epsilon) / (1 + np.exp(epsilon))
    tails = [
        sum(stats.binom.pmf(k, 80, q) for k in range(least, 81)) for least in range(81)
    ]
    slope = max((tails[60 - i] - tails[60]) / i for i in range(1, 61))
    expected = min(1.0, tails[60] + 2 * 300 * delta * slope)
    assert steinke_p_value(guesses, epsilon, delta) == pytest.approx(expected)


def test_guesses_abstain_in_the_middle() -> None:
    values = np.array([5.0, 4, 3, 2, 1, 0])
    members = np.array([True, False, True, False, False, False])
    assert make_guesses(Scores(values, members), 0.34) == Guesses(6, 2, 2)
    assert make_guesses(Scores(values, members), 0.67) == Guesses(6, 4, 3)


def test_the_fdp_bound_keeps_its_level_and_uses_the_curve() -> None:
    """A Gaussian mechanism of mu 1: never above it at 5 % in 60 seeds, often near."""
    flags, bounds = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        members = rng.random(2000) < 0.5
        scores = Scores(rng.normal(size=2000) + members, members)
        guesses = make_guesses(scores, 0.1)
        flags += fdp_refutes(guesses, GaussianCurve(1.0), 0.05)
        if seed < 5:
            bounds.append(fdp_epsilon(guesses, 0.05, 1e-5))
    assert flags <= 3
    # mu = 1 is epsilon 4.4 at delta 1e-5; the one-run bound of epsilon stays at 1.5.
    assert 1.5 < np.mean(bounds) < 4.4
    assert fdp_refutes(Guesses(2000, 200, 200), GaussianCurve(1.0), 0.01)


@pytest.mark.parametrize(
    ("guessed", "correct", "thresholds", "expected"),
    [(406, 379, 386, 2.164749), (938, 934, 374, 4.7218075)],
)
def test_the_fdp_bound_gives_known_answers(
    guessed: int, correct: int, thresholds: int, expected: float
) -> None:
    """Of jax_privacy's tests: 10,000 + 10,000 canaries whose scores are the quantiles
    of two normal laws 1 and 2 apart, at level 5 % over as many thresholds."""
    guesses = Guesses(20_000, guessed, correct)
    found = fdp_epsilon(guesses, 0.05 / thresholds, 1e-6)
    assert found == pytest.approx(expected, rel=1e-5)


def test_dependent_scores_break_the_p_value_and_not_the_one_run_bound() -> None:
    """Why the assumption is printed: (0, 0.1)-DP by telling all with probability 0.1.

    In a tenth of the runs the p-value for independent scores refutes a true claim.
    """
    curve = ClaimedCurve(np.zeros(1), np.full(1, 0.1))
    members = np.random.default_rng(1).random(1000) < 0.5
    told = Scores(members.astype(np.float64), members)
    assert refute(told, curve).p < 1e-6
    guesses = make_guesses(told, 0.5)
    assert guesses.correct == guesses.guessed
    assert fdp_p_value(guesses, curve) >= 0.1
    # Its own control: a claim of less is refuted.
    assert fdp_p_value(guesses, ClaimedCurve(np.zeros(1), np.full(1, 1e-6))) < 0.01


# Laws of noise


def test_laws_hold_for_noise_and_break_for_what_is_none() -> None:
    good = simulation_stream(4, "laws").normal(40_000)
    for test in (ks_p, variance_p, neighbours_p):
        assert test(good) > LEVEL
    assert variance_p(0.9 * good) < LEVEL
    assert ks_p(np.sign(good)) < LEVEL
    assert neighbours_p((good + np.roll(good, 3)) / np.sqrt(2)) < LEVEL
    other = simulation_stream(5, "laws").normal(40_000)
    assert correlation_p([good, other]) > LEVEL
    assert correlation_p([good, other, good]) < LEVEL
    assert correlation_p([good, np.zeros(40_000)]) < LEVEL


def test_inclusion_sees_rate_units_and_dependence() -> None:
    draws = simulation_stream(6, "draws").uniform(100_000).reshape(2000, 50) < 0.2
    assert inclusion_p(draws, 0.2) > LEVEL
    assert inclusion_p(draws, 0.22) < LEVEL
    fixed = np.zeros((2000, 50), dtype=bool)
    fixed[:, :10] = True  # Always the same ten, and always ten.
    assert inclusion_p(fixed, 0.2) < LEVEL
    together = np.repeat(draws[:, :1], 50, axis=1)
    assert inclusion_p(together, 0.2) < LEVEL
    assert inclusion_p(np.ones((3, 3), dtype=bool), 1.0) == 1.0


# Membership


def test_area_and_points_of_known_scores(curve: ClaimedCurve) -> None:
    rng = np.random.default_rng(2)
    members = np.arange(2000) % 2 == 0
    scores = Scores(rng.normal(size=2000) + members, members)
    middle, low, high = area(scores)
    assert low < stats.norm.cdf(np.sqrt(0.5)) < high  # 0.760
    assert high - low < 0.05
    assert low < middle < high
    points = points_on_curve(scores, curve, (0.1,))
    assert points[0].fpr <= 0.1
    assert points[0].tpr_low < stats.norm.cdf(stats.norm.ppf(0.1) + 1)
    assert stats.norm.cdf(stats.norm.ppf(0.1) + 1) < points[0].tpr_high


def test_lira_uses_each_canarys_own_level() -> None:
    """Levels differ by far more than membership; a common threshold sees nothing."""
    rng = np.random.default_rng(3)
    levels = 10 * rng.normal(size=400)
    inside = rng.random((16, 400)) < 0.5
    shadows = levels + inside + 0.3 * rng.normal(size=(16, 400))
    members = rng.random(400) < 0.5
    target = levels + members + 0.3 * rng.normal(size=400)
    assert area(Scores(target, members))[0] < 0.6
    ratios = lira_scores(target, shadows, inside)
    assert area(Scores(ratios, members))[0] > 0.95
