"""Health and metrics: what they say, to whom, and what never is in them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secfed.canonical import canonical_json
from secfed.cli import app
from secfed.errors import (
    LedgerError,
    PolicyError,
    RoundAbortedError,
    StudyError,
    TooFewSitesError,
)
from secfed.runtime.envelope import ORDERS
from secfed.runtime.metrics_server import loopback, serving_metrics
from secfed.runtime.progress import NoProgress
from secfed.runtime.served import create_served, open_served
from secfed.runtime.status import StatusProgress
from secfed.runtime.vitals import (
    PREPARING,
    SITE_PHASES,
    Vitals,
    known_phase,
    metrics_text,
)

FULL = Vitals(
    role="coordinator",
    round=2,
    rounds=3,
    phase="masked input",
    seconds={"local training": 1.5},
    bytes_up=10,
    bytes_down=20,
    epsilon_spent=0.25,
    epsilon_limit=8.0,
    sites=(3, 4, 3),
    last_error="TooFewSitesError",
)
SAMPLE = re.compile(r'[a-z_]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? [-+.e\d]+')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as told:
            return told.status, told.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# The text


def test_every_order_has_a_name_for_people() -> None:
    assert set(SITE_PHASES) == set(ORDERS)


def test_every_line_is_of_the_format_and_every_name_is_told_of_once() -> None:
    lines = metrics_text(FULL).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples), samples
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert {re.split(r"[{ ]", line)[0] for line in samples} == set(names)
    assert "secfed_round 2" in samples
    assert 'secfed_phase_info{phase="masked input"} 1' in samples
    assert 'secfed_phase_seconds_total{phase="local training"} 1.5' in samples
    assert 'secfed_bytes_total{direction="down"} 20' in samples
    assert "secfed_epsilon_spent 0.25" in samples
    assert "secfed_sites_needed 3" in samples
    assert 'secfed_last_error_info{class="TooFewSitesError"} 1' in samples


def test_what_is_not_known_is_left_out_and_labels_cannot_break_a_line() -> None:
    text = metrics_text(Vitals(role="site"))
    assert "epsilon" not in text
    assert "secfed_sites" not in text
    assert "last_error" not in text
    text = metrics_text(Vitals(role="site", last_error='a"b\\c\nd'))
    assert r'{class="a\"b\\c\nd"} 1' in text


def test_only_phases_of_a_round_are_named() -> None:
    assert known_phase("masked input") == "masked input"
    assert known_phase("12 records of Mrs Miller") == PREPARING


# The listener


@pytest.mark.parametrize(
    "where",
    [
        *("0.0.0.0:9464", "[::]:9464", "10.1.2.3:9464", "[2001:db8::1]:9464"),
        *("localhost:9464", "fl.example.org:9464", "::ffff:10.1.2.3:9464"),
        *("0", "65536", "-1", "nine", "", "127.0.0.1:", "\uff19\uff14"),
    ],
)
def test_nothing_but_loopback_can_be_given(where: str) -> None:
    with pytest.raises(StudyError, match=r"loopback|not a port"):
        loopback(where)


def test_a_port_or_a_loopback_address_is_taken() -> None:
    assert loopback(9464) == loopback("9464") == ("127.0.0.1", 9464)
    assert loopback("127.0.0.2:80") == ("127.0.0.2", 80)
    assert loopback("[::1]:9464") == ("::1", 9464)


def test_two_paths_are_answered_on_a_real_socket() -> None:
    held, port = [FULL], free_port()
    with serving_metrics(port, lambda: held[0]):
        assert answer(port, "/healthz") == (200, "ok\n")
        assert answer(port, "/metrics") == (200, metrics_text(FULL))
        held[0] = replace(FULL, healthy=False)
        assert answer(port, "/healthz") == (503, "not well\n")
        assert "secfed_healthy 0" in answer(port, "/metrics")[1]
        assert answer(port, "/")[0] == 404
        assert answer(port, "/metrics?x=1")[0] == 404
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics", method="POST"
        )
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(request)  # noqa: S310 - our own server
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_a_port_that_somebody_has_is_said_and_none_is_none() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(StudyError, match="choose another port"),
            serving_metrics(port, lambda: FULL),
        ):
            pass
    with serving_metrics(None, lambda: FULL):
        pass


# A coordinator's status


def line(number: int, epsilon: dict[str, float]) -> bytes:
    values = {"round": number, "epsilon": epsilon, "bytes_up": 30, "bytes_down": 5}
    return canonical_json(values) + b"\n"


def told_by(run: Path) -> StatusProgress:
    return StatusProgress(NoProgress(), run, needed=3, epsilon_limit=8.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    create_served(
        tmp_path / "run",
        roster="r",
        keys="k",
        base_dir="b",
        host="h",
        port=1,
        rehearsal=False,
        joining=1.0,
        training=1.0,
        phase=1.0,
    )
    return tmp_path / "run"


def test_events_become_vitals_without_names_of_sites(run: Path) -> None:
    progress = told_by(run)
    assert progress.vitals().phase == PREPARING
    progress.phase("encoding the texts up to the first adapted layer")
    progress.round("ffa-lora", 1, 2)
    progress.phase("masked input")
    progress.site("north-general", 1, 4)
    progress.site("south-clinic", 2, 4)
    found = progress.vitals()
    assert (found.round, found.rounds, found.phase) == (1, 2, "masked input")
    assert found.sites == (2, 4, 3)
    assert "north" not in metrics_text(found)
    (run / "metrics.jsonl").write_bytes(line(0, {}) + line(1, {"a": 0.5, "b": 0.75}))
    progress.finished_round({"bytes_up": 30, "bytes_down": 5, "epsilon": {"b": 0.75}})
    progress.round("ffa-lora", 2, 2)
    found = progress.vitals()
    assert (found.bytes_up, found.bytes_down, found.epsilon_spent) == (30, 5, 0.75)
    assert set(found.seconds) == {PREPARING, "masked input"}


def test_a_round_that_was_aborted_counts_in_what_was_spent(run: Path) -> None:
    progress = told_by(run)
    (run / "metrics.jsonl").write_bytes(line(1, {"a": 0.5}))
    with pytest.raises(RoundAbortedError), progress.noting_the_end():
        raise RoundAbortedError("unmask", (), "too few")
    assert progress.vitals().epsilon_spent == 0.5
    again = told_by(run).vitals()
    assert (again.epsilon_spent, again.last_error) == (0.5, "RoundAbortedError")


def test_a_coordinator_that_gets_no_further_is_not_well(run: Path) -> None:
    progress = StatusProgress(NoProgress(), run, deadline_seconds=-601.0)
    assert not progress.vitals().healthy
    assert told_by(run).vitals().healthy


def secfed(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(part) for part in arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), "stopped"),
        (TooFewSitesError("two"), "aborted"),
        (PolicyError("no"), "refused"),
        (LedgerError(3, "forked"), "failed"),
        (MemoryError(), "failed"),
        (None, "finished"),
    ],
)
def test_status_says_how_a_coordinator_ended(
    run: Path, error: BaseException | None, state: str
) -> None:
    progress = told_by(run)
    progress.round("ffa-lora", 1, 2)
    expected = nullcontext() if error is None else pytest.raises(type(error))
    with expected, progress.noting_the_end():
        if error is not None:
            raise error
    code, said = secfed("status", run, "--json")
    told = json.loads(said)
    assert (code, told["state"]) == (0, state)
    assert told["error"] == ("" if error is None else type(error).__name__)
    code, said = secfed("status", run)
    assert code == 0
    assert (f"secfed resume {run}" in said) == (state != "finished")


def test_a_coordinator_that_ended_without_a_word_was_killed(run: Path) -> None:
    told_by(run).round("ffa-lora", 1, 2)
    assert json.loads(secfed("status", run, "--json")[1])["state"] == "killed"
    (run / "private" / "status.json").write_bytes(b"{")
    assert json.loads(secfed("status", run, "--json")[1]) == {"state": "killed"}


def test_a_record_of_an_older_version_is_still_read(run: Path) -> None:
    path = run / "private" / "serve.json"
    values = json.loads(path.read_bytes())
    assert values.pop("protecting_key") is None
    assert values.pop("metrics") is None
    path.write_bytes(canonical_json(values))
    assert open_served(run).metrics is None


# Stop


@contextmanager
def coordinator(run: Path, ends: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a run open as a coordinator has."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from secfed.runtime.ending import ending_on_sigterm\n"
        "from secfed.runtime.served import opened\n"
        "with opened(Path(sys.argv[1])), ending_on_sigterm():\n"
        "    print('open', flush=True)\n"
        "    while True:\n"
        f"        try: time.sleep(600)\n        except KeyboardInterrupt: {ends}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield process
        finally:
            process.kill()


def test_stop_waits_until_the_coordinator_has_ended(run: Path) -> None:
    with coordinator(run, "break") as process:
        assert json.loads(secfed("status", run, "--json")[1])["state"] == "running"
        assert secfed("stop", run, "--json") == (0, '{\n  "stopped": true\n}\n')
        assert process.wait(30) == 0
    # The lock is free: a resume would begin.
    with (run / "private" / "serve.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert secfed("stop", run) == (0, "no coordinator has this run open\n")


def test_stop_says_that_a_coordinator_has_not_ended(run: Path) -> None:
    with coordinator(run, "pass") as process:
        code, said = secfed("stop", run, "--wait", "0.3")
        assert code == 1
        assert f"process {process.pid} has not" in said
        os.kill(process.pid, signal.SIGKILL)


def test_status_and_stop_of_no_run_are_refused(tmp_path: Path) -> None:
    for command in ("status", "stop"):
        code, said = secfed(command, tmp_path, "--json")
        assert code == 2
        assert json.loads(said)["error"]["type"] == "RunDirectoryError"
