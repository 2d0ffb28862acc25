"""Whole runs on disk: repeated, killed, continued, verified and tampered with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confined import no_watch, watch
from faulty import toml_of
from small import EXAMPLE, small_policy, small_study, study_values

from protocols.keys import generate_identity
from secfed.checkpoints import Checkpoint, Cosigner, witness_key
from secfed.errors import BudgetExceededError, RoundAbortedError, RunDirectoryError
from secfed.ledger import CHECKPOINT_NAME, Entry, Ledger, split_lines, verify_entries
from secfed.manifest import read_manifest, write_manifest
from secfed.policy import SitePolicy
from secfed.privacy import accounting
from secfed.privacy.budget import Budget
from secfed.runtime.arms import Arm
from secfed.runtime.local import run_arm, run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.resume import resume_run
from secfed.runtime.setup import Prepared
from secfed.signing import CoordinatorKey, fingerprint, load_or_create
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run

pytestmark = pytest.mark.slow

SEED = 17
ROUNDS = 3
METHOD = "ffa-lora"


class Interrupt(NoProgress):
    """Presses Ctrl-C in round 2, at a named moment."""

    def __init__(self, moment: str, site: int = 0) -> None:
        self.moment, self.at_site = moment, site
        self.number, self.current = 0, ""

    def _press(self, moment: str) -> None:
        if self.number == 2 and moment == self.moment:
            raise KeyboardInterrupt

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        self.number = round
        self._press("round")

    def phase(self, text: str) -> None:
        self.current = text
        if not self.at_site:
            self._press(text)

    def site(self, site: str, done: int, total: int) -> None:
        if done == self.at_site:
            self._press(self.current)

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        self._press("finished")


def play_arm(
    prepared: Prepared,
    study: Study,
    run: Path,
    progress: NoProgress | None = None,
    policy: SitePolicy | None = None,
) -> dict[str, Any]:
    """``run_study`` without loading the model and the texts again."""
    private = run / "private"
    private.mkdir(parents=True, exist_ok=True)
    return run_arm(
        Arm(name=METHOD, study=study),
        prepared,
        run,
        private,
        "run",
        policy or small_policy(),
        progress or NoProgress(),
    )


def entries(run: Path) -> tuple[Entry, ...]:
    key = load_or_create(run / "private" / "coordinator.key")
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    return verify_entries(lines, key.public_bytes)


def kinds(run: Path) -> list[str]:
    return [entry.kind for entry in entries(run)]


def aggregates(run: Path) -> list[str]:
    return [e.body["aggregate_sha256"] for e in entries(run) if e.kind == "round"]


def budgets(run: Path, study: Study) -> dict[str, Budget]:
    policy = small_policy()
    return {
        site: Budget(
            run / "private" / "sites" / site / "budget.sqlite", site, create=False
        ).open(policy.population, "record", policy.max_epsilon, policy.delta)
        for site in study.sites
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def require_settled(run: Path, study: Study, interrupted: set[int]) -> None:
    """A finished run in which exactly these rounds have no sum."""
    report = verify_run(run)
    assert report.passed, report.failures()
    rounds = range(1, ROUNDS + 1)
    expected = ["round-interrupted" if n in interrupted else "round" for n in rounds]
    assert kinds(run) == ["study", "plan", *expected, "release"]
    lines = metrics(run)
    assert [line["round"] for line in lines] == [0, *rounds]
    status = ["interrupted" if n in interrupted else "completed" for n in rounds]
    assert [line["status"] for line in lines[1:]] == status
    for line in lines[1:]:
        assert line["sums_equal"] is (None if line["round"] in interrupted else True)
    for site, budget in budgets(run, study).items():
        charged = [charge.round for charge in budget.history()]
        assert charged == sorted(set(charged)), site  # no round was paid twice
        assert set(charged) >= set(rounds) - interrupted, site
        assert budget.spent_epsilon() <= study.privacy.epsilon
        # The evidence and the budget file tell the same story.
        spent = [
            accounting.event_from_json(e.body["spent"][site])
            for e in entries(run)
            if e.kind in ("round", "round-interrupted") and site in e.body["spent"]
        ]
        assert spent == [charge.event for charge in budget.history()]


# A whole run


@pytest.fixture(scope="module")
def seeded_study() -> Study:
    return small_study(seed=SEED)


@pytest.fixture(scope="module")
def seeded_run(
    packages: None, seeded_study: Study, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("runs") / "seeded"
    summary = run_study(seeded_study, EXAMPLE, run, small_policy(), NoProgress())
    return run, summary


@pytest.fixture
def copied(seeded_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeded_run[0], tmp_path / "copy"))


def test_a_small_study_end_to_end(
    seeded_run: tuple[Path, dict[str, Any]], seeded_study: Study
) -> None:
    run, summary = seeded_run
    require_settled(run, seeded_study, set())
    assert summary["rounds"] == metrics(run)
    assert summary["final"]["accuracy"] == metrics(run)[-1]["accuracy"]
    assert summary["epsilon"].keys() == set(seeded_study.sites)
    assert 0.9 * 8 < summary["epsilon_max"] <= 8
    spent = [budget.spent_epsilon() for budget in budgets(run, seeded_study).values()]
    assert max(spent) == pytest.approx(summary["epsilon_max"], rel=1e-6)
    named = read_manifest((run / "manifest.json").read_bytes()).files
    assert not any(name.startswith("private") for name in named)
    assert {"ledger.jsonl", "statement.json", "report.html", "study.json"} <= set(named)
    assert (run / "private").stat().st_mode & 0o077 == 0
    statement = (run / "statement.json").read_text("utf-8")
    assert "NOT PRIVATE" in statement  # a seed was given
    for key in (run / "private").rglob("*.key"):
        secret = key.read_bytes()
        for path in run.glob("*.*"):
            assert secret not in path.read_bytes()
            assert secret.hex() not in path.read_text("utf-8", "replace")


def test_a_seed_repeats_the_aggregates_and_nothing_else_does(
    seeded_run: tuple[Path, dict[str, Any]],
    seeded_study: Study,
    prepared: Prepared,
    tmp_path: Path,
) -> None:
    again, fresh = tmp_path / "again", tmp_path / "fresh"
    play_arm(prepared, seeded_study, again)
    assert len(aggregates(again)) == ROUNDS
    assert aggregates(again) == aggregates(seeded_run[0])
    released = "adapter/adapter_model.safetensors"
    assert (again / released).read_bytes() == (seeded_run[0] / released).read_bytes()
    # Control: without a seed every aggregate is another.
    play_arm(prepared, small_study(), fresh)
    assert len({*aggregates(again), *aggregates(fresh)}) == 2 * ROUNDS
    assert "NOT PRIVATE" not in (fresh / "statement.json").read_text("utf-8")


def test_a_finished_run_is_read_back_unchanged(
    prepared: Prepared, seeded_study: Study, copied: Path
) -> None:
    def content() -> dict[str, bytes]:
        paths = [
            p for p in copied.rglob("*") if p.is_file() and "private" not in p.parts
        ]
        return {str(path): path.read_bytes() for path in paths}

    before = content()
    run_id = json.loads((copied / "private" / "run.json").read_text("utf-8"))["run_id"]
    run_arm(
        Arm(name=METHOD, study=seeded_study),
        prepared,
        copied,
        copied / "private",
        run_id,
        small_policy(),
        NoProgress(),
    )
    assert content() == before


# Interrupted


@pytest.mark.parametrize(
    ("moment", "site", "interrupted"),
    [
        ("round", 0, set()),  # before any reservation: nothing is lost
        ("advertise keys", 1, {2}),  # one site has reserved
        ("unmask", 4, {2}),  # the sum could be opened, and was not used
        ("finished", 0, set()),  # committed already
    ],
)
def test_control_c_at_any_moment(
    moment: str, site: int, interrupted: set[int], prepared: Prepared, tmp_path: Path
) -> None:
    run, study = tmp_path / "run", small_study()
    with pytest.raises(KeyboardInterrupt):
        play_arm(prepared, study, run, Interrupt(moment, site))
    assert not verify_run(run).passed  # no manifest: it did not end
    play_arm(prepared, study, run)
    require_settled(run, study, interrupted)
    if moment == "advertise keys":
        charged = [len(b.history()) for b in budgets(run, study).values()]
        assert sorted(charged) == [ROUNDS - 1] * 3 + [ROUNDS]


def test_interrupted_twice(prepared: Prepared, tmp_path: Path) -> None:
    run, study = tmp_path / "run", small_study()
    with pytest.raises(KeyboardInterrupt):
        play_arm(prepared, study, run, Interrupt("local training"))
    again = Interrupt("local training")
    again.number = 2
    with pytest.raises(KeyboardInterrupt):
        # Round 2 is settled by then; the next one that starts is round 3.
        play_arm(prepared, study, run, _InRound(again, 3))
    play_arm(prepared, study, run)
    require_settled(run, study, {2, 3})


class _InRound(NoProgress):
    """Passes phases on in one round only."""

    def __init__(self, inner: Interrupt, number: int) -> None:
        self.inner, self.number, self.now = inner, number, 0

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        self.now = round

    def phase(self, text: str) -> None:
        if self.now == self.number:
            self.inner.phase(text)


def test_resume_needs_the_directory_only(packages: None, tmp_path: Path) -> None:
    run, study = tmp_path / "run", small_study()
    with pytest.raises(KeyboardInterrupt):
        run_study(study, EXAMPLE, run, small_policy(), Interrupt("local training"))
    before = aggregates(run)
    assert len(before) == 1
    summary = resume_run(run, NoProgress())
    require_settled(run, study, {2})
    assert aggregates(run)[:1] == before  # round 1 was not played again
    assert summary["epsilon_max"] <= study.privacy.epsilon


SCRIPT = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from small import EXAMPLE, small_policy, small_study
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress

class Waits(NoProgress):
    number, text = 0, ""
    def round(self, arm, round, rounds):
        self.number = round
    def phase(self, text):
        self.text = text
    def site(self, site, done, total):
        if (self.number, self.text, done) == (2, "masked input", 2):
            Path(sys.argv[3]).touch()
            time.sleep(600)

run_study(small_study(), EXAMPLE, Path(sys.argv[2]), small_policy(), Waits())
"""


