"""The recorded messages, rounds and derivations of the secure sum.

They are made by ``tests.vectors.generate``; here they are read as another
implementation would read them, from the JSON alone.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from protocols import aead, kdf, labels
from protocols.agreement import AgreementKey
from protocols.errors import MessageError, ProtocolError
from protocols.keys import SigningKey
from protocols.prg import Stream
from protocols.secagg import messages
from protocols.secagg.params import PHASES
from protocols.suites import SUITES
from tests.protocols.recorded_rounds import (
    DIRECTORY,
    FAILING,
    ROUNDS,
    Recorded,
    ReferenceClient,
    ReferenceServer,
    Replay,
    read,
    refusal_of,
    ring_vector,
    unhex,
)
from tests.protocols.reference import chacha20, masks, transcript
from tests.protocols.reference import shamir as slow_shamir
from tests.protocols.reference.x25519 import x25519
from tests.vectors import generate

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 1_500_000

MESSAGES, INVALID = read("messages/*.json"), read("messages/invalid/*.json")
DERIVATIONS = read("derivations.json")["derivations"]


# ------------------------------------------------------------ made bit for bit


def test_the_files_are_what_the_code_makes():
    assert generate.first_difference(DIRECTORY, generate.generated(DIRECTORY)) == ""


def test_all_files_together_are_small():
    sizes = [path.stat().st_size for path in DIRECTORY.rglob("*.json")]
    assert len(sizes) > 150
    assert sum(sizes) < MOST_BYTES


@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        (
            "rounds/four-clients.json",
            lambda t: t.replace("site-3", "site-4", 1),
            "line",
        ),
        ("rounds/four-clients.json", lambda t: t + "\n", "differs at its end"),
        ("rounds/other.json", lambda t: "{}\n", "nothing makes this file"),
        ("derivations.json", None, "missing"),
    ],
)
def test_a_changed_file_is_named(tmp_path, path, change, expected):
    copy = tmp_path / "secagg"
    shutil.copytree(DIRECTORY, copy)
    target = copy / path
    if change is None:
        target.unlink()
    else:
        before = target.read_text("utf-8") if target.exists() else ""
        target.write_text(change(before), "utf-8")
    texts = {
        str(file.relative_to(DIRECTORY)): file.read_text("utf-8")
        for file in DIRECTORY.rglob("*.json")
    }
    found = generate.first_difference(copy, texts)
    assert found.startswith(path)
    assert expected in found


def test_fresh_encapsulations_change_hybrid_files_only():
    fresh = generate.generated(DIRECTORY, new_encapsulations=True)
    changed = {
        path
        for path, text in fresh.items()
        if (DIRECTORY / path).read_text("utf-8") != text
    }
    assert "rounds/suite-2-three-clients.json" in changed
    for path in changed:
        assert (
            '"suite": 2' in fresh[path]
            or '"base": "suite-2' in fresh[path]
            or (path == "derivations.json")
        )


def test_without_recorded_encapsulations_nothing_is_made_unasked(tmp_path):
    with pytest.raises(generate.MissingError):
        generate.generated(tmp_path)


# ------------------------------------------------------------------- messages

WIDTHS = {
    **dict.fromkeys(("tag", "version", "suite", "kind"), 1),
    **dict.fromkeys(("sender", "size", "position", "peer", "signer"), 2),
}
SIZES = {
    "session": {32},
    "signature": {64},
    "channel_key": {32, 32 + 1184},
    "mask_key": {32, 32 + 1184},
    "commitment": {32},
    "nonce": {32},
    "root": {32},
    "sealed": {100, 100 + 1088},
    "ciphertext": {1088},
    "share": {36},
}


def encoded(name, value):
    """One field as the README describes it, without any code of ``protocols``."""
    if isinstance(value, dict):
        return b"".join(encoded(key, inner) for key, inner in value.items())
    if isinstance(value, list):
        count = len(value).to_bytes(1 if name == "proof" else 2, "little")
        return count + b"".join(encoded("", item) for item in value)
    if isinstance(value, int):
        return value.to_bytes(WIDTHS.get(name, 2), "little")
    data = unhex(value)
    assert len(data) in SIZES.get(name, {len(data)})
    return len(data).to_bytes(4, "little") + data if name == "vector" else data


def cases():
    return [
        pytest.param(content["message"], case, id=f"{name}-{number}")
        for name, content in MESSAGES.items()
        for number, case in enumerate(content["cases"])
    ]


@pytest.mark.parametrize(("kind", "case"), cases())
def test_a_message_is_its_fields_one_after_the_other(kind, case):
    data = unhex(case["bytes"])
    assert encoded("", case["fields"]) == data
    parsed = getattr(messages, kind).from_bytes(data, SUITES[case["suite"]])
    assert parsed.to_bytes() == data
    assert parsed.session.hex() == case["fields"]["session"]


@pytest.mark.parametrize(("kind", "case"), cases())
def test_a_message_is_signed_over_label_context_and_body(kind, case):
    if "signed" not in case:
        assert kind in {
            "Roster",
            "Neighbourhood",
            "Delivery",
            "Survivors",
            "Confirmations",
        }
        return
    signed, data = case["signed"], unhex(case["bytes"])
    text = transcript.digest(
        signed["label"].encode(), unhex(signed["context"]), data[:-64]
    )
    key = SigningKey(unhex(signed["identity_seed"]))
    assert key.public_bytes.hex() == signed["identity"]
    assert key.sign(text) == data[-64:]
    parsed = getattr(messages, kind).from_bytes(data, SUITES[case["suite"]])
    parsed.verify(key.public_bytes, unhex(signed["context"]))


def test_every_message_has_a_case_and_the_hybrid_ones_two():
    suites = {
        content["message"]: {case["suite"] for case in content["cases"]}
        for content in MESSAGES.values()
    }
    tags = {c["cases"][0]["fields"]["tag"] for c in MESSAGES.values()}
    assert tags == set(range(1, 11))
    hybrid = {"Advertise", "Roster", "Neighbourhood", "ShareKeys", "Delivery"}
    assert {kind for kind, found in suites.items() if 2 in found} == hybrid


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_encoding_is_no_message(name):
    case = INVALID[name]
    assert case["error"] == "MessageError"
    with pytest.raises(MessageError) as caught:
        getattr(messages, case["message"]).from_bytes(
            unhex(case["bytes"]), SUITES[case["suite"]]
        )
    assert type(caught.value) is MessageError


def test_every_message_has_invalid_encodings():
    for content in MESSAGES.values():
        names = [n for n, c in INVALID.items() if c["message"] == content["message"]]
        assert len(names) >= 5
    assert len({case["bytes"] for case in INVALID.values()}) == len(INVALID)


# ------------------------------------------------------------- whole rounds


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_is_played_from_its_file(name):
    recorded = Recorded(name)
    params = recorded.params()
    assert params.session_id(recorded.model).hex() == recorded.content["session_id"]
    assert Replay(recorded).play() == recorded.content["result"]


@pytest.mark.parametrize("name", ROUNDS)
def test_the_sum_of_a_round_is_the_plain_sum(name):
    recorded = Recorded(name)
    result, params = recorded.content["result"], recorded.params()
    total = params.zeros()
    for survivor in result["survivors"]:
        total.add_in_place(ring_vector(params, recorded.clients[survivor]["input"]))
    assert total.lane.tobytes().hex() == result["lane"]
    assert total.body.tobytes().hex() == result["body"]
    assert np.any(total.body)


def for_the_reference():
    return [
        name
        for name, content in ROUNDS.items()
        if content["parameters"]["suite"] == 1
        and not content["parameters"]["degree"]
        and not content["deviates"]
    ]


@pytest.mark.parametrize("name", for_the_reference())
def test_the_second_implementation_plays_the_same_round(name):
    recorded = Recorded(name)
    replay = Replay(recorded, ReferenceClient, ReferenceServer)
    assert replay.play() == recorded.content["result"]


def test_the_rounds_cover_what_they_should():
    everything = [content["parameters"] for content in ROUNDS.values()]
    assert {one["suite"] for one in everything} == set(SUITES)
    assert {one["ring_bits"] for one in everything} == {16, 32, 64}
    assert any(one["degree"] for one in everything)
    sizes = {(len(c["clients"]), c["parameters"]["threshold"]) for c in ROUNDS.values()}
    assert {(3, 2), (3, 3), (4, 3), (5, 4)} <= sizes
    left = {
        one["leaves"]
        for content in ROUNDS.values()
        if len(content["clients"]) == 5
        for one in content["clients"]
    }
    assert left == {None, *PHASES}
    assert len(for_the_reference()) >= 10


@pytest.mark.parametrize("name", [n for n, c in ROUNDS.items() if c["encapsulations"]])
def test_recorded_encapsulations_decapsulate(name):
    recorded = Recorded(name)
    suite, session = SUITES[2], unhex(recorded.content["session_id"])
    for one in recorded.content["encapsulations"]:
        fresh = recorded.randomness(one["peer"], "advertise-keys")
        label = labels.CHANNEL_SECRET
        if one["key"] == "mask key":
            fresh = kdf.derive(labels.RECOVERY_SECRET, fresh, session, 32)
            label = labels.MASK_KEY
        key = AgreementKey.derive(label, fresh, session, suite)
        ciphertext = unhex(one["ciphertext"])
        assert key.decapsulate(ciphertext).secret.hex() == one["secret"]
        assert ciphertext in recorded.up["share-keys", one["client"]]


# ------------------------------------------------------------- failing rounds


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_round_ends_with_its_refusal(name):
    recorded = Recorded(name)
    replay = Replay(recorded)
    with pytest.raises(ProtocolError) as caught:
        replay.play()
    expected = {k: v for k, v in recorded.refusal.items() if k != "because"}
    assert refusal_of(caught.value, replay.acting) == expected


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_round_differs_from_its_base(name):
    failing, base = FAILING[name], Recorded(FAILING[name]["base"])
    assert failing["about"].endswith(".")
    assert failing["messages"] or failing["leaves"]
    for one in failing["messages"]:
        kind = base.up if one["way"] == "up" else base.down
        before = kind.get((one["phase"], one["client"]))
        assert before != unhex(one["bytes"])
    # Nobody honest is named alone; of several named at least one deviates.
    refusal, deviates = failing["refusal"], set(failing["deviates"])
    assert "client" not in refusal or refusal["client"] in deviates
    assert refusal["error"] != "FaultyServerError" or "server" in deviates
    if refusal["error"] == "FaultyBoxesError":
        assert deviates & {"server", *refusal["dealers"]}


# Rules that no message can show to be broken.
NOT_ON_THE_WIRE = {
    "SA-201": "whom a client deals shares to: inside its boxes, see SA-205 and SA-506",
    "SA-302": "masks cover the whole ring: see the derivations",
    "SA-507": "what a party forgets",
    "SA-508": "which masks the server removes: see the sums",
}
# Rules about our own caller, and where they are tested.
MISUSE_ONLY = {
    "SA-001": "test_parsing.py, parameters that contradict each other",
    "SA-002": "test_parsing.py, parameters that contradict each other",
    "SA-003": "test_parsing.py, parameters that contradict each other",
    "SA-004": "test_parsing.py, parameters that contradict each other",
    "SA-005": "test_parsing.py, arguments of our own caller",
    "SA-006": "test_parsing.py, a step refuses the state of another phase",
    "SA-007": "test_binding.py, the session id covers every parameter",
    "SA-008": "test_stored.py",
}


def test_every_rule_that_a_peer_can_break_is_broken_once():
    text = "".join(
        path.read_text("utf-8") for path in (ROOT / "protocols").rglob("*.py")
    )
    rules = set(re.findall(r"SA-\d{3}", text))
    broken = {
        rule
        for case in FAILING.values()
        for rule in (case["refusal"]["rule"], *case["refusal"]["because"])
    }
    broken |= {
        one["rule"] for c in ROUNDS.values() for one in c["result"]["suspicions"]
    }
    assert len(rules) > 35
    assert broken | MISUSE_ONLY.keys() | NOT_ON_THE_WIRE.keys() == rules
    assert not broken & (MISUSE_ONLY.keys() | NOT_ON_THE_WIRE.keys())


# ---------------------------------------------------------------- derivations


def steps(*functions):
    return [
        pytest.param(step, id=f"{section['round']}-{step['function']}-{number}")
        for section in DERIVATIONS["sections"]
        for number, step in enumerate(section["steps"])
        if step["function"] in functions
    ]


@pytest.mark.parametrize("step", steps("digest"))
def test_digests(step):
    label, parts = step["label"].encode(), [unhex(part) for part in step["parts"]]
    assert kdf.digest(label, *parts).hex() == step["output"]
    assert transcript.digest(label, *parts).hex() == step["output"]


@pytest.mark.parametrize("step", steps("derive"))
def test_derivations(step):
    arguments = (
        step["label"].encode(),
        unhex(step["secret"]),
        unhex(step["salt"]),
        step["length_bytes"],
        *(unhex(part) for part in step["info"]),
    )
    assert kdf.derive(*arguments).hex() == step["output"]
    assert transcript.derive(*arguments).hex() == step["output"]


@pytest.mark.parametrize("step", steps("mask"))
def test_masks(step):
    key, lane, body = unhex(step["key"]), unhex(step["lane"]), unhex(step["body"])
    start = len(lane) + -len(lane) % 64
    stream = Stream(key, step["cipher"]).read(start + len(body))
    assert stream[: len(lane)] == lane
    assert stream[start:] == body
    if step["cipher"] == "chacha20":
        assert chacha20.keystream(key, bytes(12), 0, len(stream)) == stream
    else:
        assert masks.aes_stream(key)(len(stream)) == stream


@pytest.mark.parametrize("step", steps("merkle root"))
def test_merkle_roots(step):
    leaves = [unhex(leaf) for leaf in step["leaves"]]
    assert transcript.merkle_root(leaves).hex() == step["output"]


@pytest.mark.parametrize("step", steps("split"))
def test_shares(step):
    width = slow_shamir.LIMBS * len(step["secrets"])
    drawn = slow_shamir.draw_coefficients(
        masks.aes_stream(unhex(step["key"])), step["threshold"] - 1, width
    )
    assert drawn == step["coefficients"]
    for place, secret in enumerate(step["secrets"]):
        limbs = slice(slow_shamir.LIMBS * place, slow_shamir.LIMBS * (place + 1))
        rows = [row[limbs] for row in drawn]
        shares = slow_shamir.split(unhex(secret), step["points"], rows)
        assert [share.hex() for share in shares] == [
            row[place] for row in step["output"]
        ]


@pytest.mark.parametrize("step", steps("seal"))
def test_seals(step):
    names = ("key", "nonce", "plaintext", "header")
    assert aead.seal_box(*(unhex(step[name]) for name in names)).hex() == step["output"]


@pytest.mark.parametrize("step", steps("x25519"))
def test_exchanges(step):
    found = x25519(unhex(step["private"]), unhex(step["public"]))
    assert found.hex() == step["output"]


@pytest.mark.parametrize("step", steps("sign"))
def test_signatures(step):
    key = SigningKey(unhex(step["seed"]))
    assert key.sign(unhex(step["message"])).hex() == step["output"]


def test_decapsulations_belong_to_a_key_of_the_round():
    found = [step.values[0] for step in steps("decapsulate")]
    assert found
    for step in found:
        (pair,) = [
            one
            for one in ROUNDS["suite-2-three-clients"]["encapsulations"]
            if one["ciphertext"] == step["ciphertext"]
        ]
        assert pair["secret"] == step["output"]
        entry = Recorded("suite-2-three-clients").up["advertise-keys", pair["peer"]]
        keys = messages.Advertise.from_bytes(entry, SUITES[2])
        public = getattr(keys, pair["key"].replace(" ", "_"))[32:]
        assert hashlib.sha256(public).hexdigest() == step["public_sha256"]


def test_the_graph_follows_from_its_seed():
    (section,) = [one for one in DERIVATIONS["sections"] if "neighbours" in one]
    (seed,) = [unhex(step["output"]) for step in section["steps"]]
    near = section["neighbours"]
    degree = ROUNDS[section["round"]]["parameters"]["degree"]
    data = masks.aes_stream(seed)(16 * len(near))
    keys = [int.from_bytes(data[i : i + 16], "little") for i in range(0, len(data), 16)]
    ring = sorted(range(len(near)), key=keys.__getitem__)
    for place, index in enumerate(ring):
        distances = range(1, degree // 2 + 1)
        expected = {
            ring[(place + sign * far) % len(ring)]
            for far in distances
            for sign in (1, -1)
        }
        assert sorted(expected) == near[index]


def test_every_label_appears():
    """In a derivation, or in the header of a box or vault."""
    everything = [s for section in DERIVATIONS["sections"] for s in section["steps"]]
    used = {step["label"].encode() for step in everything if "label" in step}
    headers = [unhex(step["header"]) for step in everything if "header" in step]
    for name, label in vars(labels).items():
        if not name.isupper() or name in {
            "VERSION",
            "STORED_ANSWER",
        }:  # the last: local
            continue
        assert label in used or any(label in header for header in headers), name
