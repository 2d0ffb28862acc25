"""The leading part of a sum of products from two narrow sums."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from secfed.errors import MatrixError
from secfed.lowrank import (
    Widths,
    column_basis,
    from_projection,
    project,
    projections,
    truncated_dense,
)
from tests.lowrank_sums import SEED, UNEQUAL, dense, relative, sites


def two_sums(parts, width, rank, seed=SEED):
    d, k = len(parts[0][0]), parts[0][1].shape[1]
    omega = projections(seed, Widths(d, k, width, width)).omega
    basis = column_basis(sum(b @ (a @ omega) for b, a in parts))
    total = sum(project(basis, b, a) for b, a in parts)
    return from_projection(basis, total, rank)


@pytest.mark.parametrize("width", [19, 25, 50])
def test_two_sums_are_exact_from_the_sum_of_ranks_on(width):
    parts = sites(UNEQUAL, 70, 50)
    assert relative(two_sums(parts, width, 19).dense(), dense(parts)) < 1e-9
    best = truncated_dense(dense(parts), 8)
    np.testing.assert_allclose(
        two_sums(parts, width, 8).dense(), best.dense(), atol=1e-8
    )


def test_two_narrow_sums_come_close_to_the_best_of_their_rank():
    # Of noise alone, whose singular values hardly fall. One sum of that width fails.
    parts = sites([8] * 10, 300, 300)
    w = dense(parts)
    best = relative(truncated_dense(w, 8).dense(), w)
    assert best < relative(two_sums(parts, 16, 8).dense(), w) < 1.1 * best


def test_the_expected_error_of_a_basis_is_bounded():
    # Halko et al. 2011, theorem 10.5: r = 6, p = 12, a falling spectrum.
    rng = np.random.default_rng(5)
    u, _ = np.linalg.qr(rng.standard_normal((60, 40)))
    v, _ = np.linalg.qr(rng.standard_normal((50, 40)))
    s = 0.7 ** np.arange(40)
    parts = [(u * s, v.T)]
    squares = []
    for number in range(40):
        seed = hashlib.sha256(bytes([number])).digest()
        made = two_sums(parts, 12, 12, seed)
        squares.append(np.linalg.norm(made.dense() - dense(parts)) ** 2)
    assert np.mean(squares) <= (1 + 6 / 5) * np.sum(s[6:] ** 2)


def test_two_sums_refuse_what_does_not_fit():
    (b, a), *_ = sites([3], 30, 20)
    basis = column_basis(b)
    with pytest.raises(MatrixError, match="more columns than rows"):
        column_basis(a)
    with pytest.raises(MatrixError, match="no product"):
        project(basis[1:], b, a)
    with pytest.raises(MatrixError, match="no product"):
        from_projection(basis, np.ones((4, 20)), 3)
    with pytest.raises(MatrixError, match=r"^Y has NaN"):
        column_basis(b * math.nan)
