"""What goes wrong between machines, with real processes on loopback (kill -9 and all).

The parties are forked (``faulty.py``), so that a start takes seconds; what they run
is what `secfed serve` and `secfed site run` run. One short study is in `make test`, the
others in `make test-deployment`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faulty import SEED, Fault, run_coordinator, run_site, study_of, toml_of
from parties import Parties, protecting_of, set_up
from slow_line import SlowLine
from small import EXAMPLE, planned, small_policy, small_study, study_values

from secfed.canonical import file_sha256
from secfed.entries import InterruptedEntry, RoundEntry
from secfed.ledger import CHECKPOINT_NAME, split_lines, verify_entries
from secfed.privacy.budget import Budget
from secfed.runtime.arms import Arm
from secfed.runtime.deployed import Deadlines
from secfed.runtime.keys import read_coordinator_key
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.roster import read_roster
from secfed.runtime.setup import Prepared
from secfed.signing import CoordinatorKey
from secfed.verify import verify_run

A, B, C, D = study_of(2).sites
PHASES = ("advertise", "shares", "training", "masked-input", "confirm", "unmask")
SECONDS = 3600.0  # Nothing is measured here, and the machine may be busy.


def coordinator_key(parties: Parties) -> CoordinatorKey:
    home = parties.coordinator
    return read_coordinator_key(home / "keys", protecting_of(home))


@dataclass
class Forked:
    """The parties of one study as processes."""

    context: Any
    parties: Parties
    processes: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return self.parties.run

    def start(self, name: str, target: Callable[..., None], **more: Any) -> None:
        where: tuple[Any, ...] = (str(self.parties.folder),)
        if name != "coordinator":
            where += (name,)
        process = self.context.Process(target=target, args=where, kwargs=more)
        process.start()
        self.processes[name] = process

    def site(self, name: str, *faults: Fault, **more: Any) -> None:
        self.start(name, run_site, faults=faults, **more)

    def coordinator(self, *faults: Fault, **more: Any) -> None:
        self.start("coordinator", run_coordinator, faults=faults, **more)

    def code(self, name: str = "coordinator") -> int:
        """Wait for the end of a process; minus nine where it was killed."""
        self.processes[name].join(SECONDS)
        code = self.processes[name].exitcode
        assert code is not None, self.parties.log(name)
        return int(code)

    def finish(self, expected: int = 0) -> None:
        assert self.code() == expected, self.parties.log("coordinator")

    def entries(self) -> list[Any]:
        lines = split_lines((self.run / "ledger.jsonl").read_bytes())
        key = coordinator_key(self.parties)
        return [entry.parsed() for entry in verify_entries(lines, key.public_bytes)]

    def rounds(self) -> dict[int, Any]:
        """The ledger's rounds, completed or interrupted."""
        kinds = (RoundEntry, InterruptedEntry)
        return {e.round: e for e in self.entries() if isinstance(e, kinds)}

    def charged(self, site: str, folder: str = "state") -> list[int]:
        path = self.parties.folder / site / folder / "sites" / site / "budget.sqlite"
        return [charge.round for charge in Budget.read(path)[0].charges]

    def end(self) -> None:
        for process in self.processes.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join(60)


@pytest.fixture(scope="module")
def context(packages: None) -> Any:
    """Processes are forked from one that has done once what is slow."""
    os.environ["SECFED_TEST_WARM"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["faulty"])
    return found


@pytest.fixture
def forked(context: Any, tmp_path: Path) -> Iterator[Callable[[int], Forked]]:
    made: list[Forked] = []

    def of(rounds: int) -> Forked:
        values = study_values(rounds)
        values["simulation"] = {"seed": SEED}
        study = tmp_path / "study.toml"
        study.write_text(toml_of(values), "utf-8")
        parties = set_up(tmp_path / "parties", study, EXAMPLE / "site.toml")
        assert parties.study.digest() == study_of(rounds).digest()
        made.append(Forked(context, parties))
        return made[-1]

    yield of
    for one in made:
        one.end()


