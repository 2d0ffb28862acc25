"""The masked lane: fixed names, fixed formats, and sums that are exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfed.codec import Codec, Lane, Metric
from secfed.errors import CodecError

LOSS = Metric("loss_sum", 1e6)
GAIN = Metric("gain", 3.5)


def add(*lanes) -> np.ndarray:
    return np.sum(lanes, axis=0, dtype=np.uint64)


def test_a_private_update_sends_its_count_and_what_was_cut_and_no_more():
    codec = Codec((("x", (5,)),), 1.0, 4)
    assert codec.lane == Lane(num_sites=4, num_values=5)
    assert codec.lane.names == ("count", "saturated")
    assert codec.lane.encode(3).tolist() == [1, 3]
    total = add(codec.lane.encode(3), codec.lane.encode(0), codec.lane.encode(5))
    assert codec.lane.decode(total, 3).saturated == 8
    with pytest.raises(CodecError, match="other metrics"):
        codec.lane.encode(3, {"loss_sum": 1.0})


@given(
    losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=7),
    gains=st.lists(st.floats(-4, 4), min_size=7, max_size=7),
)
def test_metrics_add_up_to_the_sum_of_the_clipped_numbers(losses, gains):
    lane = Lane(7, 100, (LOSS, GAIN))
    assert lane.names == ("count", "saturated", "loss_sum", "gain", "clipped_metrics")
    losses = losses or [0.5]
    pairs = list(zip(losses, gains, strict=False))
    total = add(
        *(lane.encode(1, {"gain": gain, "loss_sum": loss}) for loss, gain in pairs)
    )
    read = lane.decode(total, len(pairs))
    assert read.saturated == len(pairs)
    for index, metric in enumerate((LOSS, GAIN)):
        largest = Fraction(metric.largest)
        numbers = [max(-largest, min(Fraction(p[index]), largest)) for p in pairs]
        error = abs(Fraction(read.metrics[metric.name]) - sum(numbers))
        assert error <= len(pairs) * Fraction(1, 2**33)
    assert read.clipped_metrics == sum(
        (abs(loss) > LOSS.largest) + (abs(gain) > GAIN.largest) for loss, gain in pairs
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_widest_range_does_not_wrap(sign):
    sites = 5
    lane = Lane(sites, 1, (Metric("m", (2.0**31 - 1) / sites),))
    one = lane.encode(0, {"m": sign * 1e300})
    read = lane.decode(add(*[one] * sites), sites)
    assert read.metrics["m"] == pytest.approx(sign * (2.0**31 - 1), rel=1e-12)
    assert read.clipped_metrics == sites


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ((Metric("count", 1.0),), "twice"),
        ((LOSS, LOSS), "twice"),
        ((Metric("m", 0.0),), "range"),
        ((Metric("m", float("nan")),), "range"),
        ((Metric("m", 2.0**31 / 4),), "range"),
    ],
)
def test_a_lane_that_could_overflow_is_refused(metrics, message):
    with pytest.raises(CodecError, match=message):
        Lane(4, 10, metrics)


def test_a_lane_without_sites_is_refused():
    with pytest.raises(CodecError, match="at least one"):
        Lane(0, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused(bad):
    with pytest.raises(CodecError, match="loss_sum"):
        Lane(4, 10, (LOSS,)).encode(0, {"loss_sum": bad})


@pytest.mark.parametrize("saturated", [-1, 11])
def test_a_count_that_no_update_has_is_refused(saturated):
    with pytest.raises(CodecError, match="cut"):
        Lane(4, 10).encode(saturated)


def test_a_sum_that_no_lanes_add_up_to_is_refused():
    lane = Lane(4, 10, (GAIN,))
    good = add(*[lane.encode(1, {"gain": -3.5})] * 3)
    assert lane.decode(good, 3).metrics == {"gain": -10.5}
    for survivors in (2, 4):
        with pytest.raises(CodecError, match="count"):
            lane.decode(good, survivors)
    for index, value in ((1, 31), (2, 2**63), (2, (11 * 2**32)), (3, 4)):
        bad = good.copy()
        bad[index] = value
        with pytest.raises(CodecError, match=r"saturated|gain|clipped"):
            lane.decode(bad, 3)
    for bad in (good[:-1], good.astype(np.int64)):
        with pytest.raises(CodecError, match="shape"):
            lane.decode(bad, 3)
    five = add(good, *[lane.encode(0, {"gain": 0.0})] * 2)
    with pytest.raises(CodecError, match="count"):
        lane.decode(five, 5)
