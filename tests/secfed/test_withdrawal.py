"""Withdrawing and recording incidents on the command line; no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import EXAMPLE, make_plan, small_study
from typer.testing import CliRunner

from secfed.canonical import file_sha256
from secfed.cli import app
from secfed.errors import VerificationError
from secfed.operations import INCIDENTS, read_log
from secfed.privacy import accounting
from secfed.privacy.budget import Budget
from secfed.runtime.keys import make_authority, make_site_keys
from secfed.runtime.roster import make_roster, read_request
from secfed.runtime.signed_records import read_record
from secfed.signing import load_or_create
from secfed.study import Study

RUN = "0123456789abcdef/ffa-lora"
EVENT = make_plan(100, 10).round_event()


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def north(folder: Path, study: Study) -> Path:
    """A site's folder as an operator has it; returns the site's file."""
    home, own = folder / "coordinator", study.sites[0]
    key = load_or_create(home / "coordinator.key")
    requests = [
        read_request(make_site_keys(folder / site).request(site), site)
        for site in study.sites
    ]
    authority = make_authority(home).read_text()
    roster = make_roster(key, study, "fl.example:8443", authority, requests)
    (folder / "roster.json").write_bytes(roster)
    (folder / "site.toml").write_bytes((EXAMPLE / "site.toml").read_bytes())
    file = folder / "north.toml"
    lines = [
        "format = 1",
        f'site = "{own}"',
        f'keys = "{own}"',
        f'coordinator = "{key.fingerprint()}"',
    ]
    file.write_text("\n".join(lines), "utf-8")
    return file


def charge(folder: Path, study: Study, rounds: int) -> None:
    """Three rounds of the study, and one of another on the same people."""
    site = study.sites[0]
    path = folder / "state" / "sites" / site / "budget.sqlite"
    path.parent.mkdir(parents=True)
    budget = Budget(path, site).open("wordings", "record", 90.0, 1e-5)
    for number in range(1, rounds + 1):
        budget.reserve(study.digest(), RUN, number, EVENT)
    budget.reserve("0" * 64, "fedcba9876543210/ffa-lora", 1, EVENT)


def test_a_withdrawal_lists_what_is_affected_and_states_the_bound(
    tmp_path: Path,
) -> None:
    study = small_study()
    file = north(tmp_path, study)
    charge(tmp_path, study, 3)
    final = tmp_path / "state" / "runs" / RUN.partition("/")[0] / "final.safetensors"
    final.parent.mkdir(parents=True)
    final.write_bytes(b"adapter")
    out = tmp_path / "withdrawal.json"
    assert call("withdraw", file).exit_code == 1  # Nobody said yes.
    assert not (tmp_path / "state" / "withdrawn").exists()
    done = call("withdraw", file, "--yes", "--out", out)
    assert done.exit_code == 0, done.output
    assert "nothing that was learned is unlearned" in done.output
    fields = json.loads(out.read_bytes())
    (run,) = fields["runs"]  # Of this study only.
    assert (run["run"], run["rounds"]) == (RUN, [1, 2, 3])
    assert run["final_adapter_sha256"] == file_sha256(final)
    epsilon = accounting.epsilon([EVENT] * 3, study.privacy.delta)
    assert fields["epsilon"] == epsilon
    assert fields["delta"] == study.privacy.delta
    assert "wordings" not in out.read_text()  # What else it has is its own.
    again = call("withdraw", file, "--yes", "--json")
    assert json.loads(again.output) == fields
    lines = read_log(tmp_path / "state" / "operations.jsonl").lines
    assert [line.action for line in lines] == ["withdrawn"]
    shown = call("operations", "record", out)
    assert "signed by" in shown.output


def test_every_changed_byte_of_a_record_is_found(tmp_path: Path) -> None:
    file = north(tmp_path, small_study())
    out = tmp_path / "withdrawal.json"
    assert call("withdraw", file, "--yes", "--out", out).exit_code == 0
    good = out.read_bytes()
    assert b'"runs":[]' in good
    for place in range(0, len(good) - 1, 7):
        out.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(VerificationError):
            read_record(out.read_bytes(), out)
    assert call("operations", "record", out).exit_code == 3


def test_a_withdrawal_from_a_rehearsal_states_no_bound(tmp_path: Path) -> None:
    study = small_study(seed=3)
    file = north(tmp_path, study)
    charge(tmp_path, study, 1)
    done = call("withdraw", file, "--yes")
    assert "NOT PRIVATE" in done.output
    assert "epsilon" not in done.output


def test_incidents_are_of_a_closed_list_signed_and_logged(tmp_path: Path) -> None:
    file = north(tmp_path, small_study())
    assert call("incident", file, "--kind", "Ada was there").exit_code == 2
    assert call("incident", file, "--kind", "key-lost", "--noticed", "3 pm").exit_code
    done = call("incident", file, "--kind", "key-stolen", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["incident"], told["by"]) == ("key-stolen", small_study().sites[0])
    assert told["study"] == small_study().digest()
    assert call("operations", "record", told["file"]).exit_code == 0
    (line,) = read_log(tmp_path / "state" / "operations.jsonl").lines
    assert line.fields["incident"] == "key-stolen"
    assert line.value["event.kind"] == "alert"


@pytest.mark.parametrize("kind", INCIDENTS)
def test_the_help_names_every_incident(kind: str) -> None:
    # A line may end at any hyphen.
    assert kind in "".join(call("incident", "--help").output.split())
