"""Published vectors, and the fast secret sharing against the slow obvious one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols import aead, kdf, keys, labels, shamir
from protocols.errors import MessageError, MisuseError, SignatureError
from protocols.prg import CHUNK_BYTES, Stream
from protocols.shamir import LIMBS, PRIME


def unhex(text):
    return bytes.fromhex(text.replace(" ", ""))


# RFC 5869, appendix A.1 to A.3.
HKDF_VECTORS = [
    (
        b"\x0b" * 22,
        bytes(range(13)),
        bytes(range(0xF0, 0xFA)),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        (
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac78272"
            "71cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f"
            "1d87"
        ),
    ),
    (
        b"\x0b" * 22,
        b"",
        b"",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("ikm", "salt", "info", "okm"), HKDF_VECTORS)
def test_hkdf_rfc_5869(ikm, salt, info, okm):
    found = kdf.hkdf_sha256(ikm, salt=salt, info=info, length_bytes=len(okm) // 2)
    assert found.hex() == okm


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


def test_aes_256_ctr_sp_800_38a():
    # NIST SP 800-38A, F.5.5 CTR-AES256.Encrypt.
    key = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    plain = unhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = unhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    stream = Stream(key, initial_counter=counter).read(64)
    assert bytes(a ^ b for a, b in zip(plain, stream, strict=True)) == cipher


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2 * CHUNK_BYTES + 17), max_size=5))
def test_stream_does_not_depend_on_how_it_is_read(sizes):
    pieces = Stream(b"k" * 32)
    assert b"".join(map(pieces.read, sizes)) == Stream(b"k" * 32).read(sum(sizes))


def test_stream_refuses_a_short_key():
    with pytest.raises(MisuseError):
        Stream(bytes(16))


def test_x25519_rfc_7748():
    # RFC 7748, section 6.1.
    alice = keys.ExchangeKey(
        unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = keys.ExchangeKey(
        unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    assert alice.public_bytes == unhex(
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.exchange(bob.public_bytes).hex() == shared
    assert bob.exchange(alice.public_bytes).hex() == shared


@pytest.mark.parametrize(
    "public",
    [
        bytes(32),  # order 1 point
        (1).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),  # second encoding of 0
        (2**255 - 10).to_bytes(32, "little"),  # second encoding of 9
        (9 + 2**255).to_bytes(32, "little"),  # ignored top bit set
        unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes(31),
    ],
)
def test_useless_exchange_keys_are_refused(public):
    with pytest.raises(MessageError):
        keys.verify_exchange_key(public)


def test_ed25519_rfc_8032():
    # RFC 8032, section 7.1, test 2.
    key = keys.SigningKey.from_bytes(
        unhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    assert key.public_bytes == unhex(
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    )
    signature = key.sign(b"\x72")
    assert signature == unhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    keys.verify_signature(key.public_bytes, b"\x72", signature)
    with pytest.raises(SignatureError):
        keys.verify_signature(key.public_bytes, b"\x73", signature)
    with pytest.raises(SignatureError):
        keys.verify_signature(key.public_bytes, b"\x72", signature[:-1])
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


def slow_share(secret, threshold, points, coefficients):
    """Evaluate each limb's polynomial by Horner's rule in Python integers."""
    number = int.from_bytes(secret, "little")
    shares = []
    for x in points:
        values = []
        for limb in range(LIMBS):
            value = 0
            for degree in range(threshold - 1, 0, -1):
                value = (value + coefficients[degree - 1][limb]) * x % PRIME
            values.append((value + (number >> (22 * limb)) % 2**22) % PRIME)
        shares.append(b"".join(v.to_bytes(3, "little") for v in values))
    return shares


def slow_reconstruct(points, shares):
    """Lagrange interpolation at zero in Python integers."""
    number = 0
    for limb in range(LIMBS):
        total = 0
        for own, share in zip(points, shares, strict=True):
            weight = 1
            for other in points:
                if other != own:
                    weight = weight * other * pow(other - own, -1, PRIME) % PRIME
            total += weight * int.from_bytes(share[3 * limb : 3 * limb + 3], "little")
        number |= total % PRIME << (22 * limb)
    return number.to_bytes(32, "little")


def drawn_coefficients(key, threshold):
    """What ``split`` draws for one secret, one number at a time."""
    stream = Stream(key)
    count = (threshold - 1) * LIMBS
    kept, missing = [], count
    while missing:
        data = stream.read(4 * (missing + 8))
        words = [
            int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)
        ]
        kept += [w & 0x7FFFFF for w in words if w & 0x7FFFFF < PRIME][:missing]
        missing = count - len(kept)
    return [kept[i : i + LIMBS] for i in range(0, count, LIMBS)]


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
    assert fast == slow_share(
        secret, threshold, points, drawn_coefficients(key, threshold)
    )
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    at, shares = [points[i] for i in chosen], [fast[i] for i in chosen]
    assert shamir.reconstruct(at, shares) == secret == slow_reconstruct(at, shares)
    for point, share in zip(points, fast, strict=True):
        assert shamir.interpolate(at, shares, point) == share


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
