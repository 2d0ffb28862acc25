"""Noise energy as a function of a study's settings, and the subspace of A."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secfed.amplification import (
    AXES,
    AXIS_NAMES,
    HELD,
    RULES,
    Setting,
    expected_in_all,
    noise_curve,
    sgd_noise_std,
    subspace_motion,
    usual_values,
    with_value,
)

SETTING = Setting(
    shapes=((16, 8), (8, 16)),
    rank=4,
    lora_alpha=8.0,
    noise_multipliers=(0.6, 0.8, 1.0),
    clip_norm=1.0,
    expected_batch=32.0,
    steps=4,
    rounds=5,
    learning_rate=2.0,
)
EVERY = {rule: SETTING for rule in RULES.values() if rule.accumulates}


def totals(axis, values, **changes):
    settings = {rule: replace(SETTING, **changes) for rule in EVERY}
    found = noise_curve(settings, axis, values)
    assert found.values.tolist() == list(values)
    return found.energies


@pytest.mark.parametrize("axis", AXES)
def test_a_curve_passes_through_the_study_itself(axis):
    equal = replace(SETTING, noise_multipliers=(0.8, 0.8, 0.8))
    here = {"rank": 4, "alpha": 8.0, "sigma": 0.8, "sites": 3, "steps": 4}[axis]
    found = noise_curve(dict.fromkeys(EVERY, equal), axis, [here])
    for rule in EVERY:
        parts = found.energies[rule.name]
        whole = sum(one.total for one in expected_in_all(rule, equal))
        assert parts["total"] == pytest.approx([whole])
        shown = ("linear_b", "linear_a", "quadratic", "core")
        assert sum(parts[part] for part in shown) == pytest.approx(parts["total"])


def test_energy_grows_with_the_square_of_alpha():
    for parts in totals("alpha", [1.0, 3.0]).values():
        assert parts["total"][1] == pytest.approx(9 * parts["total"][0])


def test_sigma_enters_linear_parts_squared_and_the_product_to_the_fourth():
    for parts in totals("sigma", [0.5, 1.0], norm_b2=0.3).values():
        for part, factor in (("linear_b", 4), ("linear_a", 4), ("quadratic", 16)):
            assert parts[part][1] == pytest.approx(factor * parts[part][0])


def test_sites_average_noise_away_except_what_they_keep():
    energies = totals("sites", [2, 8], norm_b2=0.3, rounds=1)

    def gain(name, part):
        return energies[name][part][0] / energies[name][part][1]

    assert gain("ffa-lora", "linear_b") == pytest.approx(4)
    assert gain("fedavg", "quadratic") == pytest.approx(16)
    # Exact aggregation of both factors, within a round: once, not twice.
    assert gain("fedex-lora", "quadratic") == pytest.approx(4)
    assert gain("fedsa-lora", "linear_b") == pytest.approx(1)
    assert gain("fedsa-lora", "linear_a") == pytest.approx(4)
    assert gain("local", "total") == pytest.approx(1)


def test_as_many_equal_sites_have_the_noise_of_the_real_ones():
    for name in ("fedavg", "ffa-lora", "rolora", "fed-sb"):
        rule = RULES[name]
        own = expected_in_all(rule, SETTING)
        equal = expected_in_all(rule, with_value(SETTING, "sites", 3))
        assert [e.total for e in equal] == pytest.approx([e.total for e in own])


def test_steps_add_linear_noise_and_multiply_products():
    energies = totals("steps", [2, 6], norm_b2=0.3)
    assert energies["ffa-lora"]["total"][1] == pytest.approx(
        3 * energies["ffa-lora"]["total"][0]
    )
    quadratic = energies["fedavg"]["quadratic"]
    assert quadratic[1] == pytest.approx(9 * quadratic[0])
    # Alternate steps halve the noise of each factor; the whole product stays: T/2 * T/2.
    # Both factors' noise is filtered.
    filtered = RULES["la-lora"].filtered ** 2
    assert energies["la-lora"]["quadratic"] == pytest.approx(filtered * quadratic / 4)


def test_a_larger_rank_lowers_the_scaling_faster_than_it_lengthens_a():
    energies = totals("rank", [1, 8])
    # (alpha / r)**2 * |A|**2 with |A|**2 = r / 3.
    assert energies["ffa-lora"]["total"][0] == pytest.approx(
        8 * energies["ffa-lora"]["total"][1]
    )
    # (alpha / r)**2 * r**2: a core's noise does not depend on the rank.
    assert energies["fed-sb"]["total"][0] == pytest.approx(
        energies["fed-sb"]["total"][1]
    )


def test_orthonormal_rows_are_three_times_as_long_as_pefts():
    peft = expected_in_all(RULES["ffa-lora"], SETTING)
    orthonormal = expected_in_all(
        RULES["ffa-lora"], replace(SETTING, initial="orthonormal")
    )
    for one, other in zip(peft, orthonormal, strict=True):
        assert other.total == pytest.approx(3 * one.total)
    # FedSVD is FFA-LoRA with an orthonormal A, from the second round on at the latest.
    svd = expected_in_all(RULES["fedsvd"], replace(SETTING, initial="orthonormal"))
    assert [e.total for e in svd] == pytest.approx([e.total for e in orthonormal])


def test_pefts_law_of_a_has_the_expected_norm():
    # 2,000 matrices: relative standard deviation of the mean 0.4 %, 2 % allowed.
    rng = np.random.default_rng(1)
    a = rng.uniform(-1, 1, size=(2000, 4, 8)) / np.sqrt(8)
    factor = np.sum(a**2, axis=(1, 2)).mean()
    (one,) = expected_in_all(
        RULES["ffa-lora"], replace(SETTING, shapes=((16, 8),), rounds=1)
    )
    variance = sum(SETTING.noise_std(s, 4) ** 2 for s in (0.6, 0.8, 1.0)) / 9
    assert one.total == pytest.approx(
        SETTING.scaling**2 * variance * 16 * factor, rel=0.02
    )


def test_a_whole_site_is_noised_once_whatever_its_steps_and_rate_are():
    whole = replace(SETTING, whole_site=True)
    assert whole.noise_std(0.5, 4) == whole.noise_std(0.5, 1) == 0.5
    assert whole.noise_std(0.5, 0) == 0.0
    assert SETTING.noise_std(0.5, 4) == sgd_noise_std(4, 2.0, 0.5, 1.0, 32.0)


def test_usual_values_are_possible():
    for axis in AXES:
        values = usual_values(SETTING, axis)
        assert len(values) >= 4
        for value in values:
            with_value(SETTING, axis, value)
        assert AXIS_NAMES[axis]
        assert HELD[axis]
    assert usual_values(SETTING, "rank") == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        ("rank", 9),
        ("rank", 2.5),
        ("sites", 0),
        ("steps", 1.5),
        ("alpha", -1.0),
        ("sigma", float("nan")),
        ("sigma", float("inf")),
    ],
)
def test_impossible_values_are_refused(axis, value):
    with pytest.raises(ValueError):
        noise_curve(EVERY, axis, [value])


def test_what_is_known_for_one_round_has_no_curve():
    with pytest.raises(ValueError, match="flexlora"):
        noise_curve({RULES["flexlora"]: SETTING}, "sites", [2])
    with pytest.raises(ValueError, match="values"):
        noise_curve(EVERY, "sites", [])


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": ()},
        {"noise_multipliers": ()},
        {"rank": 0},
        {"rank": 9},
        {"steps": 0},
        {"rounds": 0},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError):
        replace(SETTING, **change)


# --------------------------------------------------------------- the subspace


def test_a_subspace_does_not_move_by_a_change_of_basis():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(3, 10)).astype(np.float32)
    mixed = (rng.normal(size=(3, 3)) @ a).astype(np.float32)
    assert subspace_motion(a, mixed) == pytest.approx(0, abs=1e-5)
    assert subspace_motion(a, 1e-6 * a) == pytest.approx(0, abs=1e-5)


def test_subspace_motion_is_the_distance_of_the_projectors():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(3, 10)), rng.normal(size=(2, 10))

    def projector(m):
        return m.T @ np.linalg.inv(m @ m.T) @ m

    expected = np.linalg.norm(projector(a) - projector(b))
    found = subspace_motion(a.astype(np.float32), b.astype(np.float32))
    assert found == pytest.approx(expected, rel=1e-5)
    eye = np.eye(6, dtype=np.float32)
    assert subspace_motion(eye[:3], eye[3:]) == pytest.approx(np.sqrt(6))


@pytest.mark.parametrize(
    ("start", "now"),
    [
        (np.ones((1, 4)), np.ones((1, 5))),
        (np.ones((2, 4)), np.eye(4)[:2]),
        (np.eye(4)[:2], np.zeros((2, 4))),
        (np.ones((5, 4)), np.eye(4)[:2]),
        (np.ones(4), np.eye(4)[:2]),
    ],
)
def test_factors_without_a_subspace_are_refused(start, now):
    with pytest.raises(ValueError):
        subspace_motion(start.astype(np.float32), now.astype(np.float32))
