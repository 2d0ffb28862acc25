"""decode(sum of encodings) is the sum of the updates within the stated error."""

from __future__ import annotations

import hashlib

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfed.codec import Codec
from secfed.errors import CodecError

SHAPES = (("q.lora_A", (2, 5)), ("q.lora_B", (3, 2)), ("head.bias", (4,)))


class HashStream:
    """Uniform numbers from SHAKE-256; the seed makes a test repeatable."""

    def __init__(self, seed: int) -> None:
        self._seed, self._reads = seed, 0

    def uniform(self, count: int, /):
        self._reads += 1
        raw = hashlib.shake_256(f"{self._seed}|{self._reads}".encode()).digest(
            8 * count
        )
        return (np.frombuffer(raw, dtype="<u8") >> np.uint64(11)) * 2.0**-53


class ConstantStream:
    def __init__(self, value: float) -> None:
        self._value = value

    def uniform(self, count: int, /):
        return np.full(count, self._value)


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


def clipped(update, codec: Codec) -> np.ndarray:
    """The slow, obvious clip in float64."""
    values = flat_of(update)
    if codec.update_norm is not None:
        norm = np.linalg.norm(values)
        if norm > codec.update_norm:
            values = values * codec.update_norm / norm
    return np.clip(values, -codec.value_range, codec.value_range)


def ring_sum(encoded, bits: int) -> np.ndarray:
    """Plain Python integers, reduced once at the end."""
    columns = zip(*(e.vector.tolist() for e in encoded), strict=True)
    return np.array([sum(c) % 2**bits for c in columns], dtype=f"uint{bits}")


LENGTH = sum(int(np.prod(shape)) for _, shape in SHAPES)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
near = st.floats(-4.0, 4.0, width=32)
vectors = hnp.arrays(np.float32, LENGTH, elements=st.one_of(near, floats))


@settings(max_examples=150, deadline=None)
@given(
    flats=st.lists(vectors, min_size=1, max_size=6),
    spare=st.integers(0, 4),
    bits=st.sampled_from([16, 32]),
    value_range=st.sampled_from([1e-3, 0.37, 1.0, 8.0, 1e6]),
    update_norm=st.sampled_from([None, 1e-2, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
def test_decoded_sum_is_within_the_bound_of_the_clipped_sum(
    *, flats, spare, bits, value_range, update_norm, seed
):
    codec = Codec(SHAPES, value_range, len(flats) + spare, bits, update_norm)
    updates = [make(flat) for flat in flats]
    encoded = [codec.encode(u, HashStream(seed + i)) for i, u in enumerate(updates)]
    total = ring_sum(encoded, bits)
    truth = np.sum([clipped(u, codec) for u in updates], axis=0)
    m = len(flats)
    sums = flat_of(codec.decode_sum(total, m))
    means = flat_of(codec.decode_mean(total, m))
    assert np.abs(sums - truth).max() <= m * codec.error_bound
    assert np.abs(means - truth / m).max() <= codec.error_bound
    if update_norm is None:
        for one, update in zip(encoded, updates, strict=True):
            assert one.saturated == np.sum(np.abs(flat_of(update)) > value_range)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("sites", [1, 3, 7, 100, 1000])
@pytest.mark.parametrize("draw", [0.0, 1.0 - 2.0**-53])
def test_no_sum_of_num_sites_encodings_wraps(bits, sites, draw):
    # The worst case: every number at the end of the range, rounded both ways.
    codec = Codec(SHAPES, 1.0, sites, bits)
    for sign in (-1.0, 1.0):
        encoded = codec.encode(make(np.full(LENGTH, sign)), ConstantStream(draw))
        integer = int(encoded.vector[0])
        signed = integer - 2**bits if integer >= 2 ** (bits - 1) else integer
        assert abs(signed) <= codec.levels
        assert abs(signed) * sites <= 2 ** (bits - 1) - 1
        total = np.full(LENGTH, integer * sites % 2**bits, dtype=f"uint{bits}")
        mean = flat_of(codec.decode_mean(total, sites))
        assert np.abs(mean - sign).max() <= codec.error_bound


def test_masked_path_decodes_the_same_as_the_plain_sum():
    rng = np.random.default_rng(7)
    codec = Codec(SHAPES, 2.0, 4)
    vectors = [
        codec.encode(make(rng.normal(size=LENGTH)), HashStream(i)).vector
        for i in range(4)
    ]
    masks = rng.integers(0, 2**32, size=(4, LENGTH), dtype=np.uint32)
    # Site i adds its mask and subtracts that of its neighbour: they cancel.
    masked = [v + masks[i] - masks[(i + 1) % 4] for i, v in enumerate(vectors)]
    assert not any((m == v).any() for m, v in zip(masked, vectors, strict=True))
    plain = codec.decode_sum(np.sum(vectors, axis=0, dtype=np.uint32), 4)
    secure = codec.decode_sum(np.sum(masked, axis=0, dtype=np.uint32), 4)
    for name, _ in SHAPES:
        assert plain[name].tobytes() == secure[name].tobytes()


def test_rounding_is_unbiased():
    # 20 * 4000 draws of a Bernoulli(p): the mean's deviation is at most 0.0016,
    # so 0.01 is more than six of them: false alarms below 1e-8.
    codec = Codec(SHAPES, 1.0, 3, 16)
    p = 0.3
    update = make(np.full(LENGTH, (5 + p) * codec.step))
    draws = [codec.encode(update, HashStream(i)).vector for i in range(4000)]
    assert set(np.unique(draws)) == {5, 6}
    assert abs(np.mean(draws) - 5 - p) < 0.01


def test_numbers_on_the_grid_survive_unchanged():
    codec = Codec(SHAPES, 1.0, 1, 16)
    integers = np.arange(-10, LENGTH - 10)
    update = make(integers * codec.step)
    # Rounded to float32 they are off the grid by far less than a step.
    got = codec.encode(update, ConstantStream(0.5)).vector.astype(np.int16)
    assert (got == integers).all()


def test_wire_order_is_the_codec_order_and_not_the_update_order():
    update = make(np.linspace(-1, 1, LENGTH))
    shuffled = dict(reversed(update.items()))
    codec = Codec.for_tensors(update, value_range=1.0, num_sites=2)
    assert codec.names_shapes == SHAPES
    one = codec.encode(update, HashStream(1)).vector
    assert (one == codec.encode(shuffled, HashStream(1)).vector).all()
    assert one.dtype == np.uint32
    assert one.shape == (codec.length,) == (LENGTH,)


def test_norm_clip_scales_the_whole_update():
    codec = Codec(SHAPES, 1.0, 1, 32, update_norm=0.5)
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


def test_a_stream_of_another_length_is_refused():
    class Short:
        def uniform(self, count: int, /):
            return np.zeros(1)

    with pytest.raises(CodecError, match="stream"):
        Codec(SHAPES, 1.0, 3).encode(make(np.zeros(LENGTH)), Short())


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
