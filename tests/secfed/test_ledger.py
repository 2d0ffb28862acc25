"""Drop, reorder, alter, fork, cut: the error names the entry."""

from __future__ import annotations

import base64
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence
import pytest
from securesystemslib.signer import CryptoSigner, Signer

from protocols.merkle import leaf_hash
from secfed import signing
from secfed.attestations import written_keys
from secfed.canonical import jcs, parse_jcs
from secfed.entries import PlanEntry, RoundEntry, commit, parse_body
from secfed.errors import LedgerError, RunDirectoryError, VerificationError
from secfed.ledger import GENESIS, Ledger, split_lines, verify_entries
from secfed.signing import MANIFEST, ORDER, CoordinatorKey

KEY = evidence.KEY
PUBLIC = KEY.public_bytes


def fill(path: Path, key: CoordinatorKey = KEY) -> Path:
    with Ledger(path, key) as ledger:
        ledger.append("study", evidence.study_entry(key=key).to_body(), evidence.TIME)
        ledger.append("plan", evidence.plan_entry().to_body(), evidence.TIME)
        for entry in evidence.round_entries():
            ledger.append(entry.kind, entry.to_body(), evidence.TIME)
    return path


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = fill(tmp_path_factory.mktemp("ledger") / "ledger.jsonl")
    return split_lines(path.read_bytes())


def failing_entry(lines: list[bytes]) -> int:
    with pytest.raises(LedgerError) as caught:
        verify_entries(lines, PUBLIC)
    assert f"entry {caught.value.entry}" in str(caught.value)
    return caught.value.entry


# The chain


def test_healthy_ledger(lines: list[bytes]) -> None:
    entries = verify_entries(lines, PUBLIC)
    assert [entry.kind for entry in entries] == [
        "study",
        "plan",
        "round",
        "round-interrupted",
        "round",
    ]
    assert entries[0].previous == GENESIS
    assert [entry.digest for entry in entries] == [leaf_hash(x).hex() for x in lines]
    assert entries[3].previous == entries[2].digest
    assert isinstance(entries[2].parsed(), RoundEntry)


@pytest.mark.parametrize("dropped", [0, 1, 2, 3])
def test_dropped_entry(lines: list[bytes], dropped: int) -> None:
    assert failing_entry(lines[:dropped] + lines[dropped + 1 :]) == dropped


def test_reordered_and_repeated_entries(lines: list[bytes]) -> None:
    assert failing_entry([lines[0], lines[2], lines[1], *lines[3:]]) == 1
    assert failing_entry([*lines, lines[-1]]) == 5


def test_every_byte_counts(lines: list[bytes]) -> None:
    line = lines[1]
    for position in range(0, len(line), 61):
        altered = bytearray(line)
        altered[position] ^= 1
        assert failing_entry([lines[0], bytes(altered), *lines[2:]]) == 1


def test_fork(lines: list[bytes], tmp_path: Path) -> None:
    with Ledger(tmp_path / "fork", KEY) as fork:
        fork.append("study", evidence.study_entry().to_body(), "2026-03-02T12:00:00Z")
        fork.append("plan", evidence.plan_entry(private=False).to_body(), evidence.TIME)
        fork.append("round", evidence.round_entries()[0].to_body(), evidence.TIME)
    forked = split_lines((tmp_path / "fork").read_bytes())
    assert failing_entry([lines[0], forked[1], *lines[2:]]) == 1


def test_other_key(lines: list[bytes]) -> None:
    with pytest.raises(LedgerError, match="signed by other keys") as caught:
        verify_entries(lines, evidence.OTHER_KEY.public_bytes)
    assert caught.value.entry == 0


def change(line: bytes, how: Callable[[dict[str, Any]], None]) -> bytes:
    fields = parse_jcs(line)
    how(fields)
    return jcs(fields)


def signed_as(line: bytes, signature: bytes) -> bytes:
    def replaced(fields: dict[str, Any]) -> None:
        fields["signatures"][0]["sig"] = base64.b64encode(signature).decode()

    return change(line, replaced)


