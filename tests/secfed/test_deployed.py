"""Sites on other machines: the same rounds, and what goes wrong between machines."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import KEY, RUN_ID, Cast, LostError, identity_of, roster_of
from small import EXAMPLE, small_policy, small_study

from secfed.canonical import file_sha256
from secfed.data import StudyData, fingerprint
from secfed.data.own import load_holdout, load_own
from secfed.entries import InterruptedEntry, RoundEntry
from secfed.errors import (
    DataError,
    PolicyError,
    RoundAbortedError,
    StudyError,
    TooFewSitesError,
    VerificationError,
)
from secfed.ledger import split_lines, verify_entries
from secfed.runtime.arms import Arm
from secfed.runtime.envelope import Order, Sealed, sign_order
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.remote_accounts import RemoteAccounts
from secfed.runtime.roster import make_roster, read_request, read_roster
from secfed.runtime.setup import Prepared
from secfed.signing import CoordinatorKey
from secfed.study import Study
from secfed.verify import verify_run

SEED, ROUNDS = 23, 3
A, B, C, D = small_study().sites


def assert_verified(run: Path) -> None:
    report = verify_run(run)
    assert report.passed, [check for check in report.checks if not check.passed]


def ledger(run: Path) -> list[Any]:
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    return [entry.parsed() for entry in verify_entries(lines, KEY.public_bytes)]


def digests(run: Path) -> dict[str, str]:
    return {p.name: file_sha256(p) for p in sorted((run / "adapters").iterdir())}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def cast(prepared: Prepared, tmp_path: Path) -> Cast:
    study = small_study(rounds=ROUNDS, seed=SEED)
    return Cast(prepared, study, small_policy(), tmp_path / "sites")


# The same rounds


def test_a_deployment_gives_the_adapters_of_the_local_runtime(
    prepared: Prepared, tmp_path: Path
) -> None:
    gone = [(2, B, "shares")]
    study = small_study(rounds=ROUNDS, seed=SEED, dropouts=gone)
    private = tmp_path / "local" / "private"
    private.mkdir(parents=True)
    (private / "coordinator.key").write_text("07" * 32)
    (private / "coordinator.key").chmod(0o600)
    run_arm(
        Arm("ffa-lora", study),
        prepared,
        tmp_path / "local",
        private,
        RUN_ID,
        small_policy(),
        NoProgress(),
    )
    cast = Cast(prepared, study, small_policy(), tmp_path / "sites")
    # The local runtime's dropout sends its shares and is back in the next round.
    cast.deaf = {(2, "training"): {B}}
    cast.serve(tmp_path / "served")
    assert len(digests(tmp_path / "local")) == ROUNDS + 1
    assert digests(tmp_path / "served") == digests(tmp_path / "local")
    ours, theirs = ledger(tmp_path / "served"), ledger(tmp_path / "local")
    for one, other in zip(ours[1:-1], theirs[1:-1], strict=True):
        skipped = {"identities", "budget_heads", "deployed"}
        left, right = one.to_body(), other.to_body()
        assert {k: v for k, v in left.items() if k not in skipped} == {
            k: v for k, v in right.items() if k not in skipped
        }
    assert ours[3].dropouts == {B: "shares"}


def test_what_a_coordinator_served_verifies_and_every_site_has_the_adapter(
    cast: Cast, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cast.serve(run)
    assert_verified(run)
    report = (run / "report.html").read_text("utf-8")
    assert "Where it ran: deployment: every site answered" in report
    statement = json.loads((run / "statement.json").read_bytes())
    assert statement["execution"]["where"].startswith("deployment:")
    assert "operator of a local simulation" not in json.dumps(statement["trust"])
    final = (run / "adapters" / f"round-{ROUNDS:03d}.safetensors").read_bytes()
    for site in cast.study.sites:
        kept = cast.folder / site / "runs" / RUN_ID / "final.safetensors"
        assert kept.read_bytes() == final
        assert cast.workers[site].finished
        assert cast.rounds_charged(site) == [1, 2, 3]
    # Budgets, receipts and identities are the sites' files.
    private = {p.name for p in (run / "private").rglob("*") if p.is_file()}
    assert private == {"asked.jsonl", "operations.jsonl", "operations.jsonl.lock"}
    heads = ledger(run)[2].budget_heads
    receipts = cast.folder / A / "sites" / A / "receipts.jsonl"
    assert heads[A] == json.loads(receipts.read_text().splitlines()[0])["head"]


def test_a_seed_is_refused_unless_this_is_a_rehearsal(
    cast: Cast, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match="NOT PRIVATE"):
        cast.serve(tmp_path / "run", rehearsal=False)
    assert not (tmp_path / "run").exists()
    assert cast.orders == []


# Who is away


def test_epsilon_is_computed_while_the_sites_train(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []
    real = RemoteAccounts.epsilon

    def seen(self: RemoteAccounts, number: int, **how: Any) -> dict[str, float]:
        asked.append((number, cast.orders[-1][1]))
        return real(self, number, **how)

    monkeypatch.setattr(RemoteAccounts, "epsilon", seen)
    cast.serve(tmp_path / "run")
    assert asked[0] == (1, "shares")  # The last that they were asked: they train now.


@pytest.mark.parametrize(
    "phase", ["advertise", "shares", "training", "masked-input", "confirm", "unmask"]
)
def test_a_site_killed_in_any_phase_leaves_a_round_that_completes(
    cast: Cast, tmp_path: Path, phase: str
) -> None:
    cast.gone = {(2, phase): {C}}
    run = tmp_path / "run"
    cast.serve(run)
    entries = [e for e in ledger(run) if isinstance(e, RoundEntry)]
    assert [e.round for e in entries] == [1, 2, 3]
    survived = phase in {"confirm", "unmask"}
    assert (C in entries[1].survivors) == survived
    # It was asked to begin round 2, so round 2 counts as spent, whether it did or not.
    assert C in entries[1].spent
    assert C not in entries[2].participants
    assert_verified(run)
    assert cast.rounds_charged(C) == ([1] if phase == "advertise" else [1, 2])


def test_a_late_answer_is_charged_and_the_site_is_back_in_the_next_round(
    cast: Cast, tmp_path: Path
) -> None:
    cast.deaf = {(1, "advertise"): {D}}
    run = tmp_path / "run"
    cast.serve(run)
    first, second = (e for e in ledger(run)[2:4])
    assert first.dropouts == {D: "adapter"}
    assert D in first.spent
    assert D not in first.budget_heads
    assert D in second.survivors
    assert cast.rounds_charged(D) == [1, 2, 3]
    assert_verified(run)


def test_a_site_that_starts_anew_is_out_of_the_round_and_in_the_next(
    cast: Cast, tmp_path: Path
) -> None:
    cast.restarts = {(1, "training"): {A}}
    run = tmp_path / "run"
    cast.serve(run)
    first, second = (e for e in ledger(run)[2:4])
    assert first.dropouts == {A: "shares"}
    assert A in second.survivors
    assert any("did not begin that round" in note for note in cast.notes.notes)


def test_half_the_sites_gone_aborts_with_a_sentence_and_spends_nothing_twice(
    cast: Cast, tmp_path: Path
) -> None:
    cast.gone = {(2, "training"): {C, D}}
    run = tmp_path / "run"
    with pytest.raises(RoundAbortedError, match="the adapter of the round before"):
        cast.serve(run)
    last = ledger(run)[-1]
    assert isinstance(last, InterruptedEntry)
    assert sorted(last.spent) == sorted(cast.study.sites)
    # Still away: nobody is asked, and no round is lost.
    with pytest.raises(TooFewSitesError, match="2 of 4 sites answer, 3 are needed"):
        cast.serve(run)
    assert ledger(run)[-1] == last
    cast.away, cast.gone = set(), {}
    cast.begin(C, D)
    cast.serve(run)
    assert [cast.rounds_charged(s) for s in cast.study.sites] == [[1, 2, 3]] * 4
    assert_verified(run)


@pytest.mark.parametrize("phase", ["adapter", "advertise", "shares", "unmask"])
def test_a_coordinator_killed_in_any_phase_resumes(
    cast: Cast, tmp_path: Path, phase: str
) -> None:
    cast.crash = (2, phase)
    run = tmp_path / "run"
    with pytest.raises(LostError):
        cast.serve(run)
    cast.crash = None
    cast.serve(run)
    kinds = [type(e).__name__ for e in ledger(run)[2:5]]
    # Before anybody was asked the round is played; after that it counts as spent.
    lost = phase != "adapter"
    assert kinds[1] == ("InterruptedEntry" if lost else "RoundEntry")
    assert cast.rounds_charged(A) == ([1, 3] if phase == "advertise" else [1, 2, 3])
    assert_verified(run)


def test_a_site_whose_policy_refuses_is_not_charged(cast: Cast, tmp_path: Path) -> None:
    strict = small_policy(0.01)
    cast.policy = strict
    cast.begin(B)
    run = tmp_path / "run"
    cast.serve(run)
    assert all(B not in e.participants for e in ledger(run)[2:-1])
    assert f"{B} declines advertise: policy" in cast.notes.notes
    cast.begin(A, C)
    cast.run_id = "f" * 16
    with pytest.raises(PolicyError, match="its own policy refuses; its operator"):
        cast.serve(tmp_path / "again")


# What a site does not answer


def order_of(cast: Cast, phase: str, **changes: Any) -> Sealed:
    values: dict[str, Any] = {
        "study": cast.study.digest(),
        "run_id": f"{RUN_ID}/ffa-lora",
        "round": 1,
        "phase": phase,
        "site": A,
        "expires": int(time.time()) + 60,
    }
    key = changes.pop("key", KEY)
    body = changes.pop("body", b"")
    return sign_order(key, Order(**{**values, **changes}), body)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": CoordinatorKey(b"\x08" * 32)}, "not valid for this key"),
        ({"study": "ab" * 32}, "another study"),
        ({"site": B}, "another site"),
        ({"run_id": "../x"}, "malformed run"),
        ({"expires": 1_000_000}, "nobody waits"),
        ({"phase": "evaluate"}, "no known phase"),
    ],
)
def test_an_order_that_is_not_the_pinned_coordinators_is_not_answered(
    cast: Cast, changes: dict[str, Any], reason: str
) -> None:
    order = order_of(cast, **{"phase": "adapter", **changes})
    with pytest.raises(VerificationError, match=reason):
        cast.workers[A].answer(changes.get("phase", "adapter"), order)


def test_an_order_under_another_phases_name_is_not_answered(cast: Cast) -> None:
    with pytest.raises(VerificationError, match="no known phase"):
        cast.workers[A].answer("unmask", order_of(cast, "advertise"))


def test_a_changed_body_is_not_answered(cast: Cast) -> None:
    order = replace(order_of(cast, "adapter", body=b"x"), body=b"y")
    with pytest.raises(VerificationError, match="not valid for this key"):
        cast.workers[A].answer("adapter", order)


def test_the_same_order_gets_the_same_bytes_and_another_gets_none(
    cast: Cast, tmp_path: Path
) -> None:
    cast.crash = (1, "shares")
    with pytest.raises(LostError):
        cast.serve(tmp_path / "run")
    worker = cast.workers[A]
    order = next(o for s, p, o in cast.orders if (s, p) == (A, "advertise"))
    again = worker.answer("advertise", order)
    assert again == worker.answer("advertise", order)
    assert cast.rounds_charged(A) == [1]
    other = order_of(cast, "advertise", expires=int(time.time()) + 61)
    answer = worker.answer("advertise", other)
    header = answer.open_answer(identity_of(A).public_bytes)
    assert (header.status, answer.body) == ("failed", b"")
    assert cast.rounds_charged(A) == [1]


def test_a_round_that_was_begun_is_not_begun_again_after_a_start(
    cast: Cast, tmp_path: Path
) -> None:
    cast.crash = (1, "shares")
    with pytest.raises(LostError):
        cast.serve(tmp_path / "run")
    order = next(o for s, p, o in cast.orders if (s, p) == (A, "adapter"))
    cast.begin(A)
    answer = cast.workers[A].answer("adapter", order)
    assert answer.open_answer(identity_of(A).public_bytes).status == "failed"
    assert any("is not repeated" in note for note in cast.notes.notes)


def test_an_answer_in_anothers_name_is_refused(cast: Cast, tmp_path: Path) -> None:
    honest = cast.exchange

    def swapped(phase: str, orders: Any, seconds: float) -> Any:
        for site, answer in honest(phase, orders, seconds):
            yield (site if site != A else B), answer
            if site == A:
                yield A, replace(answer, body=answer.body + b"x")

    cast.exchange = swapped  # type: ignore[method-assign]
    run = tmp_path / "run"
    cast.serve(run)
    assert all(A not in e.participants for e in ledger(run)[2:-1])
    assert any(f"in {B}'s name is refused" in note for note in cast.notes.notes)
    assert any(f"in {A}'s name is refused" in note for note in cast.notes.notes)


# The records of one party


def test_each_party_of_a_public_text_takes_its_own_part(data: StudyData) -> None:
    study = small_study()
    own = load_own(study, EXAMPLE, B)
    assert list(own.sites) == [B]
    assert fingerprint(own.sites[B]) == fingerprint(data.sites[B])
    assert own.nominal_units == data.nominal_units
    assert own.holdout.texts == ()
    public = load_holdout(study, EXAMPLE)
    assert public.sites == {}
    assert public.holdout.texts == data.holdout.texts
    with pytest.raises(DataError, match="not a site of the study"):
        load_own(study, EXAMPLE, "elsewhere")


# The roster


def test_a_roster_holds_one_request_of_each_site_and_no_key_twice() -> None:
    study = small_study()
    requests = list(roster_of(study).requests.values())
    with pytest.raises(VerificationError, match="the study has the sites"):
        make_roster(KEY, study, "x:1", "", requests[:-1])
    twin = replace(requests[0], site=requests[1].site)
    with pytest.raises(VerificationError, match="the same identity"):
        make_roster(KEY, study, "x:1", "", [requests[0], twin, *requests[2:]])


@pytest.mark.parametrize("field", ["address", "authority", "coordinator_key"])
def test_a_changed_roster_does_not_verify(field: str) -> None:
    study: Study = small_study()
    requests = list(roster_of(study).requests.values())
    data = json.loads(make_roster(KEY, study, "x:1", "pem", requests))
    data[field] = "00" * 32
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(VerificationError):
        read_roster(text.encode(), "roster")
    request = requests[0].data.replace(b"node key", b"code key")
    with pytest.raises(VerificationError, match="not valid for this key"):
        read_request(request, "request")
