"""Approvals: who signed what, what no longer counts, and that nothing is guessed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from governed import ANNA, BERT, CLEO, manifest_of, policy_values, study_of

from secfed.canonical import canonical_json, parse_json
from secfed.errors import PolicyError, VerificationError
from secfed.governance import (
    SiteApprovals,
    StudyManifest,
    consent_of,
    differences,
    standing,
)
from secfed.governance.approvals import Approval, approve, read_approvals, withdraw
from secfed.governance.records import sealed
from secfed.governance.summary import Summary, warnings_of
from secfed.policy import MOMENTARY, SEMI_HONEST, SitePolicy, check, verdicts
from secfed.signing import APPROVAL, WITHDRAWAL

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
KEYS = (ANNA, BERT)


def sign(folder: Path, key: Any, manifest: StudyManifest, **changes: Any) -> Approval:
    values = {
        "site": "",
        "population": "patients-2026",
        "exceptions": (),
        "shown": "what the operator read",
        "approved_at": NOW,
        "expires_at": NOW + 90 * DAY,
        "nonce": len(list(folder.glob("*"))).to_bytes(16, "big"),
    }
    return approve(folder, key, manifest, **(values | changes))


def policy_in(folder: Path, manifest: StudyManifest, **changes: Any) -> SitePolicy:
    """The policy of two operators, at a fixed moment."""
    keys = [key.fingerprint() for key in KEYS]
    values = policy_values(approvals=2, operators=keys, approvals_dir=str(folder))
    policy = SitePolicy.model_validate(values | changes)
    return consent_of(SiteApprovals(policy, manifest, clock=lambda: NOW))


def refusal(folder: Path, manifest: StudyManifest, **changes: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        check(policy_in(folder, manifest, **changes), manifest.study, 100)
    return str(caught.value)


# ------------------------------------------------------------------- two people


def test_two_different_people_must_sign(tmp_path: Path) -> None:
    manifest = manifest_of()
    assert "approved by 0 of 2" in refusal(tmp_path, manifest)
    sign(tmp_path, ANNA, manifest)
    sign(tmp_path, ANNA, manifest)
    assert "approved by 1 of 2" in refusal(tmp_path, manifest)
    sign(tmp_path, BERT, manifest)
    check(policy_in(tmp_path, manifest), manifest.study, 100)


def test_a_stranger_s_key_does_not_count(tmp_path: Path) -> None:
    manifest = manifest_of()
    sign(tmp_path, ANNA, manifest)
    sign(tmp_path, CLEO, manifest)
    assert "nobody whom site.toml lists" in refusal(tmp_path, manifest)


def test_another_site_s_or_population_s_approval_does_not_count(tmp_path: Path) -> None:
    manifest = manifest_of()
    for key in KEYS:
        sign(tmp_path, key, manifest, site="north")
        sign(tmp_path, key, manifest, population="others")
    assert "approved by 0 of 2" in refusal(tmp_path, manifest)


def test_a_policy_without_somebody_to_ask_refuses() -> None:
    policy = SitePolicy.model_validate(
        policy_values(approvals=1, operators=[ANNA.fingerprint()])
    )
    with pytest.raises(PolicyError, match="not read here"):
        check(policy, study_of(), 100)
    check(policy, study_of(), 100, without=MOMENTARY)


def test_no_file_attaches_consent_and_no_rule_is_left_out_by_name() -> None:
    with pytest.raises(ValueError, match="_consent"):
        SitePolicy.model_validate(policy_values(_consent="x"))
    policy = SitePolicy.model_validate(policy_values())
    with pytest.raises(ValueError, match="always asked"):
        check(policy, study_of(), 100, without=("people at this site",))


# ---------------------------------------------------------------------- changes


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"privacy": {"epsilon": 3.5}}, "3 -> 3.5, LESS protection"),
        ({"privacy": {"epsilon": 2.5}}, "3 -> 2.5, more protection"),
        ({"training": {"rounds": 3}}, "the number of rounds (training.rounds): 2 -> 3"),
        ({"study": {"recipients": ["X"]}}, "who else gets the release"),
        ({"adapter": {"seed": 5}}, "adapter.seed: 0 -> 5"),
    ],
)
def test_any_change_needs_a_new_approval_and_is_told(
    tmp_path: Path, tables: dict[str, Any], said: str
) -> None:
    for key in KEYS:
        sign(tmp_path, key, manifest_of())
    changed = manifest_of(**tables)
    told = refusal(tmp_path, changed, allowed_recipients=["X"])
    assert said in told
    assert "Since the version that was approved on 2027-03-01" in told


def test_other_keys_in_the_roster_are_another_manifest(tmp_path: Path) -> None:
    study = study_of()
    old = StudyManifest(study, b"\1" * 32, {"north": b"\2" * 32})
    new = StudyManifest(study, b"\1" * 32, {"north": b"\3" * 32})
    for key in KEYS:
        sign(tmp_path, key, old)
    assert "the key of north" in refusal(tmp_path, new)
    assert differences(old, old) == ()
    check(policy_in(tmp_path, old), study, 100)


def test_what_was_brought_for_approval_is_what_is_asked(tmp_path: Path) -> None:
    manifest = manifest_of()
    for key in KEYS:
        sign(tmp_path, key, manifest)
    policy = policy_in(tmp_path, manifest)
    with pytest.raises(PolicyError, match="another study"):
        check(policy, study_of(training={"rounds": 1}), 100)


# ----------------------------------------------------------- what ends approvals


def test_an_approval_expires_and_none_is_dated_ahead(tmp_path: Path) -> None:
    manifest = manifest_of()
    sign(tmp_path, ANNA, manifest, expires_at=NOW + DAY)
    sign(tmp_path, BERT, manifest, approved_at=NOW + DAY)
    assert "after now" in refusal(tmp_path, manifest)

    def at(moment: datetime) -> int:
        operators = frozenset(key.fingerprint() for key in KEYS)
        found = standing(
            tmp_path,
            manifest,
            site="",
            population="patients-2026",
            operators=operators,
            needed=2,
            now=moment,
        )
        return len(found.counted)

    assert [at(NOW), at(NOW + DAY), at(NOW + 91 * DAY)] == [1, 1, 0]


def test_a_withdrawal_ends_what_was_signed_and_no_clock_brings_it_back(
    tmp_path: Path,
) -> None:
    manifest = manifest_of()
    signed = [sign(tmp_path, key, manifest) for key in KEYS]
    withdraw(tmp_path, ANNA, signed, reason="a person asked", withdrawn_at=NOW - DAY)
    assert "was withdrawn" in refusal(tmp_path, manifest)
    for key in KEYS:
        sign(tmp_path, key, manifest)
    check(policy_in(tmp_path, manifest), manifest.study, 100)


def test_who_has_left_has_still_said_stop(tmp_path: Path) -> None:
    manifest = manifest_of()
    signed = [sign(tmp_path, key, manifest) for key in KEYS]
    withdraw(tmp_path, CLEO, signed, reason="", withdrawn_at=NOW)
    assert "was withdrawn" in refusal(tmp_path, manifest)


# --------------------------------------------------------------------- exceptions


def test_an_exception_is_signed_by_all_who_must_sign(tmp_path: Path) -> None:
    manifest = manifest_of(secagg={"mode": SEMI_HONEST})
    sign(tmp_path, ANNA, manifest, exceptions=[SEMI_HONEST])
    sign(tmp_path, BERT, manifest)
    assert "'semi-honest' is not 'malicious'" in refusal(tmp_path, manifest)
    sign(tmp_path, BERT, manifest, exceptions=[SEMI_HONEST])
    policy = policy_in(tmp_path, manifest)
    check(policy, manifest.study, 100)
    mode = [v for v in verdicts(policy, manifest.study, 100) if "lying" in v.rule]
    assert "exception was signed" in mode[0].text


def test_no_exception_lowers_another_floor(tmp_path: Path) -> None:
    manifest = manifest_of(secagg={"mode": SEMI_HONEST})
    for key in KEYS:
        sign(tmp_path, key, manifest, exceptions=[SEMI_HONEST])
    with pytest.raises(PolicyError, match="fewer than 10"):
        check(policy_in(tmp_path, manifest), manifest.study, 9)


# -------------------------------------------------------------------------- files


def test_what_was_written_is_read(tmp_path: Path) -> None:
    manifest = StudyManifest(study_of(), b"\1" * 32, {"north": b"\2" * 32})
    signed = sign(tmp_path, ANNA, manifest)
    ended = withdraw(tmp_path, BERT, [signed], reason="why", withdrawn_at=NOW)
    approvals, withdrawals = read_approvals(tmp_path)
    assert (approvals, withdrawals) == ((signed,), (ended,))
    assert approvals[0].manifest.digest() == manifest.digest()
    assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    sign(tmp_path, ANNA, manifest_of())
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    step = len(data) // 150
    changed = [
        data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :]
        for n in range(0, len(data), step)
    ]
    changed += [data[:n] for n in range(0, len(data), step)]
    changed += [data + b"\n", data * 2, b"", b"\n", b"[]\n", b"{}\n", b"\xff\n"]
    for other in changed:
        path.write_bytes(other)
        with pytest.raises(VerificationError):
            read_approvals(tmp_path)
    assert len(changed) > 300


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", True),
        ("format", 2),
        ("kind", "withdrawal"),
        ("kind", ["approval"]),
        ("exceptions", ["min_units"]),
        ("exceptions", [SEMI_HONEST, SEMI_HONEST]),
        ("exceptions", None),
        ("approved_at", "2027-02-30T12:00:00Z"),
        ("approved_at", "2027-03-01 12:00"),
        ("expires_at", "2027-03-01T12:00:00Z"),
        ("nonce", "00"),
        ("site", 1),
        ("manifest", {}),
        ("manifest", None),
        ("more", 1),
    ],
)
def test_a_well_signed_record_of_another_form_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    sign(tmp_path, ANNA, manifest_of())
    (path,) = tmp_path.iterdir()
    fields = parse_json(path.read_bytes())
    del fields["signature"], fields["operator"]
    path.write_bytes(sealed(ANNA, APPROVAL, fields | {field: value}))
    with pytest.raises(VerificationError):
        read_approvals(tmp_path)


def test_a_study_in_another_form_is_refused(tmp_path: Path) -> None:
    sign(tmp_path, ANNA, manifest_of())
    (path,) = tmp_path.iterdir()
    fields = parse_json(path.read_bytes())
    del fields["signature"], fields["operator"]
    fields["manifest"]["study"]["training"]["momentum"] = 0  # It is 0.0.
    path.write_bytes(sealed(ANNA, APPROVAL, fields))
    with pytest.raises(VerificationError):
        read_approvals(tmp_path)


def test_a_signature_for_another_purpose_is_refused(tmp_path: Path) -> None:
    sign(tmp_path, ANNA, manifest_of())
    (path,) = tmp_path.iterdir()
    fields = parse_json(path.read_bytes())
    del fields["signature"], fields["operator"]
    path.write_bytes(sealed(ANNA, WITHDRAWAL, fields))
    with pytest.raises(VerificationError, match="signature"):
        read_approvals(tmp_path)


def test_garbage_beside_good_approvals_stops_everything(tmp_path: Path) -> None:
    manifest = manifest_of()
    for key in KEYS:
        sign(tmp_path, key, manifest)
    check(policy_in(tmp_path, manifest), manifest.study, 100)
    (tmp_path / "x.json").write_bytes(canonical_json({"kind": "withdrawal"}) + b"\n")
    assert "x.json" in refusal(tmp_path, manifest)
    (tmp_path / "x.json").unlink()
    (tmp_path / "y.json").symlink_to(next(tmp_path.glob("wards-*")))
    assert "y.json" in refusal(tmp_path, manifest)


# ---------------------------------------------------------------------- the page


def test_a_study_cannot_write_on_the_operator_s_page(tmp_path: Path) -> None:
    tricky = "fine\x1b[2J\n\nWarnings:\n  - none\u202e"
    tables = {"study": {"title": tricky, "recipients": [tricky]}}
    old, new = manifest_of(), manifest_of(**tables)
    page = Summary(
        manifest=new,
        policy_of="patients-2026",
        numbers=None,
        upload_bytes=None,
        outlays={},
        verdicts=(),
        since=NOW,
        changes=differences(old, new),
        warnings=warnings_of(new.study, {}, {"north": 50}, compared=False),
        exceptions=(SEMI_HONEST,),
        expires_at=NOW + DAY,
    ).text()
    lines = page.split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines.count("Warnings:") == 1
    assert "update of UNKNOWN numbers" in page
    assert "the coordinator is trusted to follow the protocol" in page
