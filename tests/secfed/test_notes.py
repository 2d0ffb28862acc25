"""Signed notes and checkpoints: what others published, and what must be refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from secfed import checkpoints
from secfed.checkpoints import Checkpoint, Cosigner, open_checkpoint
from secfed.errors import VerificationError
from secfed.notes import NOTE_ED25519, Note, NoteKey, NoteSignature, parse_note

VECTORS = Path(__file__).parents[1] / "vectors" / "notes" / "notes.json"
CASES = {case["name"]: case for case in json.loads(VECTORS.read_bytes())["cases"]}
LOG_SECRET = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
ORIGIN = "secfed-log/ab/0123/fedavg"


class Log:
    """Signs as a coordinator does."""

    public_bytes = LOG_SECRET.public_key().public_bytes_raw()

    def sign_text(self, text: bytes) -> bytes:
        return LOG_SECRET.sign(text)


LOG = checkpoints.log_key(ORIGIN, Log.public_bytes)


def cosigner(site: str, kind: int) -> Cosigner:
    secret = {
        checkpoints.COSIGN_ED25519: Ed25519PrivateKey.from_private_bytes,
        checkpoints.COSIGN_ML_DSA_44: MLDSA44PrivateKey.from_seed_bytes,
    }[kind](site.encode().ljust(32))
    public = secret.public_key().public_bytes_raw()
    return Cosigner(checkpoints.witness_key(site, public, kind), secret.sign)


# What others published


@pytest.mark.parametrize("name", CASES)
def test_published_notes_are_read_and_written_back(name):
    data = CASES[name]["note"].encode()
    assert parse_note(data).to_bytes() == data


@pytest.mark.parametrize(
    "vkey",
    [
        *(vkey for case in CASES.values() for vkey in case["vkeys"]),
        "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ],
)
def test_published_keys_have_their_published_ids(vkey):
    assert NoteKey.parse(vkey).vkey == vkey


def test_the_published_note_is_signed_as_published():
    case = CASES["a note and its key"]
    kind, *seed = base64.b64decode(case["seed"])
    key = NoteKey.parse(case["vkeys"][0])
    note = parse_note(case["note"].encode())
    secret = Ed25519PrivateKey.from_private_bytes(bytes(seed))
    assert kind == key.kind == NOTE_ED25519
    assert secret.public_key().public_bytes_raw() == key.public
    assert note.of(key) == secret.sign(note.text.encode())


def published(name):
    case = CASES[name]
    return case["note"].encode(), [NoteKey.parse(vkey) for vkey in case["vkeys"]]


def test_a_public_log_and_its_witness_verify():
    data, (log, witness) = published("a public log and a witness")
    found = open_checkpoint(data, log, [witness])
    assert found.checkpoint.size == 1_432_088_532
    assert found.times == {"remora.n621.de": 1_779_573_024}
    assert found.note.to_bytes() == data
    other = data.replace(b"1432088532", b"1432088533")
    with pytest.raises(VerificationError, match=r"arche2025h1.*not valid"):
        open_checkpoint(other, log, [witness])


def test_a_public_witness_with_ml_dsa_verifies():
    # Nobody published the Ed25519 key of this log here; ours signs in its place.
    data, (witness,) = published("a witness with ML-DSA-44")
    theirs = parse_note(data)
    checkpoint = Checkpoint.parse(theirs.text)
    signed = checkpoints.sign_checkpoint(checkpoint, Log())
    log = checkpoints.log_key(checkpoint.origin, Log.public_bytes)
    note = signed.with_signatures(theirs.signatures)
    assert open_checkpoint(note.to_bytes(), log, [witness]).times == {
        witness.name: 1_785_704_691
    }
    longer = Checkpoint(checkpoint.origin, checkpoint.size + 1, checkpoint.root)
    forged = checkpoints.sign_checkpoint(longer, Log())
    with pytest.raises(VerificationError, match=r"navigli.*not valid"):
        open_checkpoint(
            forged.with_signatures(theirs.signatures).to_bytes(), log, [witness]
        )


def test_the_cosignature_of_the_specification_has_its_time():
    case = CASES["a cosigned checkpoint"]
    note = parse_note(case["note"].encode())
    assert Checkpoint.parse(note.text).size == 20_852_163
    stamped = note.signatures[1].signature
    assert int.from_bytes(stamped[:8], "big") == case["time"]
    assert len(stamped) == 8 + 64


# Our own


KINDS = [checkpoints.COSIGN_ED25519, checkpoints.COSIGN_ML_DSA_44]
CHECKPOINT = Checkpoint(ORIGIN, 3, b"\x05" * 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cosignature_is_of_one_tree_by_one_witness_at_one_time(kind):
    north, south = cosigner("north", kind), cosigner("south", kind)
    line = north.cosign(CHECKPOINT, 1000)
    note = checkpoints.sign_checkpoint(CHECKPOINT, Log()).with_signatures([line])
    found = open_checkpoint(note.to_bytes(), LOG, [north.key, south.key])
    assert found.times == {"secfed-site/north": 1000}

    # Replayed over another tree, in another name, with another time.
    grown = Checkpoint(ORIGIN, 4, CHECKPOINT.root)
    replayed = checkpoints.sign_checkpoint(grown, Log()).with_signatures([line])
    stamped = (1001).to_bytes(8, "big") + line.signature[8:]
    for data in (
        replayed,
        Note(note.text, (*note.signatures[:1], _as(line, south.key))),
        Note(
            note.text,
            (
                *note.signatures[:1],
                NoteSignature(north.key.name, north.key.key_id, stamped),
            ),
        ),
        Note(
            note.text,
            (
                *note.signatures[:1],
                NoteSignature(north.key.name, north.key.key_id, line.signature[:-1]),
            ),
        ),
    ):
        with pytest.raises(VerificationError, match=r"not valid|malformed"):
            open_checkpoint(data.to_bytes(), LOG, [north.key, south.key])
    # A line twice, and a log that did not sign.
    with pytest.raises(VerificationError, match="two signatures"):
        open_checkpoint(note.with_signatures([line]).to_bytes(), LOG, [north.key])
    with pytest.raises(VerificationError, match="did not sign"):
        open_checkpoint(Note(note.text, (line,)).to_bytes(), LOG, [north.key])


def _as(line, key):
    return NoteSignature(key.name, key.key_id, line.signature)


def test_lines_of_unknown_keys_are_passed_over():
    stranger = cosigner("stranger", KINDS[0]).cosign(CHECKPOINT, 1)
    note = checkpoints.sign_checkpoint(CHECKPOINT, Log()).with_signatures([stranger])
    north = cosigner("north", KINDS[0])
    assert open_checkpoint(note.to_bytes(), LOG, [north.key]).times == {}


def test_the_log_is_the_expected_one():
    note = checkpoints.sign_checkpoint(CHECKPOINT, Log()).to_bytes()
    other = checkpoints.log_key("secfed-log/cd/0123/fedavg", Log.public_bytes)
    with pytest.raises(VerificationError, match="another log"):
        open_checkpoint(note, other)
    with pytest.raises(VerificationError, match="did not sign"):
        open_checkpoint(note, checkpoints.log_key(ORIGIN, b"\x01" * 32))


@pytest.mark.parametrize(
    "text",
    [
        "a\n1\n",
        "a\n01\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        "a\n-1\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        "\n1\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n",
        "a\n1\nBQUF\n",
        "a\n1\n!!!!\n",
        "a\n1\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\nmore\n",
        "a\n1\nBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQV=\n",
    ],
)
def test_texts_that_are_not_checkpoints(text):
    with pytest.raises(VerificationError, match="not a checkpoint"):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"\xff\n\n",
        b"text\n\n- name AAAAAAA=\n",
        "text\n\n— name AAAAAAA=".encode(),
        "text\n\n— name AAAAAA==\n".encode(),
        "text\n\n— name AAAAAAB=\n".encode(),
        "text\n\n— na+me AAAAAAA=\n".encode(),
        "te\txt\n\n— name AAAAAAA=\n".encode(),
    ],
)
def test_bytes_that_are_not_notes(data):
    with pytest.raises(VerificationError, match="not a signed note"):
        parse_note(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_note_or_refused(data):
    try:
        note = parse_note(data)
    except VerificationError:
        return
    assert note.to_bytes() == data


@pytest.mark.parametrize("vkey", ["", "a", "a+b", "a+00000000+", "a b+00000000+AQ=="])
def test_texts_that_are_not_keys(vkey):
    with pytest.raises(ValueError, match="key"):
        NoteKey.parse(vkey)
