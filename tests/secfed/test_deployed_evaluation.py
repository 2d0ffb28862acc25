"""Sites on other machines score what they hold back: the same sums, and what fails."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from deployed import KEY, RUN_ID, Cast, LostError, identity_of
from small import (
    EVALUATION,
    EXAMPLE,
    evaluating_policy,
    small_policy,
    study_values,
)

from secfed.canonical import canonical_json
from secfed.entries import EvaluationEntry, EvaluationInterruptedEntry
from secfed.errors import RunDirectoryError, TooFewWitnessesError
from secfed.ledger import split_lines, verify_entries
from secfed.privacy.held_back import evaluation_run
from secfed.runtime.arms import Arm
from secfed.runtime.envelope import Order, sign_order
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.sessions import broadcast_of
from secfed.runtime.setup import Prepared, prepare
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run

ROUNDS = 2


@pytest.fixture(scope="module")
def asked() -> Study:
    values = study_values(ROUNDS)
    values["evaluation"] = EVALUATION
    values["simulation"]["seed"] = 23
    return load_study_dict(values, "evaluated")


@pytest.fixture(scope="module")
def ready(packages: None, asked: Study) -> Prepared:
    return prepare(asked, EXAMPLE, evaluating_policy(), NoProgress())


@pytest.fixture
def cast(ready: Prepared, asked: Study, tmp_path: Path) -> Cast:
    return Cast(ready, asked, evaluating_policy(), tmp_path / "sites")


def ledger(run: Path) -> list[Any]:
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    return [entry.parsed() for entry in verify_entries(lines, KEY.public_bytes)]


def assert_verified(run: Path) -> None:
    report = verify_run(run)
    assert report.passed, report.failures()


def test_sums_and_charges_are_those_of_the_local_runtime(
    cast: Cast, tmp_path: Path
) -> None:
    local, private = tmp_path / "local", tmp_path / "local" / "private"
    private.mkdir(parents=True)
    (private / "coordinator.key").write_text("07" * 32)
    (private / "coordinator.key").chmod(0o600)
    run_arm(
        Arm("ffa-lora", cast.study),
        cast.prepared,
        local,
        private,
        RUN_ID,
        evaluating_policy(),
        NoProgress(),
    )
    cast.serve(tmp_path / "served")
    ours, theirs = ledger(tmp_path / "served"), ledger(local)
    kinds = [body.kind for body in ours[2:-1]]
    assert kinds == ["round", "evaluation", "round", "evaluation"]
    for one, other in zip(ours[1:-1], theirs[1:-1], strict=True):
        skipped = {"identities", "budget_heads", "deployed"}
        left, right = one.to_body(), other.to_body()
        assert {k: v for k, v in left.items() if k not in skipped} == {
            k: v for k, v in right.items() if k not in skipped
        }
    assert_verified(tmp_path / "served")
    for site in cast.study.sites:
        assert cast.rounds_charged(site) == [1, 2]
        assert cast.rounds_charged(site, evaluated=True) == [1, 2]
    statement = json.loads((tmp_path / "served" / "statement.json").read_bytes())
    assert len(statement["evaluation"]["rounds"]) == 2


@pytest.mark.parametrize("phase", ["advertise", "shares", "training", "unmask"])
def test_a_site_killed_in_an_evaluation_leaves_the_others_a_sum(
    cast: Cast, tmp_path: Path, phase: str
) -> None:
    gone = cast.study.sites[2]
    cast.gone = {(1, f"evaluation {phase}"): {gone}}
    run = tmp_path / "run"
    cast.serve(run)
    found = [e for e in ledger(run) if isinstance(e, EvaluationEntry)]
    assert (gone in found[0].survivors) == (phase == "unmask")
    # It was asked to begin, so it counts as spent, whether it did or not.
    assert gone in found[0].spent
    assert gone not in found[1].participants
    assert_verified(run)


def test_too_few_sites_lose_the_evaluation_and_not_the_run(
    cast: Cast, tmp_path: Path
) -> None:
    first, second, *_ = cast.study.sites
    cast.gone = {(2, "evaluation adapter"): {first, second}}
    run = tmp_path / "run"
    # The run is over, but too few are left to say that they have seen its ledger.
    with pytest.raises(TooFewWitnessesError, match="2 sites cosigned the ledger, 3"):
        cast.serve(run)
    assert not (run / "adapter").exists()
    cast.gone, cast.away = {}, set()
    cast.serve(run)
    last = ledger(run)[-2]
    assert isinstance(last, EvaluationInterruptedEntry)
    assert last.spent == {}
    assert "2 of 4 sites answer, 3 are needed" in last.reason
    assert all(
        cast.rounds_charged(site, evaluated=True) == [1] for site in cast.study.sites
    )
    assert_verified(run)


@pytest.mark.parametrize("phase", ["adapter", "advertise", "confirm"])
def test_a_coordinator_killed_in_an_evaluation_does_not_repeat_it(
    cast: Cast, tmp_path: Path, phase: str
) -> None:
    cast.crash = (1, f"evaluation {phase}")
    run = tmp_path / "run"
    with pytest.raises(LostError):
        cast.serve(run)
    cast.crash = None
    cast.serve(run)
    first = ledger(run)[3]
    # Before anybody was asked it is made up for; after that it counts as spent.
    lost = phase != "adapter"
    assert isinstance(first, EvaluationInterruptedEntry) == lost
    assert set(first.spent) == set(cast.study.sites)
    charged = [2] if phase == "advertise" else [1, 2]
    for site in cast.study.sites:
        assert cast.rounds_charged(site, evaluated=True) == charged
    assert_verified(run)


def test_a_site_whose_policy_allows_no_score_trains_and_does_not_evaluate(
    cast: Cast, tmp_path: Path
) -> None:
    silent = cast.study.sites[0]
    cast.policy = small_policy()
    cast.begin(silent)
    run = tmp_path / "run"
    cast.serve(run)
    for body in ledger(run)[2:-1]:
        assert silent not in body.participants
    assert f"{silent} declines advertise: policy" in cast.notes.notes


def order_of(cast: Cast, phase: str, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "study": cast.study.digest(),
        "run_id": evaluation_run(f"{RUN_ID}/ffa-lora"),
        "round": 1,
        "phase": phase,
        "site": cast.study.sites[0],
        "expires": int(time.time()) + 60,
    }
    return sign_order(
        KEY, Order(**{**values, **changes}), broadcast_of(cast.prepared.start)
    )


def status(cast: Cast, phase: str, order: Any) -> str:
    site = cast.study.sites[0]
    answer = cast.workers[site].answer(phase, order)
    return answer.open_answer(identity_of(site).public_bytes).status


def test_an_evaluation_that_the_study_does_not_have_is_not_begun(
    cast: Cast, asked: Study, ready: Prepared, tmp_path: Path
) -> None:
    assert status(cast, "adapter", order_of(cast, "adapter", round=3)) == "failed"
    values = asked.canonical()
    values["evaluation"]["rounds"] = [2]
    later = Cast(
        ready, load_study_dict(values, "later"), evaluating_policy(), tmp_path / "other"
    )
    assert status(later, "adapter", order_of(later, "adapter")) == "failed"
    assert any("no evaluation after round 1" in note for note in later.notes.notes)


def test_an_evaluation_is_begun_once_and_a_round_does_not_stand_for_it(
    cast: Cast, tmp_path: Path
) -> None:
    site = cast.study.sites[0]
    cast.serve(tmp_path / "run")
    cast.begin(site)
    assert status(cast, "adapter", order_of(cast, "adapter", round=2)) == "failed"
    assert any(
        "evaluation after round 2 was begun here before" in note
        for note in cast.notes.notes
    )
    assert cast.rounds_charged(site, evaluated=True) == [1, 2]


def test_orders_of_a_round_do_not_continue_an_evaluation(cast: Cast) -> None:
    assert status(cast, "adapter", order_of(cast, "adapter")) == "accepted"
    mixed = order_of(cast, "advertise", run_id=f"{RUN_ID}/ffa-lora")
    assert status(cast, "advertise", mixed) == "failed"
    assert cast.rounds_charged(cast.study.sites[0], evaluated=True) == []


@pytest.mark.parametrize("value", ["false", 0, None])
def test_a_damaged_note_of_whom_was_asked_is_refused(
    cast: Cast, tmp_path: Path, value: object
) -> None:
    cast.crash = (1, "shares")
    run = tmp_path / "run"
    with pytest.raises(LostError):
        cast.serve(run)
    asked = run / "private" / "asked.jsonl"
    line = json.loads(asked.read_bytes().splitlines()[0])
    asked.write_bytes(canonical_json(line | {"evaluation": value}) + b"\n")
    cast.crash = None
    with pytest.raises(RunDirectoryError, match="not a task"):
        cast.serve(run)
