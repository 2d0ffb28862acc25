"""Factors turned towards references: the objective, and the product that stays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from secfed.errors import MatrixError
from secfed.lowrank import align, rotation

D, R, K = 20, 4, 15
FACTORS = ["A", "B", "both"]


def factors(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((D, R)), rng.standard_normal((R, K))


def distance(turn, b, a, b_ref, a_ref, factor):
    of_a = np.linalg.norm(turn.T @ a - a_ref) ** 2
    of_b = np.linalg.norm(b @ turn - b_ref) ** 2
    return {"A": of_a, "B": of_b, "both": of_a + of_b}[factor]


def is_orthogonal(turn):
    return np.allclose(turn.T @ turn, np.eye(len(turn)), atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_turned_copy_of_the_reference_is_turned_back(factor):
    b_ref, a_ref = factors(0)
    turn = scipy.stats.ortho_group.rvs(R, random_state=1)
    made = align(b_ref @ turn, turn.T @ a_ref, b_ref, a_ref, factor=factor)
    np.testing.assert_allclose(made.b, b_ref, atol=1e-12)
    np.testing.assert_allclose(made.a, a_ref, atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_the_product_stays(factor, strength):
    b, a = factors(0)
    made = align(b, a, *factors(1), factor=factor, strength=strength)
    np.testing.assert_allclose(made.dense(), b @ a, atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS)
def test_no_orthogonal_matrix_is_nearer(factor):
    everything = (*factors(0), *factors(1), factor)
    found = rotation(*factors(0), *factors(1), factor=factor)
    assert is_orthogonal(found)
    least = distance(found, *everything)
    rng = np.random.default_rng(2)
    for turn in scipy.stats.ortho_group.rvs(R, size=200, random_state=3):
        assert distance(turn, *everything) > least
    for _ in range(50):  # and a small step away is worse, too
        skew = 1e-3 * np.triu(rng.standard_normal((R, R)), 1)
        step = scipy.linalg.expm(skew - skew.T)
        assert distance(found @ step, *everything) > least


@pytest.mark.parametrize("factor", ["A", "B"])
def test_the_rotation_is_scipys(factor):
    (b, a), (b_ref, a_ref) = factors(0), factors(1)
    source, target = (a.T, a_ref.T) if factor == "A" else (b, b_ref)
    wanted, _ = scipy.linalg.orthogonal_procrustes(source, target)
    found = rotation(b, a, b_ref, a_ref, factor=factor)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_reference_that_says_nothing_turns_nothing():
    b, a = factors(0)
    zeros = np.zeros_like(b), np.zeros_like(a)
    for factor in FACTORS:
        np.testing.assert_allclose(
            rotation(b, a, *zeros, factor=factor), np.eye(R), atol=1e-12
        )
    turned = rotation(b, a, zeros[0], factors(1)[1], factor="A")
    np.testing.assert_allclose(turned, rotation(b, a, *factors(1)), atol=1e-12)


def test_directions_that_the_reference_lacks_turn_as_little_as_they_can():
    b, a = factors(0)
    b_ref, a_ref = factors(1)
    a_ref[1:] = 0  # one direction is known, three are free
    found = rotation(b, a, b_ref, a_ref)
    assert is_orthogonal(found)
    least = np.linalg.norm(found.T @ a - a_ref)
    u = a @ a_ref[0] / np.linalg.norm(a @ a_ref[0])
    # Every best Q takes the first unit vector to u; the nearest to the identity is
    # then the rotation in the plane of the two, with trace r - 2 + 2 u[0], or the
    # reflection that swaps them, with trace r - 2.
    np.testing.assert_allclose(found[:, 0], u, atol=1e-12)
    assert np.trace(found) == pytest.approx(max(R - 2 + 2 * u[0], R - 2), abs=1e-12)
    for turn in scipy.stats.ortho_group.rvs(R, size=100, random_state=3):
        assert np.linalg.norm(turn.T @ a - a_ref) >= least - 1e-12


def test_a_weak_alignment_lies_between():
    b, a = factors(0)
    b_ref, a_ref = factors(1)
    turns = [rotation(b, a, b_ref, a_ref, strength=s) for s in (0, 0.2, 0.5, 0.8)]
    assert all(is_orthogonal(turn) for turn in turns)
    np.testing.assert_allclose(turns[0], np.eye(R), atol=1e-12)
    moved = [np.linalg.norm(turn - np.eye(R)) for turn in turns]
    assert moved == sorted(moved)
    assert all(np.linalg.det(turn) > 0 for turn in turns)


def test_a_reflection_is_taken_at_full_strength_only():
    b, a = factors(0)
    mirror = np.diag([1.0, 1.0, 1.0, -1.0])
    reference = b @ mirror, mirror @ a
    np.testing.assert_allclose(rotation(b, a, *reference), mirror, atol=1e-12)
    almost = rotation(b, a, *reference, strength=0.99)
    assert np.linalg.det(almost) == pytest.approx(1)


def test_rank_one_has_two_turns():
    b, a = np.ones((3, 1)), np.ones((1, 2))
    assert rotation(b, a, b, -a).item() == -1
    assert rotation(b, a, b, a).item() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["B", "A", "B_ref", "A_ref"])
def test_numbers_that_are_not_finite_are_refused(bad, name):
    given = dict(
        zip(("B", "A", "B_ref", "A_ref"), (*factors(0), *factors(1)), strict=True)
    )
    given[name][1, 1] = bad
    with pytest.raises(MatrixError, match=f"^{name} has NaN or infinity"):
        align(*given.values())


def test_other_ranks_and_strengths_are_refused():
    (b, a), (b_ref, a_ref) = factors(0), factors(1)
    with pytest.raises(MatrixError, match="cannot be turned"):
        align(b, a, b_ref[:, :2], a_ref[:2])
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(MatrixError, match="choose 0 to 1"):
            align(b, a, b_ref, a_ref, strength=strength)
