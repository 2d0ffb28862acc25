"""Keys that are no longer trusted, and disks that are full."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import deployed
import pytest
from deployed import KEY, Cast, LostError, roster_of
from small import planned, small_policy, small_study
from typer.testing import CliRunner

from protocols.keys import generate_identity
from secfed.cli import app as cli
from secfed.entries import RoundEntry
from secfed.errors import RunDirectoryError, TooFewSitesError, VerificationError
from secfed.ledger import split_lines, verify_entries
from secfed.privacy.budget import Budget
from secfed.runtime import site_session, site_worker
from secfed.runtime.keys import make_authority, make_site_keys
from secfed.runtime.roster import make_roster, read_request, read_roster, revoke
from secfed.runtime.setup import Prepared
from secfed.runtime.site_file import load_site_file, pinned_roster
from secfed.signing import CoordinatorKey, load_or_create

A, B, C, D = small_study().sites


def roster_bytes() -> bytes:
    study = small_study()
    requests = list(roster_of(study).requests.values())
    return make_roster(KEY, study, "x:1", "pem", requests)


def rounds(run: Path) -> list[Any]:
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    entries = [e.parsed() for e in verify_entries(lines, KEY.public_bytes)]
    return [entry for entry in entries if isinstance(entry, RoundEntry)]


@pytest.fixture
def cast(prepared: Prepared, tmp_path: Path) -> Cast:
    study = small_study(rounds=2, seed=41)
    return Cast(planned(prepared, study), study, small_policy(), tmp_path / "sites")


# Revocation


def test_a_revoked_site_stays_in_the_roster_and_is_not_admitted() -> None:
    before = read_roster(roster_bytes(), "roster")
    after = read_roster(revoke(KEY, roster_bytes(), [D], "roster"), "roster")
    assert (before.revoked, after.revoked) == ((), (D,))
    assert after.identities == before.identities
    assert set(after.nodes) == {A, B, C}
    assert after.study.digest() == before.study.digest()
    more = revoke(KEY, revoke(KEY, roster_bytes(), [D], "r"), [B, D], "r")
    assert read_roster(more, "r").revoked == tuple(sorted((B, D)))


def test_only_the_rosters_coordinator_revokes_and_only_sites_of_it() -> None:
    with pytest.raises(VerificationError, match="another coordinator's key"):
        revoke(CoordinatorKey(b"\x08" * 32), roster_bytes(), [D], "roster")
    with pytest.raises(VerificationError, match="no site elsewhere"):
        revoke(KEY, roster_bytes(), ["elsewhere"], "roster")


@pytest.mark.parametrize("named", [[], [A], ["elsewhere"], [A, A], "all", [1]])
def test_a_revocation_that_is_added_or_malformed_does_not_verify(named: Any) -> None:
    fields = json.loads(revoke(KEY, roster_bytes(), [D], "roster"))
    fields["revoked"] = named
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(VerificationError):
        read_roster(text.encode(), "roster")


def test_a_revoked_site_is_asked_nothing_and_too_few_are_named(
    cast: Cast, tmp_path: Path
) -> None:
    cast.roster = replace(cast.roster, revoked=(D,))
    cast.serve(tmp_path / "run")
    assert {site for site, _, _ in cast.orders} == {A, B, C}
    assert all(D not in entry.participants for entry in rounds(tmp_path / "run"))
    assert not any(D in note for note in cast.notes.notes)
    cast.roster = replace(cast.roster, revoked=(C, D))
    cast.run_id = "e" * 16
    with pytest.raises(TooFewSitesError, match=rf"{C} \(revoked\)"):
        cast.serve(tmp_path / "again")


def test_a_site_does_not_start_with_revoked_keys(tmp_path: Path) -> None:
    study, home = small_study(), tmp_path / "coordinator"
    authority = make_authority(home).read_text()
    key = load_or_create(home / "coordinator.key")
    requests = []
    for site in study.sites:
        data = make_site_keys(tmp_path / site).request(site)
        requests.append(read_request(data, site))
    path = tmp_path / "roster.json"
    path.write_bytes(make_roster(key, study, "fl.example:8443", authority, requests))
    file = tmp_path / "node.toml"
    file.write_text(
        f'format = 1\nsite = "{D}"\ncoordinator = "{key.fingerprint()}"\n', "utf-8"
    )
    own, keys = load_site_file(file), make_site_keys(tmp_path / D)
    assert pinned_roster(own, tmp_path, keys).revoked == ()
    command = ["keys", "revoke", str(path), D, "--keys", str(home)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert done.output.count("REVOKED") == 1
    with pytest.raises(VerificationError, match="are revoked; make new ones"):
        pinned_roster(own, tmp_path, keys)


def test_new_keys_are_for_a_new_run_and_the_budget_stays(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast.crash = (2, "advertise")
    with pytest.raises(LostError):
        cast.serve(tmp_path / "run")
    before, old = cast.rounds_charged(D), cast.roster.identities
    cast.crash = None
    monkeypatch.setattr(
        deployed,
        "identity_of",
        lambda site: generate_identity(site[::-1].encode().ljust(32, b"+")[:32]),
    )
    cast.roster = roster_of(cast.study)
    assert not set(cast.roster.identities.values()) & set(old.values())
    with pytest.raises(RunDirectoryError, match="begun with other keys"):
        cast.serve(tmp_path / "run")
    cast.run_id = "e" * 16
    cast.begin(*cast.study.sites)
    cast.serve(tmp_path / "rotated")
    assert cast.rounds_charged(D) == [*before, 1, 2]


# A full disk


def _no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_round_that_cannot_be_noted_is_not_begun(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = site_session.write_atomically

    def full(path: Path, data: bytes) -> None:
        if path.is_relative_to(cast.folder / D) and b'"round":1' in data:
            _no_room()
        honest(path, data)

    monkeypatch.setattr(site_session, "write_atomically", full)
    cast.serve(tmp_path / "run")
    first, second = rounds(tmp_path / "run")
    assert first.dropouts == {D: "adapter"}
    assert D in first.spent
    assert D in second.survivors
    assert cast.rounds_charged(D) == [2]
    assert any("No space left on device" in note for note in cast.notes.notes)


def test_a_disk_that_is_full_after_the_reservation_does_not_take_it_back(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, failed = Budget.receipt, []

    def full(self: Budget, reservation: int) -> Any:
        if self.site == D and not failed:
            failed.append(reservation)
            # As SQLite's "database or disk is full" comes out of a budget.
            raise site_worker.PolicyError("the budget's file cannot be read")
        return honest(self, reservation)

    monkeypatch.setattr(Budget, "receipt", full)
    cast.serve(tmp_path / "run")
    first, _ = rounds(tmp_path / "run")
    assert cast.rounds_charged(D)[0] == 1
    # "policy" would mean to the coordinator that nothing was spent.
    assert D in first.spent
    assert f"{D} declines advertise: failed" in cast.notes.notes
