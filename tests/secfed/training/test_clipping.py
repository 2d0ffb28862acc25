"""Every rule clips as it says, whatever the gradients are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from at_a_site import RULES, Array, expected_contribution
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_plan

from secfed.privacy.plan import PrivacyPlan
from secfed.training.units import clipped_sums


def contribution(tensors: Sequence[Array], plan: PrivacyPlan) -> Array:
    """What one unit adds to a step's sum; the tensors are its gradient."""
    rows = [torch.from_numpy(t.astype(np.float32))[None] for t in tensors]
    sums = clipped_sums(rows, plan.clipping)
    return torch.cat(sums).double().numpy()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    exponents=st.lists(st.integers(-40, 37), min_size=4, max_size=4),
    clip=st.sampled_from([1e-6, 1e-3, 0.5, 1.0, 37.0, 1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_clipped_norms(
    rule: dict[str, Any], sizes: list[int], exponents: list[int], clip: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    plan = make_plan(100, 10, clip_norm=clip, **rule)
    tensors = [
        (rng.uniform(-3, 3, size=size) * 10.0**exponent).astype(np.float32)
        for size, exponent in zip(sizes, exponents, strict=False)
    ]
    found = contribution(tensors, plan)
    # Not "up to rounding": a sensitivity that is exceeded a little is exceeded.
    assert np.linalg.norm(found) <= clip
    # The direction stays, and what is short enough is all but untouched.
    expected = expected_contribution([t.astype(np.float64) for t in tensors], plan)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-10 * clip)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
@given(
    values=st.lists(
        st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), 3e38]),
        min_size=3,
        max_size=24,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_bits_contribute_at_most_the_clip_norm(
    rule: dict[str, Any], values: list[float]
) -> None:
    plan = make_plan(100, 10, clip_norm=0.3, **rule)
    tensors = [np.array(values[:1]), np.array(values[1:])]
    found = contribution(tensors, plan)
    assert np.linalg.norm(found) <= 0.3
    if not np.isfinite(values).all():
        assert not found.any()


def test_the_bound_of_each_rule_is_reached() -> None:
    # Without this the test above would pass for a rule that returns nothing.
    long = [np.full(8, 1e4), np.full(8, 1e4)]
    for rule in RULES:
        plan = make_plan(100, 10, clip_norm=0.3, **rule)
        assert np.linalg.norm(contribution(long, plan)) > 0.2999
        bad = replace(plan, clip_norm=0.301)
        assert np.linalg.norm(contribution(long, bad)) > plan.clipping.sensitivity


def test_one_tensor_cannot_use_up_another_ones_share() -> None:
    plan = make_plan(100, 10, clip_norm=1.0, clip_rule="per-tensor")
    one, other = np.zeros(4), np.full(4, 0.01)
    one[0] = 1e6
    found = contribution([one, other], plan)
    np.testing.assert_allclose(found[4:], 0.01, rtol=1e-6)
    flat_plan = make_plan(100, 10, clip_norm=1.0)
    assert np.abs(contribution([one, other], flat_plan)[4:]).max() < 1e-7


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_unit_that_is_not_finite_counts_as_zero(
    bad: float, rule: dict[str, Any]
) -> None:
    clipping = make_plan(100, 10, clip_norm=1.0, **rule).clipping
    rows = [torch.tensor([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]]), torch.rand(3, 5)]
    others = clipped_sums([row[[0, 2]] for row in rows], clipping)
    for tensor in (0, 1):
        spoiled = [row.clone() for row in rows]
        spoiled[tensor][1, 0] = bad
        found = clipped_sums(spoiled, clipping)
        for one, two in zip(found, others, strict=True):
            torch.testing.assert_close(one, two, rtol=3e-7, atol=0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["clip_rule"])
def test_a_huge_finite_unit_is_clipped_and_finite(rule: dict[str, Any]) -> None:
    plan = make_plan(100, 10, clip_norm=1.0, **rule)
    found = contribution([np.full(64, 3e38)], plan)
    assert np.linalg.norm(found) == pytest.approx(1.0, rel=1e-5)
