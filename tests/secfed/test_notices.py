"""Keys, withdrawals, incidents and approvals in a ledger: who left takes no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import evidence
import pytest
from deployed import KEY, Cast, LostError, identity_of
from governed import ANNA
from small import planned, small_policy, small_study

from secfed.canonical import canonical_json, file_sha256, sha256_hex
from secfed.entries import (
    ApprovalEntry,
    Body,
    IncidentEntry,
    KeyEntry,
    PlanEntry,
    RoundEntry,
    WithdrawalEntry,
    commit,
)
from secfed.errors import (
    LedgerError,
    RunDirectoryError,
    TooFewSitesError,
    VerificationError,
)
from secfed.governance import SiteApprovals
from secfed.governance.approvals import approve
from secfed.ledger import Ledger, split_lines, verify_entries
from secfed.policy import SitePolicy
from secfed.runtime.deployed import RemoteSites
from secfed.runtime.keys import SiteKeys
from secfed.runtime.notices import (
    Notices,
    approval_bytes,
    keep_record,
    receive_withdrawal,
)
from secfed.runtime.record import ArmRecord
from secfed.runtime.setup import Prepared
from secfed.runtime.signed_records import signed
from secfed.runtime.withdrawal import EFFECT
from secfed.signing import RECORD, fingerprint
from secfed.study import load_study_dict
from secfed.verify import verify_run
from secfed.verify.bound import check_records
from secfed.verify.heads import trusted_keys
from secfed.verify.story import Story, tell

A, B, C, D = small_study().sites


# ------------------------------------------------------------------- the ledger


def key_entry(site: str = "north", **changes: Any) -> KeyEntry:
    key = evidence.IDENTITIES[site].public_bytes
    fields = {"site": site, "event": "revoked", "fingerprint": fingerprint(key)}
    return KeyEntry(**(fields | changes))


def withdrawal(site: str = "north", from_round: int = 4) -> WithdrawalEntry:
    return WithdrawalEntry(site=site, from_round=from_round, commitment="e" * 64)


def approval(study: str | None = None) -> ApprovalEntry:
    digest = study or evidence.make_study().digest()
    return ApprovalEntry(site="north", study_digest=digest, commitment="b" * 64)


def told(path: Path, *after: Body, before: Sequence[Body] = ()) -> tuple[Story, str]:
    """A run with these entries before and after its three rounds."""
    rounds = evidence.round_entries()
    with Ledger(path, evidence.KEY) as ledger:
        first = evidence.study_entry(), evidence.plan_entry()
        for body in (*first, *before, *rounds, *after):
            ledger.append(body.kind, body.to_body(), evidence.TIME)
        entries = ledger.entries()
    study = evidence.make_study()
    return tell(entries, evidence.KEY.public_bytes, study, finished=False)


def refused(path: Path, *after: Body, before: Sequence[Body] = ()) -> tuple[int, str]:
    with pytest.raises(LedgerError) as caught:
        told(path, *after, before=before)
    return caught.value.entry, str(caught.value)


def test_notices_spend_nothing_and_the_auditor_is_told(tmp_path: Path) -> None:
    incident = IncidentEntry(commitment="d" * 64)
    after = [approval(), key_entry(), withdrawal("south"), incident]
    story, said = told(tmp_path / "ledger.jsonl", *after)
    assert len(story.charged()) == 3
    assert list(story.notices.values()) == after
    assert "north's key was revoked; south withdrew before round 4" in said
    assert "an incident was recorded" in said
    assert "1 of 3 sites named approvals" in said


def test_a_record_is_held_against_the_entry_that_binds_it(tmp_path: Path) -> None:
    record, salt = tmp_path / "incident.json", tmp_path / "incident.salt"
    record.write_text("what happened", "utf-8")
    salt.write_bytes(b"s" * 32)
    bound = IncidentEntry(commitment=commit("what happened", b"s" * 32))
    story, _ = told(tmp_path / "ledger.jsonl", approval(), bound)
    assert check_records(story, [record]) == f"entry 6, incident, binds {record}"
    record.write_text("what happened, told otherwise", "utf-8")
    with pytest.raises(VerificationError, match="no entry binds this record"):
        check_records(story, [record])
    record.write_bytes(b"\xff")
    with pytest.raises(VerificationError, match="a record or its salt"):
        check_records(story, [record])
    salt.unlink()  # Deleted: the entry says nothing any more.
    with pytest.raises(VerificationError, match="a record or its salt"):
        check_records(story, [record])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (key_entry(), "north takes part after it had its key revoked"),
        (withdrawal(from_round=1), "north takes part after it withdrew"),
    ],
)
def test_a_round_with_a_site_that_left_is_named(
    tmp_path: Path, body: Body, words: str
) -> None:
    entry, text = refused(tmp_path / "ledger.jsonl", before=[body])
    assert entry == 3
    assert words in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (key_entry(site="north", fingerprint="c" * 64), "not the key of north"),
        (withdrawal(from_round=3), "from round 3 on where round 4 follows"),
        (withdrawal(from_round=5), "from round 5 on where round 4 follows"),
        (withdrawal("east"), "not in the plan: east"),
        (approval("a" * 64), "north approved another study"),
    ],
)
def test_a_notice_that_is_not_so_is_named(
    tmp_path: Path, body: Body, words: str
) -> None:
    entry, text = refused(tmp_path / "ledger.jsonl", body)
    assert entry == 5
    assert words in text


def test_a_notice_is_told_once(tmp_path: Path) -> None:
    entry, text = refused(tmp_path / "ledger.jsonl", key_entry(), key_entry())
    assert entry == 6
    assert "a second 'key' entry that says the same" in text


# ------------------------------------------------------------- the coordinator


def record_of(site: str, study: str, kind: str = "withdrawal") -> bytes:
    keys = SiteKeys(identity_of(site), b"", "")
    fields = {
        "kind": kind,
        "by": site,
        "at": "2026-03-01T12:00:00+00:00",
        "study": study,
        "effect": EFFECT,
        "runs": [],
        "unit": "record",
        "epsilon": 0.0,
        "delta": 1e-5,
    }
    public = keys.identity.public_bytes
    return signed(public, keys.sign_record, fields)


def bodies(run: Path) -> list[Body]:
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    return [entry.parsed() for entry in verify_entries(lines, KEY.public_bytes)]


@pytest.fixture
def cast(prepared: Prepared, tmp_path: Path) -> Cast:
    study = small_study(rounds=2, seed=41)
    return Cast(planned(prepared, study), study, small_policy(), tmp_path / "sites")


def test_a_site_that_withdraws_while_the_run_goes_on(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sent = tmp_path / "run", record_of(D, cast.study.digest())
    play = RemoteSites.play

    def then_it_withdraws(self: RemoteSites, *arguments: Any) -> Any:
        played = play(self, *arguments)
        receive_withdrawal(run, cast.roster, sent, Path("withdrawal.json"))
        return played

    monkeypatch.setattr(RemoteSites, "play", then_it_withdraws)
    cast.serve(run)
    first, second = (b for b in bodies(run) if isinstance(b, RoundEntry))
    assert D in first.participants
    assert D not in second.participants
    (entry,) = (b for b in bodies(run) if isinstance(b, WithdrawalEntry))
    salt = (run / "private" / "withdrawals" / f"{D}.salt").read_bytes()
    assert entry == WithdrawalEntry(
        site=D, from_round=2, commitment=commit(sent.decode(), salt)
    )
    # It is given nothing either, and nobody waits for it.
    assert not any(D in note for note in cast.notes.notes)


@pytest.mark.parametrize("what", ["another study", "another site", "an incident"])
def test_only_a_site_of_the_run_withdraws_from_its_study(
    cast: Cast, tmp_path: Path, what: str
) -> None:
    digest = cast.study.digest()
    (tmp_path / "private").mkdir()
    data = {
        "another study": record_of(D, "0" * 64),
        "another site": record_of("elsewhere", digest),
        "an incident": _incident(),
    }[what]
    with pytest.raises(VerificationError):
        receive_withdrawal(tmp_path, cast.roster, data, Path("sent.json"))
    assert not list((tmp_path / "private").iterdir())


def _incident() -> bytes:
    fields = {
        "kind": "incident",
        "by": "coordinator",
        "at": "2026-03-01T12:00:00+00:00",
        "noticed_at": "2026-03-01T12:00:00+00:00",
        "study": None,
        "incident": "malfunction",
    }
    return signed(KEY.public_bytes, lambda message: KEY.sign(RECORD, message), fields)


def test_an_incident_is_bound_once_and_not_without_its_salt(
    cast: Cast, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keep_record(run / "private" / "incidents" / "one.json", _incident())
    keep_record(run / "private" / "incidents" / "two.json", _incident())
    (run / "private" / "incidents" / "two.salt").unlink()
    cast.serve(run)
    assert sum(isinstance(body, IncidentEntry) for body in bodies(run)) == 1
    assert "malfunction" not in (run / "ledger.jsonl").read_text()


def test_a_damaged_record_stops_the_run(cast: Cast, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keep_record(run / "private" / "incidents" / "one.json", _incident()[:-9])
    with pytest.raises(VerificationError, match=r"one\.json"):
        cast.serve(run)


def test_who_was_revoked_in_the_ledger_stays_away(cast: Cast, tmp_path: Path) -> None:
    run, trusting = tmp_path / "run", cast.roster
    cast.crash = (2, "shares")
    cast.roster = replace(trusting, revoked=(D,))
    with pytest.raises(LostError):
        cast.serve(run)
    cast.crash, cast.roster, cast.orders = None, trusting, []
    cast.serve(run)  # With the roster of before.
    assert D not in {site for site, _, _ in cast.orders}
    assert sum(isinstance(body, KeyEntry) for body in bodies(run)) == 1


def test_a_site_withdraws_once_and_what_came_first_stays(
    cast: Cast, tmp_path: Path
) -> None:
    run, digest = tmp_path / "run", cast.study.digest()
    (run / "private").mkdir(parents=True)
    first = record_of(D, digest)
    receive_withdrawal(run, cast.roster, first, Path("sent"))
    kept = run / "private" / "withdrawals" / f"{D}.json"
    salt = kept.with_suffix(".salt").read_bytes()
    receive_withdrawal(run, cast.roster, first.removesuffix(b"\n"), Path("sent"))
    assert kept.read_bytes() == first
    assert kept.with_suffix(".salt").read_bytes() == salt
    cast.crash = (2, "shares")
    with pytest.raises(LostError):
        cast.serve(run)
    kept.with_suffix(".salt").unlink()  # Its entry says nothing any more, and stands.
    cast.crash = None
    cast.serve(run)
    assert sum(isinstance(body, WithdrawalEntry) for body in bodies(run)) == 1
    assert D not in {site for site, _, _ in cast.orders}


def test_a_withdrawal_without_a_salt_is_not_told_and_counts(
    cast: Cast, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    path = run / "private" / "withdrawals" / f"{D}.json"
    keep_record(path, record_of(D, cast.study.digest()))
    path.with_suffix(".salt").unlink()
    cast.serve(run)
    assert D not in {site for site, _, _ in cast.orders}
    assert not any(isinstance(body, WithdrawalEntry) for body in bodies(run))


@pytest.mark.parametrize("what", ["salt", "incident", "other study", "unreadable"])
def test_what_should_not_lie_there_stops_the_run_before_anything_is_written(
    cast: Cast, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    path = run / "private" / "withdrawals" / f"{D}.json"
    data = {"incident": _incident(), "other study": record_of(D, "0" * 64)}
    keep_record(path, data.get(what, record_of(D, cast.study.digest())))
    if what == "salt":
        path.with_suffix(".salt").write_bytes(b"short")
    if what == "unreadable":
        monkeypatch.setattr(Path, "iterdir", _forbidden)
    with pytest.raises(VerificationError):
        cast.serve(run)
    assert not cast.orders


def _forbidden(self: Path) -> Any:
    raise PermissionError(13, "Permission denied", str(self))


def test_a_run_that_is_another_users_takes_no_withdrawal(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private").mkdir()
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    data = record_of(D, cast.study.digest())
    with pytest.raises(RunDirectoryError, match="belongs to another user"):
        receive_withdrawal(tmp_path, cast.roster, data, Path("sent"))


def test_nobody_pays_for_a_run_that_too_few_could_cosign(
    prepared: Prepared, tmp_path: Path
) -> None:
    values = small_study(rounds=2, seed=41).canonical()
    study = load_study_dict(values | {"ledger": {"witnesses": 4}}, "small")
    cast = Cast(planned(prepared, study), study, small_policy(), tmp_path / "sites")
    cast.roster = replace(cast.roster, revoked=(D,))
    with pytest.raises(TooFewSitesError, match="4 have to cosign"):
        cast.serve(tmp_path / "run")
    assert not cast.orders


def test_a_released_run_sends_nothing_more_to_who_left(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seal = tmp_path / "run", ArmRecord.seal
    (run / "private").mkdir(parents=True)
    sent = record_of(D, cast.study.digest())
    receive_withdrawal(run, cast.roster, sent, Path("sent"))

    def crash(_self: ArmRecord) -> None:
        raise LostError

    monkeypatch.setattr(ArmRecord, "seal", crash)
    with pytest.raises(LostError):
        cast.serve(run)
    monkeypatch.setattr(ArmRecord, "seal", seal)
    cast.orders = []
    cast.serve(run)
    assert {site for site, _, _ in cast.orders} == {A, B, C}


def test_a_revoked_keys_cosignature_does_not_count(tmp_path: Path) -> None:
    evidence.write_run(tmp_path / "run")
    assert verify_run(tmp_path / "run").passed
    bundle = tmp_path / "run" / "ledger.jsonl"
    lines = split_lines(bundle.read_bytes())
    plan = verify_entries(lines, evidence.KEY.public_bytes)[1].parsed()
    assert isinstance(plan, PlanEntry)
    assert trusted_keys(plan, [key_entry()]).keys() == {"south", "west"}


# ----------------------------------------------------------------- approvals


def approving(cast: Cast, folder: Path, site: str) -> SiteApprovals:
    now = datetime.now(UTC)
    policy = SitePolicy.model_validate(
        small_policy().model_dump()
        | {"operators": [ANNA.fingerprint()], "approvals_dir": str(folder / site)}
    )
    approve(
        folder / site,
        ANNA,
        cast.roster.manifest,
        site=site,
        population=policy.population,
        exceptions=(),
        shown="what the operator read",
        approved_at=now,
        expires_at=now + timedelta(days=1),
        nonce=bytes(16),
    )
    return SiteApprovals(policy, cast.roster.manifest, site=site)


def test_the_ledger_binds_what_sites_say_they_approved(
    cast: Cast, tmp_path: Path
) -> None:
    asking = {site: approving(cast, tmp_path, site) for site in (A, B, C)}
    cast.approvals = asking
    cast.begin(*cast.study.sites)
    cast.serve(tmp_path / "run")
    found = [b for b in bodies(tmp_path / "run") if isinstance(b, ApprovalEntry)]
    assert {body.site: body.commitment for body in found} == {
        site: one.commitment() for site, one in asking.items()
    }
    # Somebody who has the file can show what is bound; nobody else can tell.
    (file,) = (tmp_path / A).glob("*.json")
    shown = sha256_hex(canonical_json([file_sha256(file)]))
    assert shown in {body.commitment for body in found}
    assert ANNA.fingerprint() not in (tmp_path / "run" / "ledger.jsonl").read_text()


def test_a_site_does_not_cosign_an_approval_that_nobody_there_signed(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast.approvals = {site: approving(cast, tmp_path, site) for site in (A, B, C, D)}
    cast.begin(*cast.study.sites)
    due = Notices.due

    def and_a_forged_one(self: Notices, *arguments: Any) -> Any:
        self.approved(D, approval_bytes("f" * 64))
        return due(self, *arguments)

    monkeypatch.setattr(Notices, "due", and_a_forged_one)
    cast.serve(tmp_path / "run")  # Three of four are enough.
    assert any(f"{D} never said that" in note for note in cast.notes.notes)
    head = (tmp_path / "run" / "ledger.checkpoint").read_text()
    assert f"secfed-site/{A}" in head
    assert f"secfed-site/{D}" not in head


@pytest.mark.parametrize("data", [b"", b"[", b"{}", b"[1]", b"\xff"])
def test_a_damaged_memory_of_approvals_leaves_a_site_out_and_ends_nothing(
    cast: Cast, tmp_path: Path, data: bytes
) -> None:
    cast.approvals = {D: approving(cast, tmp_path, D)}
    cast.begin(*cast.study.sites)
    path = cast.folder / D / "sites" / D / "approvals.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    cast.serve(tmp_path / "run")
    assert any("approvals.json: damaged" in note for note in cast.notes.notes)
    assert cast.rounds_charged(D) == []


@pytest.mark.parametrize("body", [b"", b"{}", b'{"approval":"x"}', b"\xff", b"[]"])
def test_what_is_no_approval_is_not_read(cast: Cast, body: bytes) -> None:
    with pytest.raises(VerificationError, match="not an approval"):
        Notices(cast.roster, Path("none")).approved(A, body)
