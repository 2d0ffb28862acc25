"""Drop, reorder, alter, fork, cut: the error names the entry."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import evidence
import pytest

from secfed import signing
from secfed.canonical import canonical_json, parse_json
from secfed.entries import PlanEntry, RoundEntry, parse_body
from secfed.errors import LedgerError, RunDirectoryError, VerificationError
from secfed.ledger import GENESIS, Ledger, head, split_lines, verify_entries
from secfed.signing import LEDGER_ENTRY, MANIFEST, CoordinatorKey

KEY = evidence.KEY
PUBLIC = KEY.public_bytes


def fill(path: Path, key: CoordinatorKey = KEY) -> Path:
    with Ledger(path, key) as ledger:
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
        "plan",
        "round",
        "round-interrupted",
        "round",
    ]
    assert entries[0].previous == GENESIS == head([])
    assert entries[3].previous == entries[2].digest
    assert head(entries) == entries[3].digest
    assert isinstance(entries[1].parsed(), RoundEntry)


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_dropped_entry(lines: list[bytes], dropped: int) -> None:
    assert failing_entry(lines[:dropped] + lines[dropped + 1 :]) == dropped


def test_reordered_and_repeated_entries(lines: list[bytes]) -> None:
    assert failing_entry([lines[0], lines[2], lines[1], lines[3]]) == 1
    assert failing_entry([*lines, lines[-1]]) == 4


def test_every_byte_counts(lines: list[bytes]) -> None:
    line = lines[1]
    for position in range(0, len(line), 7):
        altered = bytearray(line)
        altered[position] ^= 1
        assert failing_entry([lines[0], bytes(altered), *lines[2:]]) == 1


def test_fork(lines: list[bytes], tmp_path: Path) -> None:
    with Ledger(tmp_path / "fork", KEY) as fork:
        fork.append("plan", evidence.plan_entry(private=False).to_body(), evidence.TIME)
        fork.append("round", evidence.round_entries()[0].to_body(), evidence.TIME)
    forked = split_lines((tmp_path / "fork").read_bytes())
    assert failing_entry([lines[0], forked[1], *lines[2:]]) == 1


def test_other_key(lines: list[bytes]) -> None:
    with pytest.raises(LedgerError, match="signed") as caught:
        verify_entries(lines, evidence.OTHER_KEY.public_bytes)
    assert caught.value.entry == 0


def test_signature_for_another_purpose(lines: list[bytes]) -> None:
    fields = parse_json(lines[0])
    signed = {
        name: value
        for name, value in fields.items()
        if name not in {"digest", "signature"}
    }
    fields["signature"] = KEY.sign(MANIFEST, canonical_json(signed)).hex()
    with pytest.raises(LedgerError, match="signed"):
        verify_entries([canonical_json(fields)], PUBLIC)
    fields["signature"] = KEY.sign(LEDGER_ENTRY, canonical_json(signed)).hex()
    verify_entries([canonical_json(fields)], PUBLIC)


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
            assert len(ledger.entries()) == 3
        assert path.read_bytes() == whole[:last]


def test_other_damage_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    whole = path.read_bytes()
    damaged = whole.replace(b'"attempt":1', b'"attempt":2', 1)
    for content, entry in ((damaged, 1), (whole + b"\n", 4), (damaged + b"{", 1)):
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
        assert len(ledger.entries()) == 4
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
    assert len(verify_entries(split_lines(path.read_bytes()), PUBLIC)) == 5


def test_signal_between_writing_and_remembering(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger.jsonl")
    body = evidence.round_entries()[0].to_body()
    with Ledger(path, KEY) as ledger:
        ledger.append("round", body, evidence.TIME)
        ledger._entries, ledger._size = ledger._entries[:-1], 0
        assert ledger.append("round", body, evidence.TIME).index == 5
    assert len(verify_entries(split_lines(path.read_bytes()), PUBLIC)) == 6


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
        (PUBLIC, LEDGER_ENTRY, b"message", signature),
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
