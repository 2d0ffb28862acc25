"""What one unit can change, the law of the noise, and what an evaluation costs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from secfed.errors import PlanError
from secfed.privacy import accounting
from secfed.privacy.held_back import GRID, EvaluationPlan, Outcomes
from secfed.privacy.noise import RandomStream, simulation_stream

CLASSES = 3
ONE_RECORD = tuple(itertools.product(range(CLASSES), range(-1, CLASSES)))
LOSSES = (-1.0, 0.0, 0.3, 4.0, 99.0, math.inf, -math.inf, math.nan)


def make(*metrics, sigma=2.0, classes=CLASSES):
    cap = 4.0 if "loss" in metrics else None
    return EvaluationPlan(metrics, sigma, 100, classes, cap)


def outcomes_of(units):
    """``units``: of each unit its records (label, answer, loss)."""
    rows = [(number, *row) for number, own in enumerate(units) for row in own]
    unit, label, answer, loss = (np.array(column) for column in zip(*rows, strict=True))
    return Outcomes(
        labels=label,
        answers=answer,
        right=(label == answer).astype(float),
        loss=loss.astype(float),
        units=unit,
        num_units=len(units),
    )


def blocks(plan, contributions):
    """Metric by metric the cells, in natural units."""
    start, found = 0, {}
    for metric in plan.metrics:
        size = 3 * plan.classes if metric == "f1" else 2
        found[metric] = contributions[..., start : start + size] / GRID
        start += size
    return found


def joint_norm(plan, change):
    """The length of a change, every metric in units of noise_std / sigma."""
    parts = blocks(plan, change).items()
    squares = [
        (np.linalg.norm(own) / (plan.noise_std(name) / plan.noise_multiplier)) ** 2
        for name, own in parts
    ]
    return math.sqrt(sum(squares))


EVERY_UNIT = [
    [(*record, LOSSES[i % len(LOSSES)]) for i, record in enumerate(records)]
    for size in (1, 2, 3)
    for records in itertools.product(ONE_RECORD, repeat=size)
]


@pytest.mark.parametrize("metrics", [("accuracy", "loss"), ("f1",), ("loss", "f1")])
def test_every_possible_unit_contributes_at_most_the_bound(metrics) -> None:
    """All units of up to three records with three classes and odd losses."""
    plan = make(*metrics)
    contributions = plan.contributions(outcomes_of(EVERY_UNIT))
    assert contributions.min() >= 0
    for name, own in blocks(plan, contributions).items():
        norms = np.linalg.norm(own, axis=1)
        assert norms.max() <= plan.bound(name)
        assert norms.max() >= 0.999 * plan.bound(
            name
        )  # and it is no larger than needed
    joint = max(joint_norm(plan, own) for own in contributions)
    assert 0.999 < joint <= 1


@pytest.mark.parametrize("metrics", [("accuracy", "loss"), ("loss", "f1")])
def test_one_unit_more_or_less_moves_the_sums_by_its_own_part(metrics) -> None:
    plan, rng = make(*metrics), np.random.default_rng(4)
    for _ in range(60):
        chosen = rng.choice(len(EVERY_UNIT), size=rng.integers(2, 9))
        units = [EVERY_UNIT[number] for number in chosen]
        gone = int(rng.integers(len(units)))
        whole = plan.contributions(outcomes_of(units))
        rest = plan.contributions(outcomes_of(units[:gone] + units[gone + 1 :]))
        # Nobody else's contribution moves by a bit.
        assert np.array_equal(np.delete(whole, gone, axis=0), rest)
        assert joint_norm(plan, whole.sum(axis=0) - rest.sum(axis=0)) <= 1


def test_a_bound_that_is_too_small_would_be_found() -> None:
    """Counting records and not units: three records of a person count thrice."""
    plan = make("f1")
    unit = [(0, 1, 0.0)] * 3
    single = plan.contributions(outcomes_of([[row] for row in unit]))
    assert np.linalg.norm(single.sum(axis=0)) / GRID > 2 * plan.bound("f1")
    assert np.linalg.norm(plan.contributions(outcomes_of([unit]))) <= GRID * 2**0.5


def test_pairs_add_up_to_the_number_of_units() -> None:
    plan = make("accuracy", "loss")
    sums = plan.contributions(outcomes_of(EVERY_UNIT)).sum(axis=0)
    for start in (0, 2):
        assert sums[start] + sums[start + 1] == GRID * len(EVERY_UNIT)


def test_a_loss_that_is_no_number_is_as_bad_as_can_be() -> None:
    plan = make("loss")
    found = plan.contributions(outcomes_of([[(0, 0, loss)] for loss in LOSSES]))
    shares = found[:, 0] / GRID
    assert shares[[3, 4, 5, 7]] == pytest.approx(1.0)
    assert shares[[0, 1]] == pytest.approx(0.0)
    assert shares[2] == pytest.approx(0.075, abs=1 / GRID)


class _Quiet(RandomStream):
    __slots__ = ()

    def normal(self, size):
        return np.zeros(size)


def test_without_noise_the_sums_are_the_plain_ones() -> None:
    units = [[(0, 0, 1.0)], [(1, 0, 2.0)], [(2, 2, 0.5), (2, 1, 9.0)]]
    quiet = _Quiet(bytes(32), simulated=True)
    plan = make("accuracy", "loss")
    found = plan.released(plan.contributions(outcomes_of(units)), quiet)
    assert found["accuracy.right"] == 1.5
    assert found["accuracy.wrong"] == 1.5
    assert found["loss.cost"] * 4 == pytest.approx(1 + 2 + (0.5 + 4) / 2, abs=1e-4)
    plan = make("f1")
    found = plan.released(plan.contributions(outcomes_of(units)), quiet)
    assert [found[f"f1.tp.{k}"] for k in range(3)] == [1, 0, 0.5]
    assert [found[f"f1.fp.{k}"] for k in range(3)] == [1, 0.5, 0]
    assert [found[f"f1.fn.{k}"] for k in range(3)] == [0, 1, 0.5]


def test_a_site_that_holds_nothing_back_releases_noise() -> None:
    plan = make("accuracy")
    nobody = Outcomes(*(np.zeros(0, dtype=np.int64) for _ in range(5)), num_units=0)
    found = plan.released(plan.contributions(nobody), simulation_stream(1, "empty"))
    assert all(value != 0 for value in found.values())


def noise_of(plan, seed, calls):
    """Released cells of nobody: noise alone, in whole steps of the grid."""
    nothing = np.zeros((1, len(plan.cells)), dtype=np.int64)
    stream = simulation_stream(seed, "noise")
    cells = [list(plan.released(nothing, stream).values()) for _ in range(calls)]
    return np.array(cells).ravel() * GRID


def chi_square(steps, std, bins=40):
    """The p-value of the law P(n) = Phi((n + 1/2) / s) - Phi((n - 1/2) / s)."""
    edges = np.rint(stats.norm.ppf(np.arange(1, bins) / bins) * std)
    below = stats.norm.cdf((edges + 0.5) / std)
    expected = np.diff(np.concatenate([[0.0], below, [1.0]])) * len(steps)
    counted = np.bincount(np.searchsorted(edges, steps), minlength=bins)
    return stats.chisquare(counted, expected).pvalue


def test_the_noise_has_its_law_and_another_scale_is_rejected() -> None:
    """A fixed seed: the law passes at 1 in 1,000, five per cent more or less do not."""
    plan = make("f1", sigma=3.0, classes=400)
    steps = noise_of(plan, 5, 25)
    assert len(steps) == 30_000
    assert np.array_equal(steps, np.rint(steps))  # on the grid, so nothing below it
    std = plan.noise_std("f1") * GRID
    assert chi_square(steps, std) > 1e-3
    for wrong in (0.95, 1.05):
        assert chi_square(steps, wrong * std) < 1e-6


def test_more_metrics_share_the_noise_multiplier() -> None:
    single, both = make("loss"), make("loss", "f1")
    assert single.event() == both.event()
    assert single.noise_std("loss") == 2.0
    assert both.noise_std("loss") == pytest.approx(2.0 * 2**0.5)
    assert both.noise_std("f1") == pytest.approx(4.0)


def test_the_event_is_one_gaussian_of_the_noise_multiplier() -> None:
    cost = accounting.epsilon([make("f1", sigma=2.0).event()], 1e-5, method="rdp")
    same = accounting.sampled_gaussian(1.0, 2.0, 1)
    assert cost == accounting.epsilon([same], 1e-5, method="rdp")
    assert 1.5 < cost < 3


@pytest.mark.parametrize(
    "values",
    [
        ((), 2.0, 100, 3, None),
        (("auc",), 2.0, 100, 3, None),
        (("f1", "f1"), 2.0, 100, 3, None),
        (("loss",), 2.0, 100, 3, None),
        (("f1",), 2.0, 100, 3, 4.0),
        (("loss",), 2.0, 100, 3, math.inf),
        (("f1",), 0.0, 100, 3, None),
        (("f1",), 2.0, 0, 3, None),
    ],
)
def test_a_plan_cannot_contradict_itself(values) -> None:
    with pytest.raises(PlanError):
        EvaluationPlan(*values)
