"""Decompositions, norms and truncations of products, against dense float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secfed.errors import MatrixError
from secfed.lowrank import product_norm, product_svd, truncated, truncated_dense

# Shapes (d, r, k): tall, wide, one row, one column, more ranks than rows or columns.
SHAPES = [
    (30, 4, 20),
    (7, 3, 50),
    (1, 1, 9),
    (9, 1, 1),
    (5, 8, 40),
    (40, 9, 6),
    (6, 6, 6),
]
KINDS = ["full", "deficient", "zero", "cancelling", "huge", "tiny"]


def factors(d, r, k, kind="full", seed=0):
    rng = np.random.default_rng([seed, d, r, k])
    b, a = rng.standard_normal((d, r)), rng.standard_normal((r, k))
    if kind == "deficient":
        b[:, -1] = 2 * b[:, 0]
        a[-1] = 0
    if kind == "zero":
        b[:] = 0
    if kind == "cancelling" and r > 1:  # the product is far below its terms
        b[:, 1], a[1] = b[:, 0], -a[0] + 1e-9 * a[1]
        b[:, 2:] = 0
    if kind == "huge":
        b *= 1e90
    if kind == "tiny":
        b *= 1e-90
    return b, a


def scale_of(b, a):
    return np.linalg.norm(b) * np.linalg.norm(a)


def best_error(w, rank):
    return float(np.linalg.norm(np.linalg.svd(w, compute_uv=False)[rank:]))


def is_orthonormal(rows):
    return np.allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_decomposition_is_that_of_the_dense_product(shape, kind):
    b, a = factors(*shape, kind)
    found = product_svd(b, a)
    rounding = 1e-14 * scale_of(b, a)
    assert found.s.shape == (min(shape),)
    assert is_orthonormal(found.u.T)
    assert is_orthonormal(found.vt)
    assert (np.diff(found.s) <= 0).all()
    assert (found.s >= 0).all()
    dense = np.linalg.svd(b @ a, compute_uv=False)[: min(shape)]
    np.testing.assert_allclose(found.s, dense, rtol=0, atol=rounding)
    again = (found.u * found.s) @ found.vt
    np.testing.assert_allclose(again, b @ a, rtol=0, atol=rounding)


def test_signs_do_not_depend_on_the_signs_of_the_factors():
    b, a = factors(30, 4, 20)
    one, other = product_svd(b, a), product_svd(-b, -a)
    np.testing.assert_allclose(one.u, other.u, atol=1e-12)
    assert (one.vt[np.arange(4), np.abs(one.vt).argmax(axis=1)] > 0).all()


def test_a_zero_product_keeps_the_row_space_of_a():
    # What FedSVD needs before the first round, where B is zero.
    b, a = factors(30, 4, 20, "zero")
    made = truncated(b, a, 4, split="left")
    assert not made.b.any()
    assert is_orthonormal(made.a)
    outside = a - (a @ made.a.T) @ made.a
    np.testing.assert_allclose(outside, 0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["balanced", "left"])
def test_no_product_of_the_rank_is_nearer(shape, kind, split):
    b, a = factors(*shape, kind)
    w = b @ a
    for rank in range(1, min(w.shape) + 1):
        made = truncated(b, a, rank, split=split)
        assert made.b.shape == (len(b), rank)
        assert made.a.shape == (rank, a.shape[1])
        error = np.linalg.norm(w - made.dense())
        assert error == pytest.approx(
            best_error(w, rank), rel=1e-10, abs=1e-14 * scale_of(b, a)
        )


def test_singular_values_go_to_both_factors_or_to_b():
    b, a = factors(30, 4, 20)
    s = product_svd(b, a).s[:3]
    balanced, left = truncated(b, a, 3), truncated(b, a, 3, split="left")
    np.testing.assert_allclose(balanced.b.T @ balanced.b, np.diag(s), atol=1e-12)
    np.testing.assert_allclose(balanced.a @ balanced.a.T, np.diag(s), atol=1e-12)
    np.testing.assert_allclose(left.b.T @ left.b, np.diag(s**2), atol=1e-10)
    assert is_orthonormal(left.a)


def test_a_rank_above_that_of_the_factors_adds_zeros():
    b, a = factors(30, 4, 20)
    made = truncated(b, a, 7)
    assert not made.b[:, 4:].any()
    assert not made.a[4:].any()
    np.testing.assert_allclose(made.dense(), b @ a, atol=1e-12)


def spectrum(name, size):
    return {
        "falling": 10.0 ** -np.arange(size),
        "slow": 0.8 ** np.arange(size),
        "flat": np.ones(size),
        "cliff": np.r_[np.ones(3), np.full(size - 3, 1e-9)],
        "rank three": np.r_[np.ones(3), np.zeros(size - 3)],
        "zero": np.zeros(size),
    }[name]


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (1, 30), (30, 1)])
@pytest.mark.parametrize(
    "name", ["falling", "slow", "flat", "cliff", "rank three", "zero"]
)
@pytest.mark.parametrize("size", [1e-80, 1.0, 1e80])
def test_no_factors_of_the_rank_are_nearer_to_a_dense_matrix(shape, name, size):
    rng = np.random.default_rng(list(shape))
    small = min(shape)
    u, _ = np.linalg.qr(rng.standard_normal((shape[0], small)))
    v, _ = np.linalg.qr(rng.standard_normal((shape[1], small)))
    w = size * (u * spectrum(name, max(small, 3))[:small]) @ v.T
    for rank in {1, min(5, small), small}:
        made = truncated_dense(w, rank)
        assert made.b.shape == (shape[0], rank)
        assert made.a.shape == (rank, shape[1])
        error = np.linalg.norm(w - made.dense())
        allowed = best_error(w, rank) + 1e-12 * np.linalg.norm(w)
        assert error <= allowed * (1 + 1e-12)


def test_dense_and_thin_truncations_agree():
    b, a = factors(30, 4, 20)
    for split in ("balanced", "left"):
        thin, dense = (
            truncated(b, a, 2, split=split),
            truncated_dense(b @ a, 2, split=split),
        )
        np.testing.assert_allclose(thin.b, dense.b, atol=1e-10)
        np.testing.assert_allclose(thin.a, dense.a, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_is_that_of_the_dense_product(shape, kind):
    b, a = factors(*shape, kind)
    rounding = 1e-14 * scale_of(b, a)
    assert product_norm(b, a) == pytest.approx(
        np.linalg.norm(b @ a), rel=1e-12, abs=rounding
    )


def test_the_norm_of_what_cancels_is_small_and_not_negative():
    # The trace of the Gram matrices is a difference of large numbers here.
    below = 0
    for seed in range(50):
        b, a = factors(30, 2, 20, seed=seed)
        b[:, 1], a[1] = 3 * b[:, 0], -a[0] / 3
        below += np.sum((b.T @ b) * (a @ a.T)) < 0
        assert 0 <= product_norm(b, a) <= 1e-14 * scale_of(b, a)
    assert below > 0


def test_float32_is_computed_in_float64():
    b, a = (x.astype(np.float32) for x in factors(30, 4, 20))
    wide = b.astype(np.float64) @ a.astype(np.float64)
    assert product_norm(b, a) == pytest.approx(np.linalg.norm(wide), rel=1e-13)
    assert truncated(b, a, 2).b.dtype == np.float64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["B", "A"])
def test_numbers_that_are_not_finite_are_refused(bad, which):
    b, a = factors(30, 4, 20)
    (b if which == "B" else a)[2, 3] = bad
    for call in (product_svd, product_norm, lambda b, a: truncated(b, a, 2)):
        with pytest.raises(MatrixError, match=f"^{which} has NaN or infinity"):
            call(b, a)
    with pytest.raises(MatrixError, match=r"^W has NaN or infinity"):
        truncated_dense(b if which == "B" else a, 2)


def test_shapes_without_a_product_are_refused():
    b, a = factors(30, 4, 20)
    with pytest.raises(MatrixError, match=r"\(30, 4\) and A of shape \(3, 20\)"):
        product_svd(b, a[:3])
    for wrong in (b[0], b[:0], b[np.newaxis]):
        with pytest.raises(MatrixError, match="expected a matrix"):
            product_norm(wrong, a)


@pytest.mark.parametrize("rank", [-1, 0, 21])
def test_ranks_that_no_such_matrix_has_are_refused(rank):
    b, a = factors(30, 4, 20)
    with pytest.raises(MatrixError, match="choose 1 to 20"):
        truncated(b, a, rank)
    with pytest.raises(MatrixError, match="choose 1 to 20"):
        truncated_dense(b @ a, rank)
