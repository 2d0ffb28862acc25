"""decode(sum of encodings) is the sum of the updates within the stated error."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols.prg import Stream
from secfed.codec import Codec
from secfed.codec.packing import INTEGER_DTYPES, from_words, levels_of, to_words
from secfed.codec.rotation import block_length, rotate, unrotate
from secfed.codec.rounding import round_into, scale_factor
from secfed.errors import CodecError
from secfed.privacy.noise import simulation_stream

SHAPES = (("q.lora_A", (2, 5)), ("q.lora_B", (3, 2)), ("head.bias", (4,)))
SCALES = (0.5, 3.0, 60.0)
SEED = bytes(range(32))
RINGS = (16, 32, 64)


class HashStream:
    """Bytes from SHAKE-256; the seed makes a test repeatable."""

    def __init__(self, seed: int) -> None:
        self._seed, self._reads = seed, 0

    def bytes(self, size: int, /) -> bytes:
        self._reads += 1
        return hashlib.shake_256(f"{self._seed}|{self._reads}".encode()).digest(size)


class Constant:
    """A dither that is the same for every number."""

    def __init__(self, value: int) -> None:
        self._value = value

    def fill(self, out) -> None:
        out[...] = self._value


def make(flat) -> dict[str, np.ndarray]:
    update, start = {}, 0
    for name, shape in SHAPES:
        size = int(np.prod(shape))
        part = np.asarray(flat[start : start + size], dtype=np.float32)
        update[name] = part.reshape(shape)
        start += size
    return update


def flat_of(tensors) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name, _ in SHAPES]).astype(float)


LENGTH = sum(int(np.prod(shape)) for _, shape in SHAPES)
EACH_SCALE = np.repeat(SCALES, [int(np.prod(shape)) for _, shape in SHAPES])


def clipped(update, codec: Codec) -> list[Fraction]:
    """The slow, obvious clip in exact numbers (the norm in float64)."""
    values = [Fraction(float(x)) for x in flat_of(update)]
    if codec.update_norm is not None:
        norm = np.linalg.norm(flat_of(update))
        if norm > codec.update_norm:
            values = [x * Fraction(codec.update_norm) / Fraction(norm) for x in values]
    limits = [Fraction(codec.value_range) * Fraction(s) for s in each_scale(codec)]
    return [max(-r, min(x, r)) for x, r in zip(values, limits, strict=True)]


def each_scale(codec: Codec) -> list[float]:
    return EACH_SCALE.tolist() if codec.scales else [1.0] * LENGTH


def ring_sum(encoded, bits: int) -> np.ndarray:
    """Plain Python integers, reduced once at the end."""
    columns = zip(*(e.vector.tolist() for e in encoded), strict=True)
    return np.array([sum(c) % 2**bits for c in columns], dtype=f"uint{bits}")


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
near = st.floats(-4.0, 4.0, width=32)
vectors = hnp.arrays(np.float32, LENGTH, elements=st.one_of(near, floats))


# Sums of encodings


@settings(max_examples=150, deadline=None)
@given(
    flats=st.lists(vectors, min_size=1, max_size=6),
    spare=st.integers(0, 4),
    bits=st.sampled_from(RINGS),
    value_range=st.sampled_from([1e-3, 0.37, 1.0, 8.0, 1e6]),
    update_norm=st.sampled_from([None, 1e-2, 1.0, 100.0]),
    scales=st.sampled_from([(), SCALES]),
    seed=st.integers(0, 2**32),
)
def test_decoded_sum_is_within_the_bound_of_the_clipped_sum(
    *, flats, spare, bits, value_range, update_norm, scales, seed
):
    n = len(flats) + spare
    codec = Codec(SHAPES, value_range, n, bits, update_norm, scales)
    updates = [make(flat) for flat in flats]
    encoded = [codec.encode(u, HashStream(seed + i)) for i, u in enumerate(updates)]
    total = ring_sum(encoded, bits)
    truth = [
        sum(column)
        for column in zip(*(clipped(u, codec) for u in updates), strict=True)
    ]
    m = len(flats)
    sums = flat_of(codec.decode_sum(total, m))
    means = flat_of(codec.decode_mean(total, m))
    for got, mean, true, scale in zip(
        sums, means, truth, each_scale(codec), strict=True
    ):
        bound = codec.error_bound * scale
        assert abs(Fraction(got) - true) <= m * bound
        assert abs(Fraction(mean) - true / m) <= bound
    if update_norm is None:
        limits = value_range * np.array(each_scale(codec))
        for one, update in zip(encoded, updates, strict=True):
            assert one.saturated == np.sum(np.abs(flat_of(update)) > limits)


@settings(max_examples=100, deadline=None)
@given(
    flats=st.lists(
        hnp.arrays(np.float32, LENGTH, elements=near), min_size=1, max_size=5
    ),
    bits=st.sampled_from(RINGS),
    value_range=st.sampled_from([0.5, 4.0, 20.0]),
    scales=st.sampled_from([(), SCALES]),
    seed=st.integers(0, 2**32),
)
def test_rotated_sums_keep_the_bound_in_the_l2_norm(
    *, flats, bits, value_range, scales, seed
):
    codec = Codec(SHAPES, value_range, len(flats), bits, None, scales, SEED)
    updates = [make(flat) for flat in flats]
    encoded = [codec.encode(u, HashStream(seed + i)) for i, u in enumerate(updates)]
    scale = np.array(each_scale(codec))
    turned = [slow_rotation(flat_of(u) / scale, SEED) for u in updates]
    for one, y in zip(encoded, turned, strict=True):
        # A number within rounding of the end may count as either.
        least, most = (np.sum(np.abs(y) > value_range * (1 + e)) for e in (1e-9, -1e-9))
        assert least <= one.saturated <= most
    kept = [np.clip(y, -value_range, value_range) for y in turned]
    truth = slow_rotation(np.mean(kept, axis=0), SEED, back=True)
    mean = flat_of(codec.decode_mean(ring_sum(encoded, bits), len(flats))) / scale
    assert np.linalg.norm(mean - truth) <= codec.l2_error_bound
    assert np.abs(mean - truth).max() <= codec.error_bound
    assume(not any(one.saturated for one in encoded))
    plain = np.mean([flat_of(u) / scale for u in updates], axis=0)
    assert np.linalg.norm(mean - plain) <= codec.l2_error_bound


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("sites", [1, 3, 7, 100, 1000])
@pytest.mark.parametrize("draw", [0, 2**32 - 1])
def test_no_sum_of_num_sites_encodings_wraps(bits, sites, draw):
    # The worst case: every number at or just inside the end of the range, and
    # rounded both ways.
    codec = Codec(SHAPES, 1.0, sites, bits)
    field = 21 if bits == 64 else bits
    for end in (1.0, -1.0, np.nextafter(np.float32(1), 0), 3e38):
        values = np.full(LENGTH, end, np.float32)
        integers = np.empty(LENGTH, INTEGER_DTYPES[bits])
        round_into(values, codec.levels, 1.0, Constant(draw), integers)
        assert abs(int(integers[0])) <= codec.levels
        assert 2 * abs(int(integers[0])) * sites <= 2**field - 1
        words = to_words(integers, bits, codec.levels)
        total = [int(word) * sites for word in words]
        if bits == 64:
            assert max(total) < 2**63
        reduced = np.array([t % 2**bits for t in total], dtype=f"uint{bits}")
        mean = flat_of(codec.decode_mean(reduced, sites))
        assert np.abs(mean - np.clip(end, -1, 1)).max() <= codec.error_bound


@pytest.mark.parametrize("bits", RINGS)
def test_masked_path_decodes_the_same_as_the_plain_sum(bits):
    rng = np.random.default_rng(7)
    dtype = f"uint{bits}"
    codec = Codec(SHAPES, 2.0, 4, bits)
    words = [
        codec.encode(make(rng.normal(size=LENGTH)), HashStream(i)).vector
        for i in range(4)
    ]
    masks = rng.integers(0, 2**bits, size=(4, codec.length), dtype=dtype)
    # Site i adds its mask and subtracts that of its neighbour: they cancel.
    masked = [v + masks[i] - masks[(i + 1) % 4] for i, v in enumerate(words)]
    assert not any((m == v).any() for m, v in zip(masked, words, strict=True))
    plain = codec.decode_sum(np.sum(words, axis=0, dtype=dtype), 4)
    secure = codec.decode_sum(np.sum(masked, axis=0, dtype=dtype), 4)
    for name, _ in SHAPES:
        assert plain[name].tobytes() == secure[name].tobytes()


# Rounding


@pytest.mark.parametrize("bits", RINGS)
def test_rounding_is_the_floor_of_number_plus_dither_in_exact_arithmetic(bits):
    # Longer than the work arrays, with cut numbers, against Python integers.
    size = 70_001
    values = np.random.default_rng(3).normal(size=size).astype(np.float32)
    key = simulation_stream(5).bytes(32)
    levels = levels_of(bits, 3)
    factor, limit = scale_factor(levels, 2.5), levels << 32
    got = np.empty(size, INTEGER_DTYPES[bits])
    saturated = round_into(values, levels, 2.5, Stream(key), got)
    draws = np.frombuffer(Stream(key).read(4 * size), "<u4").tolist()
    for x, u, integer in zip(values.tolist(), draws, got.tolist(), strict=True):
        t = max(-limit, min(round(x * factor), limit))
        assert integer == (t + u) >> 32
    assert saturated == sum(abs(x) > 2.5 for x in values.tolist()) > 100


@pytest.mark.parametrize("fraction", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("whole", [-3, 0, 7])
def test_rounding_up_has_exactly_the_probability_of_the_fraction(whole, fraction):
    # With range = levels a step is 1, and the number is exact in float64.
    values = np.array([whole + fraction * 2.0**-32])
    out = np.empty(1, np.int32)

    def rounded(draw: int) -> int:
        round_into(values, 2**20, 2.0**20, Constant(draw), out)
        return int(out[0])

    # Of 2**32 draws the last ``fraction`` many round up.
    assert rounded(2**32 - 1 - fraction) == whole
    assert rounded(0) == whole
    if fraction:
        assert rounded(2**32 - fraction) == rounded(2**32 - 1) == whole + 1


@settings(max_examples=300, deadline=None)
@given(
    levels=st.integers(1, 2**31 - 1),
    value_range=st.floats(1e-30, 1e30),
)
def test_the_fixed_point_number_has_the_stated_bias(levels, value_range):
    factor = scale_factor(levels, value_range)
    exact = Fraction(levels << 32) / Fraction(value_range)
    assert value_range * factor <= levels << 32
    assert abs(Fraction(factor) - exact) <= exact / 2**51
    for part in (1.0, 0.3, 1e-9):
        x = value_range * part
        t, true = round(x * factor), Fraction(x) * exact
        assert abs(t - true) <= Fraction(1, 2) + true / 2**50
        assert t <= levels << 32


def test_rounding_is_unbiased():
    # 20 * 4000 draws of a Bernoulli(p): the mean's deviation is at most 0.0016,
    # so 0.01 is more than six of them: false alarms below 1e-8.
    codec = Codec(SHAPES, 1.0, 3, 16)
    p = 0.3
    update = make(np.full(LENGTH, (5 + p) * codec.step))
    draws = [codec.encode(update, HashStream(i)).vector for i in range(4000)]
    assert set(np.unique(draws)) == {5, 6}
    assert abs(np.mean(draws) - 5 - p) < 0.01


def test_each_encoding_has_a_key_of_its_own():
    codec = Codec(SHAPES, 1.0, 3)
    stream = simulation_stream(1)
    update = make(np.linspace(-1, 1, LENGTH) / 3)
    first, second = (codec.encode(update, stream).vector for _ in range(2))
    assert (first != second).any()
    again = codec.encode(update, simulation_stream(1)).vector
    assert (first == again).all()


def test_numbers_on_the_grid_survive_unchanged():
    levels = levels_of(16, 1)
    integers = np.arange(-10, LENGTH - 10)
    values = (integers * (1.0 / levels)).astype(np.float32)
    got = np.empty(LENGTH, np.int16)
    # Rounded to float32 they are off the grid by far less than half a step.
    assert round_into(values, levels, 1.0, Constant(2**31), got) == 0
    assert (got == integers).all()


# The packed ring


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(0, 10),
    sites=st.integers(1, 9),
    missing=st.integers(0, 8),
    data=st.data(),
)
def test_packed_words_are_three_fields_and_add_up(*, size, sites, missing, data):
    levels = levels_of(64, sites)
    survivors = max(1, sites - missing)
    numbers = st.integers(-levels, levels)
    rows = st.lists(numbers, min_size=size, max_size=size)
    integers = data.draw(st.lists(rows, min_size=survivors, max_size=survivors))
    m = -(-size // 3)
    words = []
    for row in integers:
        array = np.array(row, dtype=np.int32)
        words.append([int(word) for word in to_words(array, 64, levels)])
        # The slow packing, field by field.
        padded = row + [0] * (3 * m - size)
        assert words[-1] == [
            sum((padded[i + p * m] + levels) << (21 * p) for p in range(3))
            for i in range(m)
        ]
    columns = [sum(column) for column in zip(*words, strict=True)]
    assert all(column < 2**63 for column in columns)
    total = np.array(columns, dtype=np.uint64)
    sums = from_words(total, 64, levels, survivors, size)
    assert sums.tolist() == [sum(c) for c in zip(*integers, strict=True)]


def test_words_that_no_packed_encodings_add_up_to_are_refused():
    codec = Codec((("x", (4,)),), 1.0, 5, 64)
    assert (codec.num_values, codec.length) == (4, 2)
    zero = codec.encode({"x": np.zeros(4, np.float32)}, HashStream(0)).vector
    good = 3 * zero
    assert codec.decode_sum(good, 3)["x"].tolist() == [0.0] * 4
    for change in (1 << 63, 1 << 62):  # the top bit; a field beyond its limit
        with pytest.raises(CodecError, match="aborted"):
            codec.decode_sum(good ^ np.uint64(change), 3)
    # Numbers 4 and 5 do not exist: the last field of both words is zero.
    for word in (0, 1):
        bad = good.copy()
        bad[word] += np.uint64(1 << 42)
        with pytest.raises(CodecError, match="aborted"):
            codec.decode_sum(bad, 3)
    # A sum of another number of sites has another offset.
    with pytest.raises(CodecError, match="aborted"):
        codec.decode_sum(good, 1)


# The rotation


def slow_rotation(values, seed: bytes, *, back: bool = False):
    """Every entry by itself: signs times (-1)**(common bits), exactly added."""
    n = len(values)
    block = 1 << (n.bit_length() - 1)
    stream = Stream(seed)
    steps = []
    for start in sorted({0, n - block}):
        octets = stream.read((block + 7) // 8)
        signs = [-1.0 if octets[i // 8] >> i % 8 & 1 else 1.0 for i in range(block)]
        steps.append((start, signs))
    turned = [float(x) for x in values]
    for start, signs in reversed(steps) if back else steps:
        part = turned[start : start + block]
        if not back:
            part = [s * x for s, x in zip(signs, part, strict=True)]
        mixed = [
            math.fsum(x * (-1) ** (i & j).bit_count() for j, x in enumerate(part))
            / math.sqrt(block)
            for i in range(block)
        ]
        if back:
            mixed = [s * x for s, x in zip(signs, mixed, strict=True)]
        turned[start : start + block] = mixed
    return np.array(turned)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 20, 100, 257])
def test_fast_rotation_is_the_slow_one(size):
    values = np.random.default_rng(size).normal(size=size)
    before = values.copy()
    turned = rotate(values, SEED)
    np.testing.assert_allclose(turned, slow_rotation(values, SEED), atol=1e-13)
    np.testing.assert_allclose(
        unrotate(values, SEED), slow_rotation(values, SEED, back=True), atol=1e-13
    )
    assert (values == before).all()


@pytest.mark.parametrize("size", [0, 1, 5000, 2**15, 100_003, 2**20 - 1])
def test_rotation_keeps_lengths_and_can_be_undone(size):
    values = np.random.default_rng(2).normal(size=size)
    turned = rotate(values, SEED)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-13)
    error = np.linalg.norm(unrotate(turned, SEED) - values)
    assert error <= 2.0**-40 * np.linalg.norm(values)
    if size > 1:
        assert not np.allclose(rotate(values, bytes(32)), turned)


@pytest.mark.parametrize("where", [0, 700, 999])
def test_rotation_spreads_a_single_number(where):
    # P(any of 2000 numbers above the bound) <= 2000 * p = 2e-9 per seed.
    values = np.zeros(1000)
    values[where] = 1.0
    bound = math.sqrt(2 * math.log(2 / 1e-12) / block_length(1000))
    for seed in range(20):
        turned = rotate(values, simulation_stream(seed).bytes(32))
        assert np.abs(turned).max() <= bound


def test_a_rotated_number_is_off_by_few_steps():
    # Far below the bound that always holds: 4 steps, but for 2**-40 per number.
    size = 4096
    codec = Codec((("x", (size,)),), 6.0, 1, 16, None, (), SEED)
    x = np.random.default_rng(4).normal(size=size).astype(np.float32)
    encoded = codec.encode({"x": x}, HashStream(9))
    assert encoded.saturated == 0
    error = np.abs(codec.decode_mean(encoded.vector, 1)["x"].astype(float) - x)
    assert error.max() <= 4 * codec.step + 2.0**-22
    assert error.max() <= codec.error_bound == codec.l2_error_bound
    # Independent errors of variance f * (1 - f), 1/6 of a squared step on average.
    assert np.mean(error**2) == pytest.approx(codec.step**2 / 6, rel=0.15)


def test_rotation_lets_a_small_range_hold_one_large_number():
    size = 4096
    x = np.zeros(size, np.float32)
    x[17] = 1.0
    plain = Codec((("x", (size,)),), 0.125, 100, 16)
    turned = Codec((("x", (size,)),), 0.125, 100, 16, None, (), SEED)
    assert plain.encode({"x": x}, HashStream(1)).saturated == 1
    encoded = turned.encode({"x": x}, HashStream(1))
    assert encoded.saturated == 0
    decoded = turned.decode_mean(encoded.vector, 1)["x"]
    assert abs(decoded[17] - 1.0) <= 4 * turned.step + 2.0**-22


# Order, norm, refusals


def test_wire_order_is_the_codec_order_and_not_the_update_order():
    update = make(np.linspace(-1, 1, LENGTH))
    shuffled = dict(reversed(update.items()))
    codec = Codec.for_tensors(update, value_range=1.0, num_sites=2)
    assert codec.names_shapes == SHAPES
    one = codec.encode(update, HashStream(1)).vector
    assert (one == codec.encode(shuffled, HashStream(1)).vector).all()
    assert one.dtype == np.uint32
    assert one.shape == (codec.length,) == (LENGTH,)


def test_scales_are_given_by_name():
    update = make(np.zeros(LENGTH))
    by_name = {name: scale for (name, _), scale in zip(SHAPES, SCALES, strict=True)}
    shuffled = dict(reversed(by_name.items()))
    codec = Codec.for_tensors(update, value_range=1.0, num_sites=2, scales=shuffled)
    assert codec.scales == SCALES


@pytest.mark.parametrize("rotation_seed", [None, SEED])
def test_norm_clip_scales_the_whole_update(rotation_seed):
    codec = Codec(SHAPES, 1.0, 1, 32, 0.5, (), rotation_seed)
    update = make(np.linspace(0.1, 0.9, LENGTH))
    encoded = codec.encode(update, HashStream(0))
    decoded = flat_of(codec.decode_sum(encoded.vector, 1))
    assert encoded.norm_clipped
    assert encoded.saturated == 0
    assert np.linalg.norm(decoded) == pytest.approx(0.5, rel=1e-6)
    assert np.allclose(decoded / flat_of(update), decoded[0] / 0.1, rtol=1e-5)
    small = codec.encode(make(np.full(LENGTH, 0.01)), HashStream(0))
    assert not small.norm_clipped


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", range(len(SHAPES)))
def test_a_number_that_is_not_finite_is_refused(bad, where):
    update = make(np.zeros(LENGTH))
    name = SHAPES[where][0]
    update[name].flat[-1] = bad
    with pytest.raises(CodecError, match=name):
        Codec(SHAPES, 1.0, 3).encode(update, HashStream(0))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_another_dtype_is_refused(dtype):
    update = make(np.zeros(LENGTH))
    update["head.bias"] = update["head.bias"].astype(dtype)
    with pytest.raises(CodecError, match=r"head\.bias"):
        Codec(SHAPES, 1.0, 3).encode(update, HashStream(0))


def test_other_names_and_shapes_are_refused():
    codec = Codec(SHAPES, 1.0, 3)
    update = make(np.zeros(LENGTH))
    with pytest.raises(CodecError, match=r"missing \['head\.bias'\]"):
        codec.encode(
            {n: v for n, v in update.items() if n != "head.bias"}, HashStream(0)
        )
    with pytest.raises(CodecError, match=r"unexpected \['stranger'\]"):
        codec.encode(update | {"stranger": np.zeros(1, np.float32)}, HashStream(0))
    with pytest.raises(CodecError, match=r"q\.lora_A"):
        codec.encode(update | {"q.lora_A": update["q.lora_A"].T}, HashStream(0))


def test_a_sum_that_no_encodings_add_up_to_is_refused():
    codec = Codec(SHAPES, 1.0, 5)
    total = np.zeros(LENGTH, dtype=np.uint32)
    for survivors in (1, 3, 4):
        limit = survivors * codec.levels
        total[3] = limit
        codec.decode_sum(total, survivors)
        total[3] = limit + 1
        with pytest.raises(CodecError, match="aborted"):
            codec.decode_sum(total, survivors)
        total[3] = 2**32 - limit - 1
        with pytest.raises(CodecError, match="aborted"):
            codec.decode_mean(total, survivors)


def test_decoding_checks_its_arguments():
    codec = Codec(SHAPES, 1.0, 3)
    good = np.zeros(LENGTH, dtype=np.uint32)
    for survivors in (0, -1, 4):
        with pytest.raises(CodecError, match="headroom"):
            codec.decode_sum(good, survivors)
    for bad in (good[:-1], good.astype(np.uint16), good.astype(np.int32), good[None]):
        with pytest.raises(CodecError, match="expected"):
            codec.decode_mean(bad, 3)
    before = good.copy()
    codec.decode_sum(good, 3)
    assert (good == before).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_range": 0.0}, "value_range"),
        ({"value_range": float("nan")}, "value_range"),
        ({"value_range": float("inf")}, "value_range"),
        ({"num_sites": 0}, "num_sites"),
        ({"ring_bits": 8}, "ring_bits"),
        ({"ring_bits": 16, "num_sites": 32768}, "do not fit"),
        ({"ring_bits": 64, "num_sites": 2**20}, "do not fit"),
        ({"scales": (1.0, 2.0)}, "2 scales for 3"),
        ({"scales": (1.0, 2.0, 0.0)}, "scale"),
        ({"scales": (1.0, 2.0, float("nan"))}, "scale"),
        ({"scales": (1.0, 2.0, 1e20), "value_range": 1e20}, "range"),
        ({"rotation_seed": b"short"}, "32 bytes"),
        ({"update_norm": 0.0}, "update_norm"),
        ({"update_norm": float("nan")}, "update_norm"),
        ({"names_shapes": (("x", (1,)), ("x", (2,)))}, "twice"),
        ({"names_shapes": (("x", (0, 2)),)}, "empty"),
    ],
)
def test_construction_refuses_what_it_cannot_prove(change, message):
    arguments = {"names_shapes": SHAPES, "value_range": 1.0, "num_sites": 3}
    with pytest.raises(CodecError, match=message):
        Codec(**(arguments | change))


def test_an_encoded_update_does_not_print_itself():
    encoded = Codec(SHAPES, 1.0, 3).encode(make(np.ones(LENGTH)), HashStream(0))
    assert repr(encoded) == "EncodedUpdate()"