OFFLINE = """
import os, socket, sys

asked = []

def refuse(*arguments, **named):
    asked.append(arguments)
    raise OSError("the network is cut")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
# What would make libraries look at a hub, if nothing kept them from it.
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(name, None)
from secfed.cli import main

try:
    main()
finally:
    assert not asked, asked  # Nobody tried, so that nobody waited for an answer either.
"""


def test_the_main_job_needs_no_network_and_asks_for_none(
    packages: None, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(toml_of(study_values(1)), "utf-8")
    policy = (EXAMPLE / "site.toml").read_text("utf-8")
    policy = policy.replace("min_units = 50", "min_units = 10")
    (tmp_path / "site.toml").write_text(policy, "utf-8")
    words = ["run", str(tmp_path / "study.toml"), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-W", "ignore", "-c", OFFLINE, *words]
    root = str(Path(__file__).parents[2])
    if no_watch():
        named = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(
            command, env=named, capture_output=True, text=True, check=False
        )
    else:  # Also what is not written in Python, and what catches its errors.
        done, tried = watch(command, tmp_path, environment={"PYTHONPATH": root})
        assert tried == []
    assert done.returncode == 0, done.stderr
    assert verify_run(tmp_path / "run").passed


def test_killed_process(packages: None, tmp_path: Path) -> None:
    run, ready, study = tmp_path / "run", tmp_path / "ready", small_study()
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, here, run, ready],
        env={**os.environ, "PYTHONPATH": str(here.parents[1])},
    )
    try:
        deadline = time.monotonic() + 180
        while not ready.exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert all(len(b.history()) == 2 for b in budgets(run, study).values())
    assert kinds(run) == ["study", "plan", "round"]
    resume_run(run, NoProgress())
    require_settled(run, study, {2})


