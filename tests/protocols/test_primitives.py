"""Properties of the primitives, and the fast secret sharing against the slow one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols import aead, kdf, keys, labels, shamir
from protocols.errors import MessageError, MisuseError
from protocols.prg import CHUNK_BYTES, Stream
from protocols.shamir import LIMBS, PRIME
from tests.protocols.reference import shamir as slow
from tests.protocols.reference.x25519 import BASE_POINT


def test_derivation_separates_every_input():
    base = (b"label", b"ikm", b"salt", 32, b"a", b"bc")
    others = [
        (b"label2", b"ikm", b"salt", 32, b"a", b"bc"),
        (b"label", b"ikm2", b"salt", 32, b"a", b"bc"),
        (b"label", b"ikm", b"salt2", 32, b"a", b"bc"),
        (b"label", b"ikm", b"salt", 32, b"ab", b"c"),
        (b"label", b"ikm", b"salt", 32, b"abc"),
    ]
    assert len({kdf.derive(*arguments) for arguments in [base, *others]}) == 6
    assert kdf.digest(b"l", b"a", b"bc") != kdf.digest(b"l", b"ab", b"c")
    assert kdf.digest(b"l", b"a") != kdf.digest(b"l", b"a", b"")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2 * CHUNK_BYTES + 17), max_size=5))
def test_stream_does_not_depend_on_how_it_is_read(sizes):
    pieces = Stream(b"k" * 32)
    assert b"".join(map(pieces.read, sizes)) == Stream(b"k" * 32).read(sum(sizes))


def test_stream_refuses_a_short_key():
    with pytest.raises(MisuseError):
        Stream(bytes(16))


@pytest.mark.parametrize("public", [bytes(31), BASE_POINT[:-1] + b"\x80"])
def test_useless_exchange_keys_are_refused(public):
    with pytest.raises(MessageError):
        keys.verify_exchange_key(public)


def test_an_identity_key_survives_storage():
    key = keys.SigningKey(bytes(range(32)))
    assert keys.SigningKey.from_bytes(key.to_bytes()).public_bytes == key.public_bytes


def test_a_box_opens_only_as_it_was_sealed():
    box = aead.seal_box(b"k" * 32, b"n" * 12, b"text", b"header")
    assert aead.open_box(b"k" * 32, box, b"header") == b"text"
    for key, changed, header in [
        (b"x" * 32, box, b"header"),
        (b"k" * 32, box, b"other"),
        (b"k" * 32, box[:-1], b"header"),
        (b"k" * 32, b"", b"header"),
        *((b"k" * 32, _flipped(box, i), b"header") for i in range(len(box))),
    ]:
        with pytest.raises(MessageError):
            aead.open_box(key, changed, header)


def _flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


# ----------------------------------------------------------------- shamir


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_shares_equal_the_slow_reference(data):
    threshold = data.draw(st.integers(1, 12))
    points = data.draw(
        st.lists(
            st.integers(1, PRIME - 1), min_size=threshold, max_size=16, unique=True
        )
    )
    secret, key = data.draw(st.binary(min_size=32, max_size=32)), b"s" * 32
    fast = [s for (s,) in shamir.split([secret], threshold, points, Stream(key))]
    read = Stream(key).read
    coefficients = slow.draw_coefficients(read, threshold - 1, LIMBS)
    assert fast == slow.split(secret, points, coefficients)
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    at, shares = [points[i] for i in chosen], [fast[i] for i in chosen]
    assert shamir.reconstruct(at, shares) == secret == slow.reconstruct(at, shares)
    for point, share in zip(points, fast, strict=True):
        assert shamir.interpolate(at, shares, point) == share
        assert slow.interpolate(at, shares, point) == share


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\x01" + bytes(31)])
def test_extreme_secrets_at_the_largest_threshold(secret):
    points = list(range(1, shamir.MAX_THRESHOLD + 1))
    shares = shamir.split([secret, secret], 512, points, Stream(b"z" * 32))
    assert shamir.reconstruct(points, [pair[0] for pair in shares]) == secret
    assert shamir.reconstruct(points, [pair[1] for pair in shares]) == secret


def test_the_stated_bound_of_exact_sums():
    assert shamir.MAX_THRESHOLD * ((PRIME - 1) // 2) ** 2 < 2**53
    assert PRIME > 2**22 - 1  # every limb is a field element


def test_too_few_shares_fit_every_secret():
    # Two of three shares and any secret lie on one polynomial. Points are shifted
    # by 7 because 0 is no point of a holder.
    first, second, _ = shamir.split([b"a" * 32], 3, [1, 2, 3], Stream(b"q" * 32))
    (other,) = shamir.split([b"b" * 32], 1, [7], Stream(b"q" * 32))[0]
    third = shamir.interpolate([7, 8, 9], [other, *first, *second], 10)
    assert shamir.interpolate([8, 9, 10], [*first, *second, third], 7) == other


@pytest.mark.parametrize(
    ("threshold", "points"), [(0, [1]), (2, [1]), (1, [0]), (2, [1, 1]), (1, [PRIME])]
)
def test_sharing_refuses_impossible_arguments(threshold, points):
    with pytest.raises(MisuseError):
        shamir.split([bytes(32)], threshold, points, Stream(bytes(32)))


def test_shares_are_canonical():
    with pytest.raises(MessageError):
        shamir.verify_share(PRIME.to_bytes(3, "little") + bytes(33))
    with pytest.raises(MessageError):
        shamir.verify_share(bytes(35))
    top = (PRIME - 1).to_bytes(3, "little") * LIMBS
    assert shamir.verify_share(top) == top
    with pytest.raises(MessageError):  # A limb of more than 22 bits is no secret.
        shamir.reconstruct([1], [top])
    with pytest.raises(MessageError):  # 264 bits are not 32 bytes.
        shamir.reconstruct([1], [(2**22 - 1).to_bytes(3, "little") * LIMBS])


# ------------------------------------------------------------- the package


def _sources():
    root = Path(protocols.__file__).parent
    return {path: path.read_text("utf-8") for path in root.rglob("*.py")}


def test_every_label_is_unique_and_used_once():
    names = [name for name in vars(labels) if name.isupper() and name != "VERSION"]
    assert len({getattr(labels, name) for name in names}) == len(names)
    used = "\n".join(t for p, t in _sources().items() if p.name != "labels.py")
    for name in names:
        import_free = [w for w in _words(used) if w == f"labels.{name}"]
        assert len(import_free) == 1, name


def _words(text):
    keep = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_."
    for is_word, group in itertools.groupby(text, keep.__contains__):
        if is_word:
            yield "".join(group).strip(".")


def test_nothing_in_protocols_draws_system_randomness_or_does_io():
    banned = ["urandom", "secrets import", "import secrets", "import random", "numpy.random",
              "np.random", "generate_private_key", "generate(", 'open("', "import time",
              "import logging", "import os", "secfed import", "import secfed", "torch"]  # fmt: skip
    for path, text in _sources().items():
        for word in banned:
            assert word not in text.replace("generate_identity(", ""), (path.name, word)
