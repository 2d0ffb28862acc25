"""Known answers of other accountants, and the bounds drawn from the PLD."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
from scipy.stats import binom, norm

from secfed.errors import PlanError
from secfed.privacy import accounting
from secfed.privacy.accounting import (
    advantage,
    conservative_mu,
    epsilon,
    event_from_json,
    event_to_json,
    fits,
    group_event,
    guarantee,
    sampled_gaussian,
    true_positive_rate,
)
from secfed.privacy.distributions import pld_epsilon
from secfed.privacy.events import merge

DELTA = 1e-5


# (noise multiplier, sampling probability, steps, delta) -> PLD add-remove, PLD
# replace-one: dp_accounting 0.6 with its default settings.
PLD_ANSWERS = [
    ((1.5, 0.04, 2250, 1e-5), 6.7688, 13.4885),
    ((1.0, 0.064, 313, 1e-5), 7.7391, 12.2666),
    ((0.8, 0.005, 1000, 1e-6), 2.0041, 2.4024),
    ((4.0, 0.01, 10000, 1e-5), 0.9470, 1.9932),
    ((20.0, 1.0, 100, 1e-5), 1.9931, 4.3772),
]


@pytest.mark.parametrize(("inputs", "add_remove", "replace_one"), PLD_ANSWERS)
def test_pld_answers(inputs, add_remove, replace_one):
    noise, q, steps, delta = inputs
    events = [sampled_gaussian(q, noise, steps)]
    assert epsilon(events, delta) == pytest.approx(add_remove, abs=6e-5)
    assert epsilon(events, delta, "replace-one") == pytest.approx(replace_one, abs=6e-5)


def opacus_rdp(noise, q, steps, delta):
    accountants = pytest.importorskip("opacus.accountants")
    accountant = accountants.RDPAccountant()
    accountant.history = [(noise, q, steps)]
    return accountant.get_epsilon(delta)


def test_rdp_agrees_with_opacus():
    # Opacus' own test suite: 7.32911117143. dp_accounting bounds fractional
    # orders a little more cautiously: 7.32933.
    assert opacus_rdp(1.5, 0.04, 2250, DELTA) == pytest.approx(7.32911117143, abs=1e-8)
    ours = epsilon([sampled_gaussian(0.04, 1.5, 2250)], DELTA, method="rdp")
    assert ours == pytest.approx(7.3291, abs=3e-4)
    assert ours >= 7.32911117143


def opacus_epsilon(name, noise, q, steps):
    accountants = pytest.importorskip("opacus.accountants")
    accountant = getattr(accountants, name)()
    accountant.history = [(noise, q, steps)]
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize(
    ("noise", "q", "steps", "published"),
    [
        # Opacus' own test suite, accountants_test.py: 6.777395712150674.
        (1.5, 0.04, 2249, 6.777395712150674),
        (1.0, 0.01, 1000, None),
        (0.8, 0.02, 400, None),
    ],
)
def test_the_prv_accountant_agrees(noise, q, steps, published):
    prv = opacus_epsilon("PRVAccountant", noise, q, steps)
    if published is not None:
        assert prv == pytest.approx(published, abs=1e-8)
    ours = epsilon([sampled_gaussian(q, noise, steps)], DELTA)
    # Its bound is its estimate and 0.01 more (its eps_error).
    assert prv - 0.011 <= ours <= prv


def test_the_prv_estimate_of_its_authors():
    # Gopi et al.'s prv_accountant 0.2: lower 6.7584, estimate 6.7688, upper 6.7791.
    ours = epsilon([sampled_gaussian(0.04, 1.5, 2250)], DELTA)
    assert 6.7584 <= ours <= 6.7791
    assert ours == pytest.approx(6.7688, abs=1e-4)


@pytest.mark.filterwarnings("ignore:GDP accounting is experimental")
def test_the_central_limit_of_gaussian_dp_reports_too_little_and_is_not_ours():
    # Opacus' GDP accountant says 6.60 where the truth is 6.77. Our mu is drawn from
    # the PLD and covers it.
    limit = opacus_epsilon("GaussianAccountant", 1.5, 0.04, 2250)
    assert 6.59 < limit < 6.61
    events = [sampled_gaussian(0.04, 1.5, 2250)]
    truth = epsilon(events, DELTA)
    assert limit < truth
    mu = conservative_mu(events)
    assert gaussian_delta(truth, mu) >= DELTA
    assert gaussian_delta(limit, mu) > gaussian_delta(truth, mu)


# TensorFlow Privacy's own tests (units, batch, noise, epochs, delta) -> RDP.
@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ((60_000, 150, 1.3, 15, 1e-5), 0.7242234026),
        ((100_000, 100, 1.0, 30, 1e-7), 1.4154988495),
    ],
)
def test_rdp_agrees_with_tensorflow_privacy(inputs, expected):
    units, batch, noise, epochs, delta = inputs
    steps = math.ceil(epochs * units / batch)
    events = [sampled_gaussian(batch / units, noise, steps)]
    # More orders than theirs can only tighten the bound.
    assert epsilon(events, delta, method="rdp") <= expected + 1e-9
    assert epsilon(events, delta, method="rdp") >= 0.99 * expected


def test_tensorflow_privacy_example():
    # Their compute_dp_sgd_privacy example: q = 0.01, 120 steps, noise 0.7.
    events = [sampled_gaussian(0.01, 0.7, 120)]
    assert epsilon(events, DELTA) == pytest.approx(2.4612381, abs=1e-6)
    assert epsilon(events, DELTA, method="rdp") == pytest.approx(3.2392676, abs=1e-3)


# Its compute_dp_sgd_privacy tests: noise 0.7, q = 0.01, 1.2 epochs, delta 1e-5;
# without sampling; and with two examples in a microbatch (half the noise).
@pytest.mark.parametrize(
    ("event", "pld", "rdp"),
    [
        (sampled_gaussian(1.0, 0.7, 2), 10.1224946, 10.8602036),
        (sampled_gaussian(0.01, 0.35, 120), 18.6977407, 22.6248601),
        (sampled_gaussian(1.0, 0.35, 2), 24.7160779, 26.2880374),
    ],
)
def test_tensorflow_privacy_table(event, pld, rdp):
    assert epsilon([event], DELTA) == pytest.approx(pld, abs=1e-5)
    assert epsilon([event], DELTA, method="rdp") == pytest.approx(rdp, abs=1e-3)


def test_tensorflow_privacy_statement():
    # Its compute_dp_sgd_privacy_statement: n = 10,000, batch 64, noise 2 halved by
    # microbatches, 5 epochs, delta 1e-6: 1.616.
    events = [sampled_gaussian(0.0064, 1.0, 782)]
    assert epsilon(events, 1e-6, method="rdp") == pytest.approx(1.616, abs=5e-4)


def test_dp_accounting_answers():
    # dp_accounting's own tests: noise 4.530877117 is (1, 1e-6) by RDP; three steps
    # of noise 0.5 at q = 0.2 have delta 0.15594 at epsilon 1.
    gaussian = [dp_accounting.GaussianDpEvent(4.530877117)]
    assert epsilon(gaussian, 1e-6, method="rdp") == pytest.approx(1, abs=1e-6)
    assert epsilon([sampled_gaussian(0.2, 0.5, 3)], 0.15594) == pytest.approx(
        1, abs=1e-3
    )


def test_an_accountant_that_restarts_each_round_hides_the_truth():
    # 20 rounds of 50 steps, q = 0.01, noise 1, delta = 1e-5.
    one_round = sampled_gaussian(0.01, 1.0, 50)
    restarted = epsilon([one_round], DELTA, method="rdp")
    truth = epsilon([one_round] * 20, DELTA, method="rdp")
    assert restarted == pytest.approx(1.136, abs=5e-4)
    assert truth == pytest.approx(2.101, abs=5e-4)
    assert epsilon([one_round] * 20, DELTA) == pytest.approx(1.8282, abs=1e-4)


def test_two_studies_compose_as_events():
    first = sampled_gaussian(0.064, 1.0, 313)
    second = sampled_gaussian(0.1, 0.8, 200)
    together = epsilon([first, second], DELTA)
    assert together == pytest.approx(17.83, abs=6e-3)
    assert together == epsilon([second, first], DELTA)
    assert together < epsilon([first], DELTA) + epsilon([second], DELTA)
    assert epsilon([first, second], DELTA, method="rdp") == pytest.approx(19.6, abs=0.1)


def test_the_reference_is_what_dp_accounting_computes_by_default():
    events = [sampled_gaussian(0.05, 1.1, 60), dp_accounting.GaussianDpEvent(9.0)]
    accountant = PLDAccountant()
    for event in events:
        accountant.compose(event)
    assert epsilon(events, 1e-6) == pytest.approx(
        accountant.get_epsilon(1e-6), abs=1e-7
    )


def gaussian_delta(eps, mu):
    return norm.cdf(-eps / mu + mu / 2) - math.exp(eps) * norm.cdf(-eps / mu - mu / 2)


def test_full_batches_match_the_closed_form_of_gaussian_dp():
    # 25 Gaussians of noise 10 and one of noise 2 are mu = sqrt(25/100 + 1/4).
    events = [sampled_gaussian(1.0, 10.0, 25), dp_accounting.GaussianDpEvent(2.0)]
    bound = epsilon(events, DELTA)
    assert gaussian_delta(bound, math.sqrt(0.5)) <= DELTA
    assert gaussian_delta(bound - 1e-3, math.sqrt(0.5)) > DELTA


# Groups of records


@pytest.mark.parametrize(
    ("q", "noise", "steps", "size"),
    [(0.05, 4.0, 20, 3), (0.01, 2.0, 50, 2), (0.3, 8.0, 10, 5), (1.0, 9.0, 4, 3)],
)
def test_a_group_costs_at_least_its_mixture_of_gaussians(q, noise, steps, size):
    # The tight answer for groups (Ganesh, arXiv:2401.10294), add and remove.
    chances = [float(binom.pmf(present, size, q)) for present in range(size + 1)]
    tight = from_mixture_gaussian_mechanism(noise, list(range(size + 1)), chances)
    exact = tight.self_compose(steps).get_epsilon_for_delta(DELTA)
    event = sampled_gaussian(q, noise, steps)
    charged = epsilon([group_event(event, size)], DELTA)
    assert charged >= exact * (1 - 1e-6)
    assert charged > epsilon([event], DELTA)
    if q == 1:  # Everybody is always there: nothing is given away.
        assert charged == pytest.approx(exact, rel=1e-4)


def test_a_group_costs_more_than_its_size_times_one():
    # No subadditivity: epsilon of a pair is not below twice that of one here.
    event = sampled_gaussian(0.05, 4.0, 20)
    assert epsilon([group_event(event, 2)], DELTA) > 2 * epsilon([event], DELTA)


def test_groups_of_one_and_of_compositions():
    event = dp_accounting.ComposedDpEvent(
        [sampled_gaussian(0.1, 6.0, 5), dp_accounting.GaussianDpEvent(9.0)]
    )
    assert group_event(event, 1) == event
    (rate, noise, steps), full = merge([group_event(event, 3)])
    assert (noise, steps, full) == (2.0, 5, (1.0, 3.0, 1))
    assert 1 - 0.9**3 <= rate <= (1 - 0.9**3) * (1 + 1e-11)
    assert event_from_json(event_to_json(group_event(event, 3))) == group_event(
        event, 3
    )


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "2"])
def test_a_group_has_a_positive_number_of_records(size):
    with pytest.raises(PlanError, match="positive number"):
        group_event(sampled_gaussian(0.1, 1.0, 1), size)


def test_a_group_that_the_noise_cannot_cover_is_refused():
    with pytest.raises(PlanError, match="noise multiplier"):
        group_event(sampled_gaussian(0.1, 1.0, 1), 1000)


def test_equal_events_merge_however_they_are_nested():
    step = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
    nested = dp_accounting.ComposedDpEvent(
        [step, dp_accounting.SelfComposedDpEvent(sampled_gaussian(0.1, 1.0, 3), 4)]
    )
    assert merge([nested, step]) == ((0.1, 1.0, 14),)
    assert epsilon([nested, step], DELTA) == epsilon(
        [sampled_gaussian(0.1, 1.0, 14)], DELTA
    )


def test_nothing_costs_nothing():
    assert epsilon([], DELTA) == 0
    assert conservative_mu([]) == 0
    assert advantage([]) == 0
    assert true_positive_rate([], 0.01) == 0.01
    assert fits([], DELTA, 0.0)


@pytest.mark.parametrize("factor", [1.00001, 1.001, 1.5, 0.99999, 0.999])
def test_fits_is_the_reference_comparison(factor):
    events = [sampled_gaussian(0.05, 1.0, 50)]
    limit = factor * epsilon(events, DELTA)
    assert fits(events, DELTA, limit) is (factor > 1)


@pytest.mark.parametrize("interval", [2e-4, 1e-3, 5e-3])
def test_coarser_grids_stay_pessimistic(interval):
    event = sampled_gaussian(0.05, 1.0, 50)
    coarse = pld_epsilon(merge([event]), DELTA, "add-remove", interval)
    assert coarse >= epsilon([event], DELTA) - 1e-9


@pytest.mark.parametrize(
    ("q", "noise", "steps"),
    [(1e-6, 0.5, 10), (1e-3, 0.011, 3), (0.001, 1e5, 10**6)],
)
def test_extreme_events_stay_within_time_and_memory(q, noise, steps):
    assert epsilon([sampled_gaussian(q, noise, steps)], DELTA) >= 0


def test_a_loss_beyond_every_grid_is_infinite_and_not_a_crash():
    event = sampled_gaussian(0.5, 0.05, 10**6)
    assert epsilon([event], DELTA) == math.inf
    assert not fits([event], DELTA, 1e6)
    assert conservative_mu([event]) is None
    assert advantage([event]) == true_positive_rate([event], 0.01) == 1


def test_small_losses_are_not_lost_in_the_grid():
    # With noise 4 and q = 0.0005 the loss of a step is about the grid's width;
    # the default grid says 0.084.
    bound = epsilon([sampled_gaussian(0.0005, 4.0, 100_000)], DELTA)
    tight = pld_epsilon(
        merge([sampled_gaussian(0.0005, 4.0, 100_000)]), DELTA, "add-remove", 1e-5
    )
    assert tight <= bound <= 1.02 * tight


# The trade-off


def test_attack_rates_known_answers():
    # riskcal 1.5.1: TPR 18.8 % at FPR 1 %, 5.4 % at 0.1 %, advantage 0.5035.
    events = [sampled_gaussian(0.064, 1.0, 313)]
    assert true_positive_rate(events, 0.01) == pytest.approx(0.188, abs=5e-4)
    assert true_positive_rate(events, 0.001) == pytest.approx(0.054, abs=5e-4)
    assert advantage(events) == pytest.approx(0.5035, abs=1e-4)


@pytest.mark.parametrize("fpr", [0.0, 0.001, 0.01, 0.3, 0.9, 1.0])
def test_attack_rates_of_a_gaussian_are_those_of_its_best_test(fpr):
    events = [dp_accounting.GaussianDpEvent(1.0)]
    best = norm.cdf(norm.ppf(fpr) + 1.0)
    bound = true_positive_rate(events, fpr)
    assert best - 1e-12 <= bound <= best + 2e-3


def test_no_simulated_attack_beats_the_bound():
    # The optimal test on one sampled Gaussian step, by simulation.
    q, noise = 0.3, 0.7
    draws = np.random.default_rng(7).normal(size=(2, 200_000)) * noise
    members = np.random.default_rng(8).random(200_000) < q
    threshold = np.quantile(draws[0], 0.99)
    observed = float(np.mean(draws[1] + members > threshold))
    # One-sided false-alarm rate 3e-7 for five standard errors.
    slack = 5 * math.sqrt(observed * (1 - observed) / 200_000) + 1e-3
    bound = true_positive_rate([sampled_gaussian(q, noise, 1)], 0.01)
    assert observed - slack <= bound <= observed + 0.05


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 4.0])
def test_mu_of_a_gaussian_is_its_own(mu):
    found = conservative_mu([dp_accounting.GaussianDpEvent(1 / mu)])
    assert mu <= found <= 1.01 * mu


@pytest.mark.parametrize("neighbouring", ["add-remove", "replace-one"])
def test_mu_covers_the_whole_curve(neighbouring):
    events = [sampled_gaussian(0.064, 1.0, 313)]
    mu = conservative_mu(events, neighbouring)
    for delta in (0.3, 0.1, 1e-2, 1e-3, 1e-5, 1e-7, 2e-10):
        eps = epsilon(events, delta, neighbouring)
        assert gaussian_delta(eps, mu) >= delta * (1 - 1e-6)
    assert gaussian_delta(0.0, mu) >= advantage(events, neighbouring)


def test_mu_is_unknown_where_no_mu_is_small_enough():
    events = [dp_accounting.GaussianDpEvent(0.011)] * 4
    assert conservative_mu(events) is None
    assert true_positive_rate(events, 0.01) == 1


def test_guarantee_reports_every_form():
    events = (sampled_gaussian(0.064, 1.0, 313),)
    found = guarantee(iter(events), DELTA)
    assert found.epsilon == pytest.approx(7.7391, abs=1e-4)
    assert found.epsilon < found.epsilon_rdp < 9
    assert found.epsilon_replace_one == pytest.approx(12.2666, abs=1e-4)
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


# Events as JSON


EVENTS = [
    dp_accounting.GaussianDpEvent(1.25),
    sampled_gaussian(0.01, 0.9, 7),
    dp_accounting.ComposedDpEvent(
        [sampled_gaussian(0.01, 0.9, 7), dp_accounting.GaussianDpEvent(3.0)]
    ),
]


@pytest.mark.parametrize("event", EVENTS)
def test_events_round_trip(event):
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


GAUSSIAN = {"event": "gaussian", "noise_multiplier": 1.0}
SAMPLED = {"event": "poisson-sampled", "sampling_probability": 0.1, "of": GAUSSIAN}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "gaussian",
        {},
        {"event": "gaussian"},
        {"event": "laplace", "noise_multiplier": 1.0},
        {**GAUSSIAN, "extra": 1},
        {**GAUSSIAN, "noise_multiplier": 0.0},
        {**GAUSSIAN, "noise_multiplier": -1.0},
        {**GAUSSIAN, "noise_multiplier": True},
        {**GAUSSIAN, "noise_multiplier": "1.0"},
        {**GAUSSIAN, "noise_multiplier": float("nan")},
        {**GAUSSIAN, "noise_multiplier": float("inf")},
        {**GAUSSIAN, "noise_multiplier": 1e-9},
        {**SAMPLED, "sampling_probability": 0.0},
        {**SAMPLED, "sampling_probability": 1.5},
        {**SAMPLED, "sampling_probability": True},
        {**SAMPLED, "of": SAMPLED},
        {"event": "self-composed", "count": 0, "of": SAMPLED},
        {"event": "self-composed", "count": 2.0, "of": SAMPLED},
        {"event": "self-composed", "count": True, "of": SAMPLED},
        {"event": "composed", "of": SAMPLED},
        {"event": "composed", "of": [SAMPLED, None]},
    ],
)
def test_other_json_is_refused(value):
    with pytest.raises(PlanError):
        event_from_json(value)


def test_a_whole_number_is_a_number():
    # JCS writes 1.0 as 1.
    assert event_from_json({**GAUSSIAN, "noise_multiplier": 1}) == event_from_json(
        {**GAUSSIAN, "noise_multiplier": 1.0}
    )


@pytest.mark.parametrize(
    "event",
    [
        dp_accounting.NonPrivateDpEvent(),
        dp_accounting.NoOpDpEvent(),
        dp_accounting.LaplaceDpEvent(1.0),
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.LaplaceDpEvent(1.0)),
        dp_accounting.SampledWithoutReplacementDpEvent(
            100, 10, dp_accounting.GaussianDpEvent(1.0)
        ),
        dp_accounting.SelfComposedDpEvent(dp_accounting.UnsupportedDpEvent(), 2),
        None,
    ],
)
def test_unknown_events_are_refused_everywhere(event):
    for use in (
        lambda: epsilon([event], DELTA),
        lambda: event_to_json(event),
        lambda: conservative_mu([event]),
        lambda: fits([event], DELTA, 100.0),
    ):
        with pytest.raises(PlanError):
            use()


def test_bad_requests_are_refused():
    events = [sampled_gaussian(0.1, 1.0, 1)]
    for delta in (0.0, 1.0, -1e-5, math.nan):
        with pytest.raises(PlanError, match="delta"):
            epsilon(events, delta)
    with pytest.raises(PlanError, match="neighbouring"):
        epsilon(events, DELTA, "swap")
    with pytest.raises(PlanError, match="method"):
        epsilon(events, DELTA, method="gdp")
    with pytest.raises(PlanError, match="replace-one"):
        epsilon(events, DELTA, "replace-one", "rdp")
    with pytest.raises(PlanError, match="false positive"):
        true_positive_rate(events, 1.5)


def test_no_torch_is_imported():
    code = "import sys, secfed.privacy.budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_everything_public_is_exported():
    assert all(hasattr(accounting, name) for name in accounting.__all__)