def test_an_aborted_round_is_spent_and_the_next_one_runs(
    prepared: Prepared, tmp_path: Path
) -> None:
    names = small_study().sites
    gone = [(1, names[0], "shares"), (1, names[1], "masked-input")]
    run, study = tmp_path / "run", small_study(dropouts=gone)
    with pytest.raises(RoundAbortedError):
        play_arm(prepared, study, run)
    assert kinds(run) == ["study", "plan", "round-interrupted"]
    play_arm(prepared, study, run)
    require_settled(run, study, {1})


def test_dropouts_are_in_the_evidence(prepared: Prepared, tmp_path: Path) -> None:
    names = small_study().sites
    gone = [(1, names[0], "shares"), (3, names[1], "masked-input")]
    run, study = tmp_path / "run", small_study(dropouts=gone)
    play_arm(prepared, study, run)
    require_settled(run, study, set())
    first, _, third = (e for e in entries(run) if e.kind == "round")
    assert first.body["dropouts"] == {names[0]: "shares"}
    assert names[0] not in first.body["survivors"]
    assert names[0] in first.body["spent"]  # it trained, so it paid
    assert names[1] in third.body["survivors"]
    assert metrics(run)[3]["silent"] == {names[1]: "masked-input"}


# Refused


def test_a_study_that_the_budget_does_not_hold_spends_nothing(
    prepared: Prepared, tmp_path: Path
) -> None:
    run, study = tmp_path / "run", small_study()
    with pytest.raises(BudgetExceededError, match="nothing was spent") as caught:
        play_arm(prepared, study, run, policy=small_policy(max_epsilon=5.0))
    assert caught.value.exit_code == 4
    assert all(budget.history() == () for budget in budgets(run, study).values())
    play_arm(prepared, study, run)  # the site agrees to more
    require_settled(run, study, set())


def test_the_directory_of_another_study_is_refused(
    copied: Path, seeded_study: Study
) -> None:
    values = study_values()
    values["simulation"]["seed"] = SEED
    values["study"]["title"] = "Another title"
    other = load_study_dict(values, "other")
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    with pytest.raises(RunDirectoryError, match="another study") as caught:
        run_study(other, EXAMPLE, copied, small_policy(), NoProgress())
    assert caught.value.exit_code == 2
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


