"""The operations log: closed, chained, durable, and read back."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secfed.cli import app
from secfed.errors import RunDirectoryError, VerificationError
from secfed.operations import (
    KINDS,
    OperationsLog,
    UnknownEventError,
    read_log,
    selected,
)
from secfed.operations.kinds import checked_fields

DIGEST = "ab" * 32

# What the schema's page on event.category allows together (category: event types).
ECS = {
    "api": {"allowed", "change", "denied", "end", "info", "start"},
    "configuration": {"change", "info"},
    "file": {"change"},
    "iam": {"change"},
    "intrusion_detection": {"denied"},
    "network": {"info"},
    "process": {"end", "start"},
}


@pytest.fixture
def log(tmp_path: Path) -> OperationsLog:
    return OperationsLog(tmp_path / "operations.jsonl", role="site", node="north")


def filled(log: OperationsLog, rounds: int = 4) -> Path:
    log.event("started")
    for number in range(1, rounds + 1):
        log.event("round-started", round=number)
    return log.path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["operations", *arguments])


# What can be said


def test_a_line_has_the_names_of_the_schema(log: OperationsLog) -> None:
    log.about(study=DIGEST).event(
        "site-left", site="west", phase="shares", round=2, error="MessageError"
    )
    (line,) = log.path.read_text().splitlines()
    value = json.loads(line)
    assert value.pop("@timestamp").endswith("Z")
    assert value.pop("service.version")
    assert value == {
        "ecs.version": "8.11.0",
        "event.action": "site-left",
        "event.category": ["api"],
        "event.dataset": "secfed",
        "event.kind": "event",
        "event.outcome": "failure",
        "event.sequence": 0,
        "event.type": ["end"],
        "error.type": "MessageError",
        "labels": {
            "phase": "shares",
            "previous_sha256": "0" * 64,
            "role": "site",
            "round": 2,
            "site": "west",
            "study": DIGEST,
        },
        "log.level": "warning",
        "message": "left a round: error MessageError, phase shares, round 2, site west",
        "service.name": "secfed",
        "service.node.name": "north",
    }


def test_categories_and_types_are_pairs_of_the_schema() -> None:
    for name, kind in KINDS.items():
        assert kind.type in ECS[kind.category], name


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("patients-counted", {}),
        ("round-started", {}),
        ("round-started", {"round": 1, "count": 7}),
        ("round-started", {"round": 1, "message": "Ada Lovelace, born 1815"}),
        ("round-started", {"round": "1"}),
        ("round-started", {"round": True}),
        ("round-started", {"round": 0}),
        ("study-refused", {"error": "Ada Lovelace"}),
        ("study-refused", {"error": "PolicyError", "rules": ["min units: 7 of 10"]}),
        ("study-refused", {"error": "PolicyError", "rules": "min_units"}),
        ("deadline-missed", {"site": "a b", "phase": "shares", "round": 1}),
        ("deadline-missed", {"site": "north", "phase": "lunch", "round": 1}),
        ("budget-alarm", {"population": "cardio", "percent": 53}),
        ("incident-recorded", {"incident": "other: see file", "sha256": DIGEST}),
        ("configuration-loaded", {"file": "policy", "sha256": DIGEST.upper()}),
        ("configuration-loaded", {"file": "/home/ada/site.toml", "sha256": DIGEST}),
    ],
)
def test_what_is_not_in_the_list_is_refused_and_not_written(
    log: OperationsLog, kind: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(UnknownEventError) as raised:
        log.event(kind, **fields)
    assert "Ada" not in str(raised.value)
    assert not log.path.exists()


def test_a_wrong_word_about_the_log_itself_is_refused(tmp_path: Path) -> None:
    log = OperationsLog(tmp_path / "operations.jsonl", node="Ada Lovelace")
    with pytest.raises(UnknownEventError):
        log.event("started")


def test_only_rounds_and_alarm_steps_are_numbers() -> None:
    """No field can hold a number of records, however it is named."""
    taken = set()
    for name, kind in KINDS.items():
        for field in kind.needs | kind.may | {"study", "run", "role", "node"}:
            others = {one: _good(one) for one in kind.needs - {field}}
            checked_fields(name, others | {field: _good(field)})
            try:
                checked_fields(name, others | {field: 50})
            except UnknownEventError:
                continue
            taken.add(field)
    assert taken == {"round", "percent"}


def _good(field: str) -> Any:
    values = {
        "round": 1,
        "percent": 50,
        "study": DIGEST,
        "phase": "shares",
        "reason": "budget",
        "file": "policy",
        "sha256": DIGEST,
        "before": DIGEST,
        "incident": "key-lost",
        "role": "site",
        "blamed": ["north"],
        "rules": ["hours"],
    }
    return values.get(field, "north")


# The chain


def test_the_chain_goes_on_through_processes_and_full_files(tmp_path: Path) -> None:
    path = tmp_path / "operations.jsonl"
    for _ in range(3):  # As at each start of a process.
        filled(OperationsLog(path, max_bytes=1500, role="site"))
    found = read_log(path)
    assert [line.sequence for line in found.lines] == list(range(15))
    assert found.complete
    assert len(found.files) > 2
    assert found.files[-1] == path
    alone = read_log(found.files[1])  # An archived file by itself.
    assert not alone.complete
    assert alone.lines[0].sequence == int(found.files[1].stem.split("-")[1])
    found.files[0].unlink()  # Kept elsewhere, or past its time.
    assert read_log(path).lines[0].sequence == alone.lines[0].sequence


def _many(path: str, site: str) -> None:
    for number in range(1, 21):
        OperationsLog(Path(path), max_bytes=4000).event(
            "budget-reserved", round=number, site=site
        )


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "operations.jsonl"
    spawn = multiprocessing.get_context("fork")
    writers = [
        spawn.Process(target=_many, args=(str(path), site)) for site in ("a", "b", "c")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(read_log(path).lines) == 60


def test_every_changed_byte_is_found_and_the_line_is_named(log: OperationsLog) -> None:
    path = filled(log, rounds=3)
    good = path.read_bytes()
    head = read_log(path).head
    ends = [n for n, byte in enumerate(good) if byte == 10]
    for place in range(0, len(good), 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        line = 1 + sum(end < place for end in ends)
        # The change is in the named line or, where it still reads, shows in the next.
        # Nothing names the last line yet but who has seen it.
        named = rf"line ({line}|{line + 1})\b"
        if line == len(ends):
            named += "|no line has the hash"
        with pytest.raises(VerificationError, match=named):
            read_log(path, seen=head)


@pytest.mark.parametrize("what", ["drop", "swap", "repeat", "insert", "beginning"])
def test_lines_that_were_moved_are_found(log: OperationsLog, what: str) -> None:
    path = filled(log)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "drop": [lines[0], *lines[2:]],
        "swap": [lines[0], lines[2], lines[1], *lines[3:]],
        "repeat": [lines[0], lines[1], *lines[1:]],
        "insert": [lines[0], lines[0], *lines[1:]],
        "beginning": [lines[0].replace(b'sequence":0', b'sequence":9'), *lines[1:]],
    }
    path.write_bytes(b"".join(changed[what]))
    number = 1 if what == "beginning" else 3 if what == "repeat" else 2
    with pytest.raises(VerificationError, match=f"line {number}:"):
        read_log(path)
    result = run("verify", str(path))
    assert result.exit_code == 3
    assert f"line {number}:" in result.output.replace("\n", " ")


def test_a_consistent_chain_of_other_events_is_no_log(log: OperationsLog) -> None:
    path = filled(log, rounds=1)
    lines = path.read_bytes().splitlines()
    for old, new in [
        (b'"round":1', b'"people":7,"round":1'),
        (b'"a round began', b'"Ada Lovelace'),
        (b'"round":1', b'"round":1.0'),
    ]:
        path.write_bytes(lines[0] + b"\n" + lines[1].replace(old, new) + b"\n")
        with pytest.raises(VerificationError, match="line 2"):
            read_log(path)


def test_a_cut_end_is_found_by_who_saw_it(log: OperationsLog) -> None:
    path = filled(log)
    seen = read_log(path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    read_log(path)  # The chain alone cannot tell.
    assert run("verify", str(path), "--seen", seen).exit_code == 3


def test_what_a_crash_left_of_a_line_is_removed_and_told(log: OperationsLog) -> None:
    path = filled(log)
    with path.open("ab") as file:
        file.write(b'{"@timestamp":"2027')
    with pytest.raises(VerificationError, match="line 6 has no end"):
        read_log(path)
    log.event("study-finished")
    actions = [line.action for line in read_log(path).lines]
    assert actions[-2:] == ["line-removed", "study-finished"]


def test_nothing_is_appended_to_a_damaged_end(log: OperationsLog) -> None:
    path = filled(log)
    path.write_bytes(path.read_bytes()[:-20] + b"xxxxxxxxxxxxxxxxxxx\n")
    with pytest.raises(VerificationError, match="aside"):
        log.event("study-finished")


def test_the_file_is_its_owners_and_no_link(tmp_path: Path) -> None:
    path = tmp_path / "state" / "operations.jsonl"
    OperationsLog(path).event("started")
    assert path.stat().st_mode & 0o777 == 0o600
    elsewhere = tmp_path / "elsewhere"
    linked = tmp_path / "linked.jsonl"
    linked.symlink_to(elsewhere)
    with pytest.raises(RunDirectoryError, match="nothing goes on"):
        OperationsLog(linked).event("started")
    assert not elsewhere.exists()


def test_a_line_is_on_the_disk_when_event_returns(
    log: OperationsLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or real(fd))
    log.event("started")
    assert len(synced) == 2  # The file, and the folder that has a new name in it.
    log.event("study-opened")
    assert len(synced) == 3


# Configuration


def test_a_changed_file_is_told_also_after_a_new_file(tmp_path: Path) -> None:
    log = OperationsLog(tmp_path / "operations.jsonl", max_bytes=900)
    log.configuration("policy", DIGEST)
    log.configuration("site", "01" * 32)
    log.configuration("policy", DIGEST)
    assert not selected(read_log(log.path).lines, actions=["configuration-changed"])
    log.configuration("policy", "cd" * 32)
    (line,) = selected(read_log(log.path).lines, actions=["configuration-changed"])
    assert line.fields == {"file": "policy", "sha256": "cd" * 32, "before": DIGEST}


# The command


def test_the_command_filters_and_prints_json(log: OperationsLog) -> None:
    path = filled(log)
    log.about(study=DIGEST).event("budget-refused", site="north")
    assert len(run("show", str(path)).output.splitlines()) == 6
    shown = json.loads(run("show", str(path), "--level", "warning", "--json").output)
    assert [e["event.action"] for e in shown["events"]] == ["budget-refused"]
    same = run("show", str(path), "--study", "abab", "--json").output
    assert json.loads(same) == shown
    assert run("show", str(path), "--action", "lunch").exit_code == 2
    assert run("show", str(path), "--since", "2027-01-01").exit_code == 2
    later = run("show", str(path), "--since", "2999-01-01T00:00Z", "--json").output
    assert json.loads(later) == {"events": []}
    told = json.loads(run("verify", str(path), "--json").output)
    assert (told["events"], told["first_sequence"]) == (6, 0)
    assert told["head"] == read_log(path).head
    assert run("verify", str(path.with_name("none.jsonl"))).exit_code == 3