def assert_sound(forked: Forked, kept: Sequence[str] = ()) -> None:
    """The run verifies, nothing partial is in it, and no budget holds more than it."""
    report = verify_run(forked.run)
    assert report.passed, [check for check in report.checks if not check.passed]
    rounds = forked.rounds()
    completed = {n for n, entry in rounds.items() if isinstance(entry, RoundEntry)}
    published = {int(p.stem[-3:]) for p in (forked.run / "adapters").iterdir()}
    assert published == completed | {0}
    for site in forked.parties.study.sites:
        spent = forked.charged(site, "kept" if site in kept else "state")
        assert len(spent) == len(set(spent)), site
        assert set(spent) <= {n for n, entry in rounds.items() if site in entry.spent}


@pytest.mark.slow
def test_a_study_between_processes_with_a_killed_site_is_the_local_runtimes(
    forked: Callable[[int], Forked], prepared: Prepared, tmp_path: Path
) -> None:
    run = forked(1)
    run.coordinator()
    for site in (A, C, D):
        run.site(site)
    run.site(B, Fault("kill", 1, "masked-input"))
    run.finish()
    assert_sound(run)
    assert run.rounds()[1].dropouts == {B: "shares"}
    told = (run.run / CHECKPOINT_NAME).read_text("utf-8")
    assert [f"secfed-site/{site}" in told for site in (A, B, C, D)] == [
        True,
        False,
        True,
        True,
    ]
    study = small_study(rounds=1, seed=SEED, dropouts=[(1, B, "shares")])
    local = tmp_path / "local"
    (local / "private").mkdir(parents=True)
    run_arm(
        Arm("ffa-lora", study),
        planned(prepared, study),
        local,
        local / "private",
        "local",
        small_policy(),
        NoProgress(),
    )
    for number in range(2):
        name = f"adapters/round-{number:03d}.safetensors"
        assert file_sha256(run.run / name) == file_sha256(local / name)


@pytest.mark.deployment
def test_a_site_killed_in_each_phase_comes_back_in_the_next_round(
    forked: Callable[[int], Forked],
) -> None:
    run = forked(len(PHASES))
    lives = [Fault("kill", n, phase) for n, phase in enumerate(PHASES, start=1)]
    run.coordinator(wait_for_all=True)
    for site in (A, C, D):
        run.site(site)
    for life in lives:
        run.site(B, life)
        assert run.code(B) == -signal.SIGKILL
    run.site(B)
    run.finish()
    assert_sound(run)
    for number, phase in enumerate(PHASES, start=1):
        entry = run.rounds()[number]
        assert isinstance(entry, RoundEntry), phase
        assert (B in entry.survivors) == (phase in {"confirm", "unmask"}), phase
        assert B in entry.spent, phase
        assert {A, C, D} <= set(entry.survivors)
    # It was killed before it could reserve round 1; the ledger counts it all the same.
    assert run.charged(B) == [2, 3, 4, 5, 6]


@pytest.mark.deployment
def test_a_coordinator_killed_in_each_phase_resumes_and_repeats_no_round(
    forked: Callable[[int], Forked],
) -> None:
    # Nobody was asked to spend anything when adapters were sent: that round is played.
    places = [(1, "adapter"), *enumerate(PHASES, start=1)]
    run = forked(len(PHASES) + 1)
    for site in (A, B, C, D):
        run.site(site)
    for number, phase in places:
        run.coordinator(Fault("kill", number, phase))
        assert run.code() == -signal.SIGKILL, run.parties.log("coordinator")
    run.coordinator()
    run.finish()
    assert_sound(run)
    kinds = [type(entry) for _, entry in sorted(run.rounds().items())]
    assert kinds == [InterruptedEntry] * len(PHASES) + [RoundEntry]
    for site in (A, B, C, D):
        assert run.code(site) == 0
        # Round 1 ended while sites were asked to begin it.
        assert [n for n in run.charged(site) if n > 1] == [2, 3, 4, 5, 6, 7]