def test_forged_entry_and_wrong_signatures(lines: list[bytes]) -> None:
    payload = base64.b64decode(parse_jcs(lines[2])["payload"])
    forged = payload.replace(b'"attempt":1', b'"attempt":2')

    def other(fields: dict[str, Any]) -> None:
        fields["payload"] = base64.b64encode(forged).decode()

    # Another content below the old signature; the right content, wrongly signed.
    wrong = [
        change(lines[2], other),
        signed_as(lines[2], KEY.sign(MANIFEST, payload)),
        signed_as(lines[2], evidence.OTHER_KEY.sign_text(b"DSSEv1 " + payload)),
        signed_as(lines[2], b""),
    ]
    for line in wrong:
        with pytest.raises(LedgerError, match="signature") as caught:
            verify_entries([*lines[:2], line, *lines[3:]], PUBLIC)
        assert caught.value.entry == 2


def test_an_envelope_has_one_encoding(lines: list[bytes]) -> None:
    def twice(fields: dict[str, Any]) -> None:
        fields["signatures"].append(fields["signatures"][0])

    def unsigned(fields: dict[str, Any]) -> None:
        fields["signatures"] = []

    def more(fields: dict[str, Any]) -> None:
        fields["signatures"][0]["more"] = 1

    def other_type(fields: dict[str, Any]) -> None:
        fields["payloadType"] = "text/plain"

    def url_safe(fields: dict[str, Any]) -> None:
        signature = fields["signatures"][0]["sig"]
        fields["signatures"][0]["sig"] = signature.translate(str.maketrans("+/", "-_"))

    for how in (twice, unsigned, more, other_type):
        changed = change(lines[1], how)
        assert failing_entry([lines[0], changed, *lines[2:]]) == 1
    safe = change(lines[1], url_safe)
    if safe != lines[1]:
        assert failing_entry([lines[0], safe, *lines[2:]]) == 1
    spaced = lines[1].replace(b'","', b'", "', 1)
    assert failing_entry([lines[0], spaced, *lines[2:]]) == 1


