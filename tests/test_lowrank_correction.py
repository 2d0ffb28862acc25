"""The ridge correction of B: the minimum of its objective."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secfed.errors import MatrixError
from secfed.lowrank import Factors, ridge_correction

D, R, K, SITES = 12, 3, 9, 5


def means(seed=0, kind="full"):
    """Mean of products, as factors, and means of factors."""
    rng = np.random.default_rng(seed)
    bs = rng.standard_normal((SITES, D, R))
    as_ = rng.standard_normal((SITES, R, K))
    if kind == "deficient":
        as_[:, 2] = as_[:, 0]
    if kind == "zero":
        as_[:] = 0
    if kind == "nearly":
        as_[:, 2] = as_[:, 0] + 1e-7 * as_[:, 2]
    product = Factors(np.hstack(list(bs)) / SITES, np.vstack(list(as_)))
    return product, bs.mean(axis=0), as_.mean(axis=0)


def reference(product, b, a, penalty):
    """Least squares with the penalty as further columns, dense."""
    wide = np.hstack([a, math.sqrt(penalty) * np.eye(len(a))])
    target = np.hstack([product.dense() - b @ a, np.zeros((len(b), len(a)))])
    return np.linalg.lstsq(wide.T, target.T, rcond=1e-13)[0].T


@pytest.mark.parametrize("kind", ["full", "deficient", "zero", "nearly"])
@pytest.mark.parametrize("penalty", [0.0, 1e-6, 0.01, 1.0, 1e6])
def test_the_correction_is_that_of_dense_least_squares(kind, penalty):
    product, b, a = means(kind=kind)
    wanted = reference(product, b, a, penalty)
    # Of nearly dependent rows, 1e-7 apart, seven digits are lost.
    allowed = 1e-5 if kind == "nearly" else 1e-10
    for given in (product, product.dense()):
        found = ridge_correction(given, b, a, penalty)
        assert found.shape == (D, R)
        np.testing.assert_allclose(found, wanted, atol=allowed, rtol=allowed)


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0])
def test_the_correction_is_the_published_closed_form(penalty):
    product, b, a = means()
    rest = product.dense() - b @ a
    closed = rest @ a.T @ np.linalg.inv(a @ a.T + penalty * np.eye(R))
    np.testing.assert_allclose(ridge_correction(product, b, a, penalty), closed)


def test_no_other_correction_has_a_smaller_objective():
    product, b, a = means()
    penalty = 0.1

    def objective(change):
        rest = product.dense() - (b + change) @ a
        return np.sum(rest**2) + penalty * np.sum(change**2)

    found = ridge_correction(product, b, a, penalty)
    rng = np.random.default_rng(1)
    least = objective(found)
    assert least < objective(np.zeros_like(b))
    for size in (1e-3, 1e-1, 10):
        for _ in range(20):
            assert objective(found + size * rng.standard_normal(b.shape)) > least


def test_sites_that_agree_need_no_correction():
    _, b, a = means()
    np.testing.assert_allclose(
        ridge_correction(Factors(b, a), b, a, 0.0), 0, atol=1e-13
    )


def test_a_shared_a_is_corrected_to_the_exact_mean():
    # With one A at all sites, as in FFA, the mean of B is already right; a wrong B is
    # made right.
    _, b, a = means()
    wrong = b + 1.0
    found = ridge_correction(Factors(b, a), wrong, a, 0.0)
    np.testing.assert_allclose(wrong + found, b, atol=1e-12)


def test_a_larger_penalty_corrects_less():
    product, b, a = means()
    norms = [
        np.linalg.norm(ridge_correction(product, b, a, penalty))
        for penalty in (0.0, 0.1, 1.0, 10.0, 1e9)
    ]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-6


def test_one_row_and_more_rows_than_columns():
    rng = np.random.default_rng(0)
    for d, r, k in ((1, 1, 4), (4, 1, 1), (6, 5, 3)):
        b, a = rng.standard_normal((d, r)), rng.standard_normal((r, k))
        product = Factors(rng.standard_normal((d, 2)), rng.standard_normal((2, k)))
        np.testing.assert_allclose(
            ridge_correction(product, b, a, 0.2),
            reference(product, b, a, 0.2),
            atol=1e-12,
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    for which, name in (
        ("p", "P"),
        ("b", "B_mean"),
        ("a", "A_mean"),
        ("f", "P's left"),
    ):
        product, b, a = means()
        dense = product.dense()
        {"p": dense, "b": b, "a": a, "f": product.b}[which][0, 0] = bad
        with pytest.raises(MatrixError, match=f"^{name} has NaN or infinity"):
            ridge_correction(product if which == "f" else dense, b, a, 0.1)


@pytest.mark.parametrize("penalty", [-1e-9, math.nan, math.inf])
def test_other_penalties_are_refused(penalty):
    with pytest.raises(MatrixError, match="penalty"):
        ridge_correction(*means(), penalty)


def test_other_shapes_are_refused():
    product, b, a = means()
    with pytest.raises(MatrixError, match=r"the product has shape \(11, 9\)"):
        ridge_correction(product.dense()[1:], b, a, 0.1)
    with pytest.raises(MatrixError, match=r"the product has shape \(12, 8\)"):
        ridge_correction(Factors(product.b, product.a[:, 1:]), b, a, 0.1)
    with pytest.raises(MatrixError, match="no product"):
        ridge_correction(product, b[:, 1:], a, 0.1)
