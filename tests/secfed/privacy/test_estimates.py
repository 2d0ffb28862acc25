"""Intervals of noised scores cover as often as they say, however small the sums are."""

from __future__ import annotations

import numpy as np
import pytest

from secfed.privacy.estimates import Estimate, estimates, expected_margin
from secfed.privacy.held_back import GRID, EvaluationPlan
from secfed.privacy.noise import simulation_stream

SITES = 4
TRIALS = 400
# Of 400 trials at 95 %, fewer than 359 or all of them have a chance below 1e-5.
FEWEST, MOST = 359, 399


def released(plan, per_site, seed):
    """The sum over sites of what each releases, given its plain cells."""
    whole = np.rint(np.array(per_site) * GRID).astype(np.int64)
    sites = [
        plan.released(own[None, :], simulation_stream(seed, "site", str(number)))
        for number, own in enumerate(whole)
    ]
    return {name: sum(site[name] for site in sites) for name in plan.cells}


def covered(found: Estimate, truth: float) -> bool:
    low, high = found.noise_interval
    return low <= truth <= high


@pytest.mark.parametrize("units", [200.0, 12.0])
def test_the_plain_accuracy_is_inside_in_the_expected_share_of_seeds(units) -> None:
    plan = EvaluationPlan(("accuracy",), 5.0, 100, 2)
    rights = (0.9, 0.7, 0.8, 0.6)
    cells = [(units * right, units * (1 - right)) for right in rights]
    hits = 0
    for seed in range(TRIALS):
        (found,) = estimates(plan, released(plan, cells, seed), SITES)
        hits += covered(found, 0.75)
        assert found.interval[0] <= found.noise_interval[0]
        assert found.interval[1] >= found.noise_interval[1]
    assert FEWEST <= hits <= MOST


def test_an_interval_without_the_noise_would_miss() -> None:
    """The control: binomial intervals of the noised counts, as if they were true."""
    plan = EvaluationPlan(("accuracy",), 5.0, 100, 2)
    hits = 0
    for seed in range(TRIALS):
        sums = released(plan, [(15.0, 5.0)] * SITES, seed)
        (found,) = estimates(plan, sums, SITES)
        count = max(sum(sums.values()), 1.0)
        value = found.value if found.value is not None else 0.5
        margin = 1.96 * np.sqrt(value * (1 - value) / count)
        hits += abs(value - 0.75) <= margin
    assert hits < FEWEST


def test_losses_are_covered_in_their_own_units() -> None:
    plan = EvaluationPlan(("accuracy", "loss"), 3.0, 100, 2, 6.0)
    hits = 0
    for seed in range(TRIALS):
        sums = released(plan, [(80.0, 20.0, 30.0, 70.0)] * SITES, seed)
        found = {one.score: one for one in estimates(plan, sums, SITES)}
        hits += covered(found["mean_loss"], 1.8)
        assert 0 <= found["mean_loss"].noise_interval[1] <= 6
    assert FEWEST <= hits <= MOST


def test_f1_is_covered_and_macro_f1_at_least_as_often() -> None:
    plan = EvaluationPlan(("f1",), 3.0, 100, 3)
    tp, fp, fn = (40.0, 20.0, 10.0), (10.0, 5.0, 15.0), (5.0, 15.0, 10.0)
    single = [2 * t / (2 * t + p + n) for t, p, n in zip(tp, fp, fn, strict=True)]
    hits = dict.fromkeys(("accuracy", "f1", "macro_f1"), 0)
    truth = {"accuracy": 0.7, "f1": single[1], "macro_f1": np.mean(single)}
    for seed in range(TRIALS):
        sums = released(plan, [(*tp, *fp, *fn)] * SITES, seed)
        for one in estimates(plan, sums, SITES, positive=1):
            hits[one.score] += covered(one, truth[one.score])
    assert FEWEST <= hits["f1"] <= MOST
    assert FEWEST <= hits["accuracy"] <= MOST
    assert hits["macro_f1"] >= hits["f1"] - 10


def test_records_like_them_are_covered_too() -> None:
    """Units are drawn, then noised: the wide interval covers what they were drawn of."""
    plan = EvaluationPlan(("accuracy",), 2.0, 100, 2)
    rng, wide, narrow = np.random.default_rng(8), 0, 0
    for seed in range(TRIALS):
        rights = rng.binomial(40, 0.75, size=SITES)
        cells = [(float(right), 40.0 - right) for right in rights]
        (found,) = estimates(plan, released(plan, cells, seed), SITES)
        wide += found.interval[0] <= 0.75 <= found.interval[1]
        narrow += covered(found, 0.75)
    assert FEWEST <= wide <= MOST
    assert narrow < wide


def test_without_noise_the_scores_are_the_plain_ones() -> None:
    plan = EvaluationPlan(("f1",), 0.1, 100, 2)
    sums = dict(zip(plan.cells, (60.0, 20.0, 5.0, 15.0, 15.0, 5.0), strict=True))
    found = {one.score: one for one in estimates(plan, sums, SITES, positive=0)}
    assert found["accuracy"].value == pytest.approx(0.8)
    assert found["f1"].value == pytest.approx(120 / 140)
    assert found["macro_f1"].value == pytest.approx((120 / 140 + 40 / 60) / 2)


def test_nothing_to_divide_by_is_unknown_and_wide() -> None:
    plan = EvaluationPlan(("accuracy",), 5.0, 100, 2)
    (found,) = estimates(plan, {"accuracy.right": 3.0, "accuracy.wrong": -9.0}, SITES)
    assert found.value is None
    assert found.noise_interval == (0.0, 1.0)
    assert found.to_json()["interval"] == [0.0, 1.0]


def test_the_margin_of_a_plan_is_that_of_its_intervals() -> None:
    plans = [EvaluationPlan(("accuracy",), 5.0, 100, 2)] * SITES
    sums = {"accuracy.right": 400.0, "accuracy.wrong": 0.0}
    (found,) = estimates(plans[0], sums, SITES)
    low, _ = found.noise_interval
    assert expected_margin(plans) == pytest.approx(1 - low, abs=0.005)
    assert expected_margin([EvaluationPlan(("f1",), 5.0, 100, 2)]) is None