@pytest.mark.deployment
def test_a_truncated_answer_a_late_site_and_a_full_disk_cost_one_round_each(
    forked: Callable[[int], Forked],
) -> None:
    run = forked(4)
    waits = Deadlines(SECONDS, training=90.0, phase=SECONDS)
    run.coordinator(deadlines=waits)
    run.site(A)
    run.site(B, Fault("truncate", 1, "masked-input"))
    run.site(C, Fault("late", 2, "training"))
    run.site(D, Fault("full-disk", 3, "advertise"))
    run.finish()
    codes = [run.code(site) for site in (A, B, C, D)]
    log = run.parties.log("coordinator")
    assert codes == [0, 0, 0, 0]
    assert_sound(run, kept=[A, B, C, D])
    first, second, third, fourth = (entry for _, entry in sorted(run.rounds().items()))
    assert first.dropouts == {B: "shares"}
    assert f"an answer in {B}'s name is refused" in log
    assert second.dropouts == {C: "shares"}
    assert f"{C} gave no answer to training in time" in log
    assert third.dropouts == {D: "adapter"}
    assert f"{D} declines advertise" in log
    assert "No space left on device" in run.parties.log(D)
    assert set(fourth.survivors) == {A, B, C, D}
    assert run.charged(D, "kept") == [1, 2, 4]
    assert run.charged(C, "kept") == [1, 2, 3, 4]


@pytest.mark.deployment
def test_a_late_and_breaking_line_costs_time_and_no_round(
    forked: Callable[[int], Forked],
) -> None:
    run = forked(2)
    host, port = read_roster(
        (run.parties.coordinator / "roster.json").read_bytes(), "roster"
    ).address.split(":")
    line = SlowLine((host, int(port)), delay=0.08, lasting=20_000)
    run.coordinator()
    for site in (A, B, C, D):
        run.site(site, through=line.address)
    run.finish()
    line.close()
    assert_sound(run)
    for entry in run.rounds().values():
        assert set(entry.survivors) == {A, B, C, D}
    assert line.cuts > 20


@pytest.mark.deployment
def test_a_stolen_node_key_without_the_identity_connects_and_says_nothing_that_counts(
    forked: Callable[[int], Forked],
) -> None:
    run = forked(2)
    run.coordinator(deadlines=Deadlines(SECONDS, SECONDS, SECONDS))
    run.site(D, stolen=True)
    for site in (A, B, C):
        run.site(site)
    run.finish()
    assert f"an answer in {D}'s name is refused" in run.parties.log("coordinator")
    for entry in run.rounds().values():
        assert isinstance(entry, RoundEntry)
        assert D not in entry.participants
        assert D not in entry.spent
    report = verify_run(run.run)
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.deployment
def test_sites_do_not_answer_for_a_study_that_they_did_not_approve(
    forked: Callable[[int], Forked],
) -> None:
    run = forked(2)
    run.coordinator(study=study_of(3))
    for site in (A, B, C, D):
        run.site(site)
    run.finish(5)
    log = run.parties.log("coordinator")
    assert "TooFewSitesError: round 1: 0 of 4 sites answer" in log
    for site in (A, B, C, D):
        told = run.parties.log(site)
        assert "an order of another study than was approved" in told
        assert run.charged(site) == []
    assert run.rounds() == {}


@pytest.mark.deployment
def test_a_revoked_site_is_asked_nothing_and_the_study_goes_on(
    forked: Callable[[int], Forked],
) -> None:
    from secfed.runtime.roster import revoke  # noqa: PLC0415

    run = forked(3)
    for site in (A, B, C, D):
        run.site(site)
    run.coordinator(Fault("kill", 2, "adapter"))
    assert run.code() == -signal.SIGKILL
    path = run.parties.coordinator / "roster.json"
    key = coordinator_key(run.parties)
    path.write_bytes(revoke(key, path.read_bytes(), [D], path))
    run.coordinator()
    run.finish()
    assert_sound(run)
    survivors = [set(entry.survivors) for _, entry in sorted(run.rounds().items())]
    assert survivors == [{A, B, C, D}, {A, B, C}, {A, B, C}]
    assert run.charged(D) == [1]
