"""Sums of products from sums of sketches: exactness, widths, refusals."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from protocols.prg import Stream
from secfed.errors import MatrixError
from secfed.lowrank import (
    Widths,
    choose_widths,
    from_sketches,
    narrow_widths,
    projections,
    sketch,
    truncated_dense,
)
from tests.lowrank_sums import SEED, UNEQUAL, dense, relative, sites, summed

# Exactness


@pytest.mark.parametrize("ranks", [[4], [8] * 4, UNEQUAL, [1] * 20])
@pytest.mark.parametrize("shape", [(70, 50), (50, 70), (300, 40)])
def test_the_sum_comes_back(ranks, shape):
    public = projections(SEED, choose_widths(ranks, *shape))
    parts = sites(ranks, *shape)
    total = summed([sketch(b, a, public) for b, a in parts])
    rank = min(sum(ranks), *shape)
    made = from_sketches(total.y, total.z, public, rank).factors
    assert made.b.shape == (shape[0], rank)
    assert made.a.shape == (rank, shape[1])
    assert relative(made.dense(), dense(parts)) < 1e-10


@pytest.mark.parametrize("split", ["balanced", "left"])
def test_a_lower_rank_is_the_best_one_of_the_sum(split):
    parts = sites(UNEQUAL, 70, 50)
    public = projections(SEED, choose_widths(UNEQUAL, 70, 50))
    total = summed([sketch(b, a, public) for b, a in parts])
    made = from_sketches(total.y, total.z, public, 6, split=split).factors
    best = truncated_dense(dense(parts), 6, split=split)
    np.testing.assert_allclose(made.b, best.b, atol=1e-8)
    np.testing.assert_allclose(made.a, best.a, atol=1e-8)


def test_sites_that_drop_out_or_send_nothing_change_no_width():
    parts = sites(UNEQUAL, 70, 50)
    parts[1] = (0 * parts[1][0], parts[1][1])  # B is zero before training
    public = projections(SEED, choose_widths(UNEQUAL, 70, 50))
    total = summed([sketch(b, a, public) for b, a in parts[:3]])
    made = from_sketches(total.y, total.z, public, 10).factors
    assert relative(made.dense(), dense(parts[:3])) < 1e-10
    nothing = sketch(*parts[1], public)
    zero = from_sketches(nothing.y, nothing.z, public, 3).factors
    assert not zero.b.any()
    assert not zero.dense().any()


def test_the_order_of_sites_changes_nothing_but_rounding():
    parts = sites(UNEQUAL, 70, 50)
    public = projections(SEED, choose_widths(UNEQUAL, 70, 50))
    made = []
    for order in (parts, parts[::-1]):
        total = summed([sketch(b, a, public) for b, a in order])
        made.append(from_sketches(total.y, total.z, public, 8).factors.dense())
    assert relative(*made) < 1e-10


def test_factors_of_single_coordinates_come_back():
    # Signs alone as Omega would meet singular submatrices here.
    ranks = [2, 2]
    parts = [(np.eye(9, 2), np.eye(2, 7)), (np.eye(9, 2, -4), np.eye(2, 7, 3))]
    for number in range(50):
        seed = hashlib.sha256(bytes([number])).digest()
        public = projections(seed, choose_widths(ranks, 9, 7))
        total = summed([sketch(b, a, public) for b, a in parts])
        made = from_sketches(total.y, total.z, public, 4).factors
        assert relative(made.dense(), dense(parts)) < 1e-9


def test_sketches_are_linear_in_the_product():
    public = projections(SEED, choose_widths(UNEQUAL, 70, 50))
    b, a = sites([5], 70, 50)[0]
    one = sketch(b, a, public)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))
    other = sketch(3 * b @ rotation, rotation.T @ a, public)
    np.testing.assert_allclose(other.y, 3 * one.y, atol=1e-10)
    np.testing.assert_allclose(other.z, 3 * one.z, atol=1e-10)


# Widths


def test_widths_are_the_sum_of_ranks_and_some_more():
    widths = choose_widths([8] * 10, 1024, 1024)
    assert (widths.right, widths.left) == (88, 96)
    assert widths.num_values == 1024 * (88 + 96)
    assert not widths.dense_is_smaller
    widths.require([8] * 10)
    widths.require([80])


@pytest.mark.parametrize(
    ("sites_count", "d", "k", "is_smaller"),
    [
        (10, 1024, 1024, False),
        (62, 1024, 1024, False),  # 2 * 496 + 24 columns of 1,024
        (63, 1024, 1024, True),
        (100, 1024, 1024, True),
        (4, 384, 384, False),
        (100, 384, 384, True),
        (100, 4096, 4096, False),
    ],
)
def test_dense_is_smaller_from_about_half_of_the_columns(sites_count, d, k, is_smaller):
    widths = choose_widths([8] * sites_count, d, k)
    assert widths.dense_is_smaller is is_smaller
    assert (widths.num_values >= d * k) is is_smaller


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (1, 9), (9, 1), (6, 6)])
@pytest.mark.parametrize("ranks", [[1], [1, 1, 1], [1] * 100])
def test_widths_never_exceed_the_matrix_and_pass_their_own_check(shape, ranks):
    widths = choose_widths(ranks, *shape)
    assert widths.right <= min(shape)
    assert widths.right <= widths.left <= shape[0]
    widths.require(ranks)


@pytest.mark.parametrize(("right", "left"), [(79, 96), (85, 87), (40, 48), (80, 80)])
def test_widths_below_the_sum_of_ranks_are_refused(right, left):
    widths = Widths(1024, 1024, right, left)
    with pytest.raises(MatrixError, match=r"10 products.* add up to 80.* 80 and 88"):
        widths.require([8] * 10)


def test_ranks_and_widths_that_no_matrix_has_are_refused():
    with pytest.raises(MatrixError, match="no site"):
        choose_widths([], 30, 20)
    for rank in (0, 21):
        with pytest.raises(MatrixError, match="choose 1 to 20"):
            choose_widths([3, rank], 30, 20)
    for right, left in ((0, 5), (21, 25), (5, 4), (5, 31)):
        with pytest.raises(MatrixError, match="choose"):
            Widths(30, 20, right, left)


@pytest.mark.parametrize("shape", [(1024, 1024), (300, 4000), (4000, 300), (40, 40)])
@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_narrow_widths_are_the_widest_of_a_share(shape, share):
    widths = narrow_widths(share, *shape)
    assert widths.left == 2 * widths.right + 1
    assert widths.num_values <= share * widths.dense_values
    one_more = (widths.right + 1) * shape[0] + (widths.left + 2) * shape[1]
    assert one_more > share * widths.dense_values


def test_shares_that_no_sketches_have_are_refused():
    for share in (-0.1, 0.0, 1.1, math.nan):
        with pytest.raises(MatrixError, match="no share"):
            narrow_widths(share, 1024, 1024)
    with pytest.raises(MatrixError, match=r"no sketches have 0\.1%"):
        narrow_widths(0.001, 1024, 1024)


# Public randomness


def test_projections_depend_on_the_seed_alone_and_have_their_variance():
    widths = choose_widths([8] * 4, 384, 200)
    public = projections(SEED, widths)
    again, other = projections(SEED, widths), projections(bytes(32), widths)
    assert np.array_equal(public.omega, again.omega)
    assert np.array_equal(public.psi, again.psi)
    assert not np.isclose(public.omega, other.omega).any()
    assert public.omega.shape == (200, 40)
    assert public.psi.shape == (48, 384)
    for matrix, size in ((public.omega, 200), (public.psi, 384)):
        assert np.abs(matrix).max() <= math.sqrt(3 / size)
        # Of 8,000 numbers or more; five standard errors, false alarms below 1e-5.
        assert abs(matrix.mean()) * math.sqrt(size * matrix.size) < 5
        spread = math.sqrt(0.8 / matrix.size)  # of a uniform number's square
        assert abs((matrix**2).mean() * size - 1) < 5 * spread


def test_projections_are_these_numbers_on_every_machine():
    public = projections(bytes(32), Widths(4, 3, 2, 2))
    stream = Stream(hashlib.sha256(b"secfed/lowrank/omega" + bytes(32)).digest())
    draws = [int.from_bytes(stream.read(4), "little") for _ in range(6)]
    wanted = [(2 * x + 1 - 2**32) * (1.0 * 2.0**-32) for x in draws]
    assert public.omega.ravel().tolist() == wanted
    assert float(public.omega[0, 0]).hex() == KNOWN_OMEGA
    assert float(public.psi[1, 3]).hex() == KNOWN_PSI


KNOWN_OMEGA = "0x1.0873642e00000p-1"
KNOWN_PSI = "0x1.213404e26fd6dp-2"


def test_a_seed_has_32_bytes():
    with pytest.raises(MatrixError, match="32 bytes, not 31"):
        projections(bytes(31), Widths(4, 3, 2, 2))


# Sums that sketches cannot hold


def test_narrow_sketches_come_near_the_best_where_singular_values_fall():
    # 100 sites that agree on half of their factors, at a quarter of the bytes.
    rng = np.random.default_rng(3)
    common = rng.standard_normal((300, 4)), rng.standard_normal((4, 300))
    parts = [(b + common[0], a + common[1]) for b, a in sites([4] * 100, 300, 300)]
    w = dense(parts)
    best = relative(truncated_dense(w, 4).dense(), w)
    errors = []
    for widths in (narrow_widths(0.25, 300, 300), Widths(300, 300, 33, 41)):
        assert widths.num_values <= widths.dense_values / 4
        public = projections(SEED, widths)
        total = summed([sketch(b, a, public) for b, a in parts])
        with pytest.raises(MatrixError, match="estimated error"):
            from_sketches(total.y, total.z, public, 4)
        made = from_sketches(total.y, total.z, public, 4, tolerance=math.inf).factors
        errors.append(relative(made.dense(), w))
    assert best < errors[0] < 1.3 * best
    assert errors[1] > errors[0]  # as many numbers, but few rows to spare


@pytest.mark.parametrize("right", [20, 40, 72])
def test_a_sum_of_a_higher_rank_is_noticed(right):
    parts = sites([8] * 10, 300, 300)
    public = projections(SEED, Widths(300, 300, right, right + 8))
    total = summed([sketch(b, a, public) for b, a in parts])
    with pytest.raises(MatrixError, match=f"its rank is above {right}"):
        from_sketches(total.y, total.z, public, 8)
    made = from_sketches(total.y, total.z, public, 8, tolerance=math.inf).factors
    best = truncated_dense(dense(parts), 8)
    assert relative(made.dense(), dense(parts)) > relative(best.dense(), dense(parts))


@pytest.mark.parametrize(
    ("right", "left"), [(16, 24), (40, 48), (40, 81), (60, 121), (76, 84)]
)
@pytest.mark.parametrize("common", [0.0, 1.0])
def test_the_estimated_error_is_near_the_true_one(right, left, common):
    rng = np.random.default_rng(7)
    shared = common * rng.standard_normal((300, 8)), rng.standard_normal((8, 300))
    parts = [
        (b + shared[0], a + common * shared[1]) for b, a in sites([8] * 10, 300, 300)
    ]
    w = dense(parts)
    for number in range(5):
        seed = hashlib.sha256(bytes([number])).digest()
        public = projections(seed, Widths(300, 300, right, left))
        total = summed([sketch(b, a, public) for b, a in parts])
        found = from_sketches(total.y, total.z, public, 300, tolerance=math.inf)
        assert 0.5 < found.error / relative(found.factors.dense(), w) < 2


def test_the_error_of_an_exact_sum_is_rounding_and_without_rows_to_spare_unknown():
    parts = sites([4], 70, 50)
    for left, known in ((12, True), (6, True), (5, False), (4, False)):
        public = projections(SEED, Widths(70, 50, 4, left))
        total = sketch(*parts[0], public)
        found = from_sketches(total.y, total.z, public, 4)
        assert (found.error < 1e-12) is known
        assert math.isnan(found.error) is not known
        assert relative(found.factors.dense(), dense(parts)) < 1e-9


def test_sketches_that_do_not_belong_together_are_noticed():
    parts = sites(UNEQUAL, 70, 50)
    public = projections(SEED, choose_widths(UNEQUAL, 70, 50))
    sent = [sketch(b, a, public) for b, a in parts]
    total, without_first = summed(sent), summed(sent[1:])
    with pytest.raises(MatrixError, match="estimated error"):
        from_sketches(without_first.y, total.z, public, 8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["Y", "Z"])
def test_numbers_that_are_not_finite_are_refused(bad, which):
    (b, a), *_ = sites([3], 30, 20)
    public = projections(SEED, choose_widths([3], 30, 20))
    total = sketch(b, a, public)
    (total.y if which == "Y" else total.z)[0, 0] = bad
    with pytest.raises(MatrixError, match=f"^{which} has NaN or infinity"):
        from_sketches(total.y, total.z, public, 3)
    b[0, 0] = bad
    with pytest.raises(MatrixError, match=r"^B has NaN or infinity"):
        sketch(b, a, public)


def test_other_shapes_are_refused():
    (b, a), *_ = sites([3], 30, 20)
    public = projections(SEED, choose_widths([3], 30, 20))
    total = sketch(b, a, public)
    with pytest.raises(MatrixError, match=r"the product has shape \(29, 20\)"):
        sketch(b[1:], a, public)
    with pytest.raises(MatrixError, match="Y has shape"):
        from_sketches(total.y[:, 1:], total.z, public, 3)
    with pytest.raises(MatrixError, match="Z has shape"):
        from_sketches(total.y, total.z[1:], public, 3)
    with pytest.raises(MatrixError, match="choose 1 to 20"):
        from_sketches(total.y, total.z, public, 21)
