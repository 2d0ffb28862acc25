"""Sums of products from sums of sketches that were rounded into a ring.

A step is 2**-bits of the largest number in any site's sketches, and the mean of the
sites is compared; for n sites a ring of bits + 1 + log2(n) bits holds that.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from secfed.codec import Codec
from secfed.errors import MatrixError
from secfed.lowrank import Widths, choose_widths, from_sketches, projections, sketch
from tests.lowrank_sums import SEED, dense, relative, sites


def rounded(values, step, rng):
    """To multiples of a step, at random and unbiased, as the codec does."""
    return step * np.floor(values / step + rng.random(values.shape))


def rounding_error(count, size, bits, extra=8, seed=0):
    """Relative error of the mean product, through sketches and densely."""
    ranks = [8] * count
    parts = sites(ranks, size, size, seed)
    right = min(sum(ranks) + extra, size)
    widths = Widths(size, size, right, min(right + 8, size))
    public = projections(hashlib.sha256(bytes([seed])).digest(), widths)
    rng = np.random.default_rng(seed)
    sent = [sketch(b, a, public) for b, a in parts]
    step = 2.0**-bits * max(max(np.abs(s.y).max(), np.abs(s.z).max()) for s in sent)
    y = sum(rounded(s.y, step, rng) for s in sent) / count
    z = sum(rounded(s.z, step, rng) for s in sent) / count
    wanted = dense(parts) / count
    found = from_sketches(y, z, public, min(sum(ranks), size))
    error = relative(found.factors.dense(), wanted)
    if widths.left > widths.right + 1:
        assert 0.3 < found.error / error < 3
    return error


@pytest.mark.parametrize(("bits", "tolerance"), [(24, 1e-5), (16, 2e-3)])
@pytest.mark.parametrize(
    ("count", "size"), [(4, 384), (10, 384), (4, 1024), (10, 1024)]
)
def test_rounding_is_a_small_part_of_the_sum(bits, tolerance, count, size):
    # Measured over 20 seeds: at most 4e-6 and 8e-4 (docs/aggregation.md).
    errors = [rounding_error(count, size, bits, seed=seed) for seed in range(3)]
    assert max(errors) < tolerance
    assert min(errors) > 2.0**-bits / 100  # rounding there was


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "tolerance"), [(24, 1e-4), (16, 2e-2)])
def test_rounding_is_a_small_part_of_the_sum_of_a_hundred(bits, tolerance):
    assert choose_widths([8] * 100, 1024, 1024).dense_is_smaller
    assert rounding_error(100, 1024, bits) < tolerance


def test_a_full_sum_is_better_sent_densely():
    # 100 sites of rank 8 fill a matrix of 384 columns: widths cannot be sampled over.
    widths = choose_widths([8] * 100, 384, 384)
    assert widths.dense_is_smaller
    assert (widths.right, widths.left) == (384, 384)
    # The dense mean of as many numbers is off by some 2e-7.
    assert rounding_error(100, 384, 24) > 1e-6


def test_without_oversampling_rounding_costs_more():
    with_, without = (
        [rounding_error(4, 384, 24, extra, seed) for seed in range(12)]
        for extra in (8, 0)
    )
    assert np.median(without) > 2 * np.median(with_)
    assert max(without) > 10 * max(with_)


def test_the_masked_path_agrees_within_the_codecs_error():
    count, size = 10, 384
    parts = sites([8] * count, size, size)
    public = projections(SEED, choose_widths([8] * count, size, size))
    sent = [
        {"y": s.y.astype(np.float32), "z": s.z.astype(np.float32)}
        for s in (sketch(b, a, public) for b, a in parts)
    ]
    largest = max(float(np.abs(x).max()) for one in sent for x in one.values())
    codec = Codec.for_tensors(sent[0], value_range=2 * largest, num_sites=count)
    total = np.zeros(codec.length, dtype=np.uint32)
    for number, one in enumerate(sent):
        source = np.random.default_rng(number)
        total += codec.encode(one, source).vector
    mean = codec.decode_mean(total, count)
    made = from_sketches(mean["y"], mean["z"], public, 80).factors.dense()
    assert relative(made, dense(parts) / count) < 1e-5


def test_a_ring_that_is_too_coarse_is_noticed():
    with pytest.raises(MatrixError, match="the ring is too coarse"):
        rounding_error(10, 384, 4)
