"""Known answers of every primitive, for our code and for slow second implementations.

``tests/vectors/README.md`` says where the answers come from.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path

import pytest

from protocols import aead, kdf, kem, keys, labels, shamir
from protocols.errors import MessageError, MisuseError, SignatureError
from protocols.prg import Stream
from tests.protocols.reference import chacha20, hkdf
from tests.protocols.reference import shamir as slow_shamir
from tests.protocols.reference.x25519 import BASE_POINT, x25519

DIRECTORY = Path(__file__).resolve().parents[1] / "vectors" / "primitives"
FILES = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted(DIRECTORY.glob("*.json"))
}
ERRORS = {"MessageError": MessageError, "MisuseError": MisuseError}

used = set()
unhex = bytes.fromhex


def cases(primitive, operation):
    """The cases of one operation, as parameters of a test."""
    used.add((primitive, operation))
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case["name"])
            for case in FILES[primitive]["cases"]
            if case["operation"] == operation
        ],
    )


def expected_failure(case):
    return pytest.raises(ERRORS[case["error"]]) if "error" in case else nullcontext()


# ------------------------------------------------------------------ the files


@pytest.mark.parametrize("primitive", FILES)
def test_every_case_names_its_source(primitive):
    content = FILES[primitive]
    assert set(content) == {"primitive", "functions", "sources", "cases"}
    for source in content["sources"].values():
        assert set(source) == {"document", "section", "copied_from"}
        assert all(source.values())
    names = [case["name"] for case in content["cases"]]
    assert len(set(names)) == len(names) > 0
    for case in content["cases"]:
        assert case["origin"] in content["sources"]
        assert case["place"]
        assert case.get("error", "MessageError") in ERRORS
    assert {case["origin"] for case in content["cases"]} == set(content["sources"])


def test_every_case_is_run():
    operations = {
        (primitive, case["operation"])
        for primitive, content in FILES.items()
        for case in content["cases"]
    }
    assert operations == used


# --------------------------------------------------------------------- X25519


@cases("x25519", "exchange")
def test_x25519(case):
    private, public = unhex(case["private"]), unhex(case["public"])
    assert keys.ExchangeKey(private).exchange(public).hex() == case["shared"]
    assert x25519(private, public).hex() == case["shared"]


@cases("x25519", "public_key")
def test_x25519_public_key(case):
    private = unhex(case["private"])
    assert keys.ExchangeKey(private).public_bytes.hex() == case["public"]
    assert x25519(private, BASE_POINT).hex() == case["public"]


def iterated(function, case):
    """RFC 7748, section 5.2: the result becomes the scalar, the scalar the point."""
    scalar = point = unhex(case["start"])
    for _ in range(case["times"]):
        scalar, point = function(scalar, point), scalar
    return scalar.hex()


@cases("x25519", "iterate")
def test_x25519_iterated(case):
    found = iterated(lambda k, u: keys.ExchangeKey(k).exchange(u), case)
    assert found == case["result"]


@pytest.mark.slow
@cases("x25519", "iterate")
def test_x25519_iterated_slowly(case):
    assert iterated(x25519, case) == case["result"]


@cases("x25519", "verify_public_key")
def test_x25519_refuses(case):
    public = unhex(case["public"])
    with expected_failure(case):
        keys.verify_exchange_key(public)
    # Why: every private key gives the same secret, or the key has two encodings.
    if "LowOrderPublic" in case["place"]:
        assert x25519(hashlib.sha256(b"any key").digest(), public) == bytes(32)
    else:
        assert int.from_bytes(public, "little") >= 2**255 - 19


# ----------------------------------------------------------------------- HKDF


@cases("hkdf_sha256", "hkdf")
def test_hkdf_sha256(case):
    ikm, salt, info = (unhex(case[name]) for name in ("ikm", "salt", "info"))
    size = case["length_bytes"]
    found = kdf.hkdf_sha256(ikm, salt=salt, info=info, length_bytes=size)
    assert found.hex() == case["okm"]
    assert hkdf.extract(salt, ikm).hex() == case["prk"]
    assert hkdf.hkdf_sha256(ikm, salt, info, size) == found


def framed(*parts):
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def test_derivations_are_hkdf_over_framed_parts():
    found = kdf.derive(b"label", b"ikm", b"salt", 80, b"a", b"")
    info = framed(labels.VERSION, b"label", b"a", b"")
    assert found == hkdf.hkdf_sha256(b"ikm", b"salt", info, 80)


# -------------------------------------------------------------------- SHA-256


@cases("sha256", "hash")
def test_sha256(case):
    message = unhex(case["message"]) * case["repeat"]
    assert hashlib.sha256(message).hexdigest() == case["digest"]


def test_digests_are_sha256_over_framed_parts():
    found = kdf.digest(b"label", b"part", b"")
    framing = framed(labels.VERSION, b"label", b"part", b"")
    assert found == hashlib.sha256(framing).digest()


# -------------------------------------------------------------------- Ed25519

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, 5.1


@cases("ed25519", "sign")
def test_ed25519(case):
    key, message = keys.SigningKey(unhex(case["seed"])), unhex(case["message"])
    signature = key.sign(message)
    assert key.public_bytes.hex() == case["public"]
    assert signature.hex() == case["signature"]
    keys.verify_signature(key.public_bytes, message, signature)
    # The same point with another encoding of S; RFC 8032, 5.1.7 refuses it.
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    second = signature[:32] + scalar.to_bytes(32, "little")
    for changed in (second, signature[:-1], bytes(64), signature[32:] + signature[:32]):
        with pytest.raises(SignatureError):
            keys.verify_signature(key.public_bytes, message, changed)
    with pytest.raises(SignatureError):
        keys.verify_signature(key.public_bytes, message + b"\x00", signature)


# -------------------------------------------------------------------- streams


@cases("chacha20", "keystream")
def test_chacha20(case):
    key, nonce, counter = unhex(case["key"]), unhex(case["nonce"]), case["counter"]
    size = len(case["keystream"]) // 2
    assert chacha20.keystream(key, nonce, counter, size).hex() == case["keystream"]
    if not any(nonce):  # A mask has the nonce zero: its key is used once.
        stream = Stream(key, "chacha20", initial_counter=counter)
        assert stream.read(size).hex() == case["keystream"]


@cases("aes256_ctr", "encrypt")
def test_aes_256_ctr(case):
    plaintext = unhex(case["plaintext"])
    stream = Stream(unhex(case["key"]), initial_counter=int(case["counter"], 16))
    ciphertext = bytes(
        a ^ b for a, b in zip(plaintext, stream.read(len(plaintext)), strict=True)
    )
    assert ciphertext.hex() == case["ciphertext"]


# ---------------------------------------------------------------- AES-256-GCM


@cases("aes256_gcm", "seal")
def test_aes_256_gcm(case):
    names = ("key", "nonce", "header", "plaintext", "ciphertext", "tag")
    key, nonce, header, plaintext, ciphertext, tag = (unhex(case[n]) for n in names)
    box = aead.seal_box(key, nonce, plaintext, header)
    assert box == nonce + ciphertext + tag
    assert aead.open_box(key, box, header) == plaintext


@cases("aes256_gcm", "open")
def test_aes_256_gcm_refuses(case):
    box = unhex(case["nonce"] + case["ciphertext"] + case["tag"])
    with expected_failure(case):
        aead.open_box(unhex(case["key"]), box, unhex(case["header"]))


# ----------------------------------------------------------------- ML-KEM-768


@cases("mlkem768", "public_key_hash")
def test_ml_kem_768_public_key(case):
    public = kem.DecapsulationKey(unhex(case["seed"])).public_bytes
    assert hashlib.sha3_256(public).hexdigest() == case["public_sha3_256"]


@cases("mlkem768", "decapsulate")
def test_ml_kem_768_decapsulation(case):
    with expected_failure(case):
        key = kem.DecapsulationKey(unhex(case["seed"]))
        if "public" in case:
            assert key.public_bytes.hex() == case["public"]
        assert key.decapsulate(unhex(case["ciphertext"])).hex() == case["secret"]


@cases("mlkem768", "encapsulate")
def test_ml_kem_768_refuses(case):
    with expected_failure(case):
        kem.encapsulate(unhex(case["public"]))


def test_ml_kem_768_there_and_back():
    key = kem.DecapsulationKey(bytes(range(kem.SEED_BYTES)))
    ciphertext, secret = kem.encapsulate(key.public_bytes)
    assert len(key.public_bytes) == kem.KEY_BYTES == 1184
    assert len(ciphertext) == kem.CIPHERTEXT_BYTES == 1088
    assert len(secret) == 32
    assert key.decapsulate(ciphertext) == secret
    assert kem.encapsulate(key.public_bytes) != (ciphertext, secret)
    assert repr(key) == "<DecapsulationKey>"


# --------------------------------------------------------------------- Shamir


@cases("shamir", "reconstruct")
def test_shamir_reconstruction(case):
    points, shares = case["points"], [unhex(share) for share in case["shares"]]
    with expected_failure(case):
        assert shamir.reconstruct(points, shares).hex() == case["secret"]
    if "secret" in case:
        assert slow_shamir.reconstruct(points, shares).hex() == case["secret"]


@cases("shamir", "split")
def test_shamir_splitting(case):
    secrets, points = [unhex(one) for one in case["secrets"]], case["points"]
    threshold, key = case["threshold"], unhex(case["key"])
    dealt = shamir.split(secrets, threshold, points, Stream(key))
    assert [[share.hex() for share in row] for row in dealt] == case["shares"]
    width = slow_shamir.LIMBS * len(secrets)
    drawn = slow_shamir.draw_coefficients(Stream(key).read, threshold - 1, width)
    assert drawn == case["coefficients"]
    for place, secret in enumerate(secrets):
        limbs = slice(slow_shamir.LIMBS * place, slow_shamir.LIMBS * (place + 1))
        shares = slow_shamir.split(secret, points, [row[limbs] for row in drawn])
        assert shares == [row[place] for row in dealt]
        for some in combinations(zip(points, shares, strict=True), threshold):
            assert shamir.reconstruct(*zip(*some, strict=True)) == secret