def test_entries_are_in_toto_statements(lines: list[bytes]) -> None:
    statement = parse_jcs(base64.b64decode(parse_jcs(lines[2])["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:secfed:ledger:round:2"
    names = [one["name"] for one in statement["subject"]]
    assert names == ["study", "adapters/round-001.safetensors"]
    body = statement["predicate"]["body"]
    assert statement["subject"][1]["digest"] == {"sha256": body["adapter_sha256"]}


@pytest.mark.parametrize("scheme", ["ml-dsa-44/1", "ed25519", "ecdsa-sha2-nistp256"])
def test_who_signs_beside_the_coordinator(tmp_path: Path, scheme: str) -> None:
    made = {
        "ml-dsa-44/1": lambda: CryptoSigner.generate_mldsa(scheme=scheme),
        "ed25519": CryptoSigner.generate_ed25519,
        "ecdsa-sha2-nistp256": CryptoSigner.generate_ecdsa,
    }[scheme]()
    # The key in a file, opened by the library as an operator would name it.
    (tmp_path / "beside.pem").write_bytes(made.private_bytes)
    uri = f"file2:{tmp_path / 'beside.pem'}"
    beside = Signer.from_priv_key_uri(uri, made.public_key)
    path = tmp_path / "ledger.jsonl"
    entry = evidence.study_entry(also_signed_by=written_keys([beside]))
    with Ledger(path, KEY, [beside]) as ledger:
        ledger.append("study", entry.to_body(), evidence.TIME)
        ledger.append("plan", evidence.plan_entry().to_body(), evidence.TIME)
    lines = split_lines(path.read_bytes())
    assert len(verify_entries(lines, PUBLIC)) == 2
    assert len(parse_jcs(lines[1])["signatures"]) == 2

    def alone(fields: dict[str, Any]) -> None:
        fields["signatures"] = fields["signatures"][:1]

    with pytest.raises(LedgerError, match="signed by other keys") as caught:
        verify_entries([lines[0], change(lines[1], alone)], PUBLIC)
    assert caught.value.entry == 1
    # Whoever signs is named in entry 0, and who is named signs.
    with (
        Ledger(tmp_path / "unnamed", KEY, [beside]) as ledger,
        pytest.raises(LedgerError, match="does not name everybody"),
    ):
        ledger.append("study", evidence.study_entry().to_body(), evidence.TIME)
    with (
        Ledger(tmp_path / "named", KEY) as ledger,
        pytest.raises(LedgerError, match="does not name everybody"),
    ):
        ledger.append("study", entry.to_body(), evidence.TIME)


def test_the_study_comes_first_and_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl", KEY) as ledger:
        with pytest.raises(LedgerError, match="entry 0 is the study"):
            ledger.append("plan", evidence.plan_entry().to_body(), evidence.TIME)
        ledger.append("study", evidence.study_entry().to_body(), evidence.TIME)
        with pytest.raises(LedgerError, match="entry 0 is the study"):
            ledger.append("study", evidence.study_entry().to_body(), evidence.TIME)
        assert (tmp_path / "ledger.jsonl").read_bytes().count(b"\n") == 1


def test_large_seeds_survive_a_format_without_large_integers(tmp_path: Path) -> None:
    entry = evidence.study_entry(simulation_seed=2**63 - 1)
    with Ledger(tmp_path / "ledger.jsonl", KEY) as ledger:
        ledger.append("study", entry.to_body(), evidence.TIME)
    (read,) = verify_entries(ledger.lines(), PUBLIC)
    assert read.parsed() == entry
    assert read.body["simulation_seed"] == str(2**63 - 1)
    for wrong in (7, "07", "x", 7.0):
        with pytest.raises(ValueError, match="seed"):
            parse_body("study", entry.to_body() | {"simulation_seed": wrong})


def test_the_key_signs_no_text_without_a_head_of_its_own() -> None:
    for text in (b"", b"secfed/manifest/1", b"\x00\x11secfed/manifest/1x", b"anything"):
        with pytest.raises(ValueError, match="only DSSE"):
            KEY.sign_text(text)


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"{}", b"\xff", b'{"index":0}', b"[" * 99_999]
)
def test_garbage_lines(line: bytes) -> None:
    assert failing_entry([line]) == 0


# The file


def test_reopened_ledger_continues_the_chain(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    with Ledger(path, KEY) as ledger:
        before = ledger.entries()
        entry = ledger.append(
            "round", evidence.round_entries()[0].to_body(), evidence.TIME
        )
        assert ledger.entries() == (*before, entry)
    assert verify_entries(split_lines(path.read_bytes()), PUBLIC) == (*before, entry)


def test_only_an_incomplete_last_line_is_cut(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 200, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with Ledger(path, KEY) as ledger:
            assert len(ledger.entries()) == 4
        assert path.read_bytes() == whole[:last]


def test_other_damage_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    whole = path.read_bytes()
    second = whole.index(b"\n") + 100
    damaged = whole[:second] + b"A" + whole[second + 1 :]
    for content, entry in ((damaged, 1), (whole + b"\n", 5), (damaged + b"{", 1)):
        path.write_bytes(content)
        with pytest.raises(LedgerError) as caught:
            Ledger(path, KEY)
        assert caught.value.entry == entry
        assert path.read_bytes() == content


def test_incomplete_line_is_not_verified() -> None:
    with pytest.raises(LedgerError, match="incomplete") as caught:
        split_lines(b"{}\n{")
    assert caught.value.entry == 1


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        Ledger(tmp_path / "ledger.jsonl", KEY),
        pytest.raises(RunDirectoryError, match="another process"),
    ):
        Ledger(tmp_path / "ledger.jsonl", KEY)
    Ledger(tmp_path / "ledger.jsonl", KEY).close()


def test_malformed_entries_are_not_written(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    before = path.read_bytes()
    body = evidence.round_entries()[0].to_body()
    with Ledger(path, KEY) as ledger:
        for kind, value, time in (
            ("rounds", body, evidence.TIME),
            ("round", body | {"extra": 1}, evidence.TIME),
            ("round", body | {"attempt": float("nan")}, evidence.TIME),
            ("round", body, "yesterday"),
            ("round", body, "2026-03-01T12:00:00+02:00"),
            ("round", body, "2026-03-01T12:00:00"),
        ):
            with pytest.raises(LedgerError, match="not written"):
                ledger.append(kind, value, time)
        assert len(ledger.entries()) == 5
    assert path.read_bytes() == before


def test_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    before = path.read_bytes()
    body = evidence.round_entries()[0].to_body()
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 400:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with Ledger(path, KEY) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", half)
            with pytest.raises(OSError, match="No space"):
                ledger.append("round", body, evidence.TIME)
        assert path.read_bytes() == before
        ledger.append("round", body, evidence.TIME)
    assert len(verify_entries(split_lines(path.read_bytes()), PUBLIC)) == 6


def test_signal_between_writing_and_remembering(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    body = evidence.round_entries()[0].to_body()
    with Ledger(path, KEY) as ledger:
        ledger.append("round", body, evidence.TIME)
        ledger._entries, ledger._size = ledger._entries[:-1], 0
        assert ledger.append("round", body, evidence.TIME).index == 6
    assert len(verify_entries(split_lines(path.read_bytes()), PUBLIC)) == 7


# Bodies


def test_bodies_are_read_strictly() -> None:
    body = evidence.round_entries()[2].to_body()
    assert parse_body("round", body) == evidence.round_entries()[2]
    wrong = (
        {"round": 0},
        {"round": "3"},
        {"round": True},
        {"participants": ["north", "north"]},
        {"survivors": ["north"]},
        {"survivors": ["north", "south", "west"]},
        {"dropouts": {"east": "shares"}},
        {"spent": {"east": {}}},
        {"epsilon": {"north": 1.0}},
        {"epsilon": dict.fromkeys(evidence.SITES, -1.0)},
        {"adapter_sha256": "AB" * 32},
    )
    for change in wrong:
        with pytest.raises(ValueError, match="round: "):
            parse_body("round", body | change)
    del body["attempt"]
    with pytest.raises(ValueError, match="attempt"):
        parse_body("round", body)


def test_a_commitment_binds_and_hides() -> None:
    salts = bytes(32), b"\x01" * 32
    said = {commit(text, salt) for text in ("a", "b") for salt in salts}
    assert len(said) == 4
    assert commit("a", salts[0]) in said
    with pytest.raises(ValueError, match="32 bytes"):
        commit("a", b"short")


def test_private_runs_need_a_plan_for_every_site() -> None:
    body = evidence.plan_entry().to_body()
    assert isinstance(parse_body("plan", body), PlanEntry)
    body["sites"]["north"] = None
    with pytest.raises(ValueError, match="north"):
        parse_body("plan", body)


# The signing key


def test_key_file(tmp_path: Path) -> None:
    path = tmp_path / "private" / "coordinator.key"
    key = signing.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    assert signing.load_or_create(path).public_bytes == key.public_bytes
    other = signing.load_or_create(tmp_path / "other.key")
    assert other.public_bytes != key.public_bytes


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "coordinator.key"
    signing.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(RunDirectoryError, match="open to other users"):
        signing.load_or_create(path)


def test_files_that_are_not_keys(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.key"
    path.touch(mode=0o600)
    for content in (b"", b"00" * 31, b"zz" * 32, b"00" * 33, b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(RunDirectoryError, match="not a signing key") as caught:
            signing.load_or_create(path)
        assert caught.value.__cause__ is None
        assert path.read_bytes() == content
    link = tmp_path / "link.key"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match="cannot be opened"):
        signing.load_or_create(link)
    os.mkfifo(tmp_path / "pipe.key", mode=0o600)
    with pytest.raises(RunDirectoryError, match="not a plain file"):
        signing.load_or_create(tmp_path / "pipe.key")
    (tmp_path / "directory.key").mkdir(mode=0o700)
    with pytest.raises(RunDirectoryError, match="Is a directory"):
        signing.load_or_create(tmp_path / "directory.key")


def test_key_is_never_shown() -> None:
    secret = bytes(range(32))
    key = CoordinatorKey(secret)
    for text in (repr(key), str(key), f"{key}"):
        assert secret.hex() not in text
        assert str(secret) not in text
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(ValueError, match="32"):
        CoordinatorKey(b"short")


def test_signatures_are_bound_to_label_key_and_message() -> None:
    signature = KEY.sign(MANIFEST, b"message")
    signing.verify_signature(PUBLIC, MANIFEST, b"message", signature)
    wrong = (
        (evidence.OTHER_KEY.public_bytes, MANIFEST, b"message", signature),
        (PUBLIC, ORDER, b"message", signature),
        (PUBLIC, MANIFEST, b"massage", signature),
        (PUBLIC, MANIFEST, b"message", signature[:-1]),
        (PUBLIC[:-1], MANIFEST, b"message", signature),
    )
    for arguments in wrong:
        with pytest.raises(VerificationError):
            signing.verify_signature(*arguments)
    with pytest.raises(ValueError, match="label"):
        KEY.sign("secfed/anything", b"message")


def test_fingerprints() -> None:
    value = KEY.fingerprint()
    shown = signing.format_fingerprint(value)
    assert [len(group) for group in shown.split(" ")] == [4] * 16
    for text in (value, shown, shown.upper(), shown.replace(" ", ":")):
        assert signing.parse_fingerprint(text) == value
    for text in ("", value[:-1], value + "0", "g" * 64):
        with pytest.raises(ValueError, match="64"):
            signing.parse_fingerprint(text)