def test_the_ledger_of_another_study_is_refused(
    copied: Path, prepared: Prepared
) -> None:
    with pytest.raises(RunDirectoryError, match="another study"):
        play_arm(prepared, small_study(seed=SEED + 1), copied)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(RunDirectoryError, match="not empty"):
        run_study(small_study(), EXAMPLE, tmp_path, small_policy(), NoProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunDirectoryError, match="not a run"):
        resume_run(tmp_path, NoProgress())


def test_a_round_adapter_that_changed_is_not_continued(
    prepared: Prepared, tmp_path: Path
) -> None:
    run, study = tmp_path / "run", small_study()
    with pytest.raises(KeyboardInterrupt):
        play_arm(prepared, study, run, Interrupt("local training"))
    flip(run / "adapters" / "round-001.safetensors", -1)
    with pytest.raises(RunDirectoryError, match="not the adapter"):
        play_arm(prepared, study, run)


# Evidence


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_one_changed_byte_anywhere_is_found_and_named(
    seeded_run: tuple[Path, dict[str, Any]], copied: Path
) -> None:
    assert verify_run(copied).passed
    named = read_manifest((copied / "manifest.json").read_bytes()).files
    assert len(named) >= 5 + ROUNDS
    rng = np.random.default_rng(4)
    for name in named:
        path = copied / name
        original = path.read_bytes()
        for position in {0, len(original) - 1, int(rng.integers(len(original)))}:
            flip(path, position)
            report = verify_run(copied)
            assert not report.passed, (name, position)
            assert any(name in failed.reason for failed in report.failures()), name
            path.write_bytes(original)
    for position in rng.integers((copied / "manifest.json").stat().st_size, size=8):
        flip(copied / "manifest.json", int(position))
        assert not verify_run(copied).passed, position
        flip(copied / "manifest.json", int(position))
    assert verify_run(copied).passed


def test_trust_pins_the_coordinator(
    seeded_run: tuple[Path, dict[str, Any]], copied: Path, seeded_study: Study
) -> None:
    own = load_or_create(seeded_run[0] / "private" / "coordinator.key")
    healthy = verify_run(copied, own.fingerprint())
    assert healthy.passed
    assert healthy.pin_label == "PINNED"
    # A forger without the key writes everything anew, consistently, sites included.
    forger = CoordinatorKey(b"\x07" * 32)
    old = entries(copied)
    sites = {
        site: generate_identity(site.encode().ljust(32))
        for site in old[1].body["identities"]
    }
    (copied / "ledger.jsonl").unlink()
    with Ledger(copied / "ledger.jsonl", forger) as ledger:
        for entry in old:
            body = dict(entry.body)
            if entry.kind == "study":
                body["coordinator_key"] = forger.public_bytes.hex()
            if entry.kind == "plan":
                body["identities"] = {s: k.public_bytes.hex() for s, k in sites.items()}
            ledger.append(entry.kind, body, entry.time)
        note = ledger.checkpoint()
    head = Checkpoint.parse(note.text)
    lines = [
        Cosigner(witness_key(site, key.public_bytes), key.sign).cosign(head, 1)
        for site, key in sites.items()
    ]
    cosigned = note.with_signatures(lines).to_bytes()
    (copied / CHECKPOINT_NAME).write_bytes(cosigned)
    (copied / "manifest.json").unlink()
    write_manifest(copied, seeded_study.digest(), forger)
    unpinned = verify_run(copied)
    assert unpinned.passed, unpinned.failures()
    assert unpinned.pin_label == "UNPINNED"
    report = verify_run(copied, own.fingerprint())
    assert not report.passed
    assert report.pin_label == "UNPINNED"
    assert [failed.name for failed in report.failures()] == ["coordinator key"]
    # The sites' own fingerprints show it, too.
    true = entries(seeded_run[0])[1].body["identities"]
    pins = {site: fingerprint(bytes.fromhex(key)) for site, key in true.items()}
    assert verify_run(seeded_run[0], witnesses=pins).passed
    report = verify_run(copied, witnesses=pins)
    assert [failed.name for failed in report.failures()] == ["witnesses"]


def test_a_signature_over_an_old_ledger_does_not_help(
    copied: Path, seeded_study: Study
) -> None:
    # Only the manifest is signed anew: the ledger is still the other key's.
    forger = CoordinatorKey(b"\x07" * 32)
    (copied / "manifest.json").unlink()
    write_manifest(copied, seeded_study.digest(), forger)
    assert not verify_run(copied).passed


def test_prepared_sites_are_hidden(prepared: Prepared) -> None:
    assert repr(prepared) == "Prepared(<private>)"
    assert repr(replace(prepared)) == "Prepared(<private>)"
