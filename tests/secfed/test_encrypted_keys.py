"""Every command that signs does so with keys that are encrypted at rest; no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from parties import Parties, protecting_of, set_up
from small import EXAMPLE
from typer.testing import CliRunner

import secfed.airgap
from secfed.cli import app
from secfed.errors import BundleError
from secfed.governance.approvals import read_approvals
from secfed.operations import read_log
from secfed.runtime.key_places import CREDENTIALS_FOLDER
from secfed.runtime.keys import make_signing_key, read_coordinator_key, read_site_keys
from secfed.runtime.protection import VARIABLE, is_protected
from secfed.runtime.served import create_served
from secfed.runtime.signed_records import read_record
from secfed.signing import CoordinatorKey

INCIDENT = ("--kind", "key-stolen", "--json")


@pytest.fixture(autouse=True)
def nobody_names_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(CREDENTIALS_FOLDER, raising=False)


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    """Everybody's keys are encrypted; each site's own key approved the study."""
    return set_up(tmp_path / "all", EXAMPLE / "study.toml", EXAMPLE / "site.toml")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def home_of(parties: Parties) -> Path:
    return parties.folder / parties.study.sites[0]


def commands(home: Path) -> list[tuple[object, ...]]:
    """Each reads the keys of the site."""
    file, roster = home / "node.toml", home / "roster.json"
    return [
        ("withdraw", file, "--yes", "--json"),
        ("incident", file, *INCIDENT),
        ("approve", roster, "--site", file, "--withdraw", "--json"),
        ("policy", "check", roster, "--site", file),
    ]


def forget_the_place(home: Path) -> None:
    """The site's file names no protecting key any more."""
    file = home / "node.toml"
    lines = file.read_text("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("protecting_key")]
    assert len(kept) == len(lines) - 1
    file.write_text("\n".join(kept) + "\n", "utf-8")


def signer_of(home: Path) -> CoordinatorKey:
    return read_site_keys(home / "keys", protecting_of(home)).signer


def test_a_site_signs_with_its_encrypted_identity(parties: Parties) -> None:
    home = home_of(parties)
    assert is_protected((home / "keys" / "identity.key").read_bytes())
    own = signer_of(home).public_bytes
    (approval,), none = read_approvals(home / "approvals")
    assert (approval.operator, none) == (own, ())
    for words in commands(home)[:3]:
        done = call(*words)
        assert done.exit_code == 0, done.output
        if words[0] != "approve":
            assert json.loads(done.output)["key"] == own.hex()
    told = json.loads(done.output)
    assert told == {"withdrawn": [approval.digest]}
    _, (ended,) = read_approvals(home / "approvals")
    assert ended.operator == own
    lines = read_log(home / "state" / "operations.jsonl").lines
    assert [line.action for line in lines] == ["withdrawn", "incident-recorded"]


@pytest.mark.parametrize("number", range(4))
def test_a_command_without_the_protecting_key_signs_nothing(
    parties: Parties, number: int
) -> None:
    home = home_of(parties)
    words = commands(home)[number]
    forget_the_place(home)
    before = sorted(home.rglob("*"))
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert "Say where the protecting key is" in done.output
    assert sorted(home.rglob("*")) == before


def test_the_variable_and_a_unit_s_credential_say_where_it_is(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(parties)
    forget_the_place(home)
    monkeypatch.setenv(VARIABLE, str(home / "protecting.key"))
    assert call("incident", home / "node.toml", *INCIDENT).exit_code == 0
    monkeypatch.delenv(VARIABLE)
    handed = home / "handed"
    handed.mkdir()
    (home / "protecting.key").rename(handed / "secfed-protecting-key")
    monkeypatch.setenv(CREDENTIALS_FOLDER, str(handed))
    assert call("incident", home / "node.toml", *INCIDENT).exit_code == 0


def test_a_coordinator_records_an_incident_with_its_encrypted_key(
    parties: Parties,
) -> None:
    home = parties.coordinator

    def served(name: str, place: Path | None) -> Path:
        create_served(
            home / name,
            roster=str(home / "roster.json"),
            keys=str(home / "keys"),
            base_dir=str(home),
            host="127.0.0.1",
            port=8443,
            rehearsal=False,
            joining=1.0,
            training=1.0,
            phase=1.0,
            protecting_key=None if place is None else str(place),
        )
        return home / name

    done = call("incident", served("run", home / "protecting.key"), *INCIDENT)
    assert done.exit_code == 0, done.output
    file = Path(json.loads(done.output)["file"])
    key = read_coordinator_key(home / "keys", protecting_of(home))
    assert read_record(file.read_bytes(), file)["key"] == key.public_bytes.hex()
    refused = call("incident", served("other", None), *INCIDENT)
    assert refused.exit_code == 2
    assert "Say where the protecting key is" in refused.output
    assert not (home / "other" / "private" / "incidents").exists()


def test_an_operator_s_key_is_encrypted_under_that_person_s(parties: Parties) -> None:
    home = home_of(parties)
    key, place = parties.folder / "anna.key", parties.folder / "anna.protecting"
    assert call("keys", "operator", key).exit_code == 2
    assert not key.exists()
    made = call("keys", "operator", key, "--protecting-key", place)
    assert made.exit_code == 0, made.output
    found = made.output.split("fingerprint: ")[1].strip()
    assert is_protected(key.read_bytes())
    again = call("keys", "operator", key, "--protecting-key", place)
    assert again.output == made.output
    with (home / "site.toml").open("a") as file:
        file.write(f'operators = ["{found}"]\n')
    *words, _json = commands(home)[2]
    # The site's own key is none of the operators, and Anna's needs her protecting key.
    assert call(*words).exit_code == 4
    refused = call(*words, "--key", key)
    assert refused.exit_code == 2
    assert "Say where the protecting key is" in refused.output
    refused = call(*words, "--key", key, "--protecting-key", home / "protecting.key")
    assert "give the right one" in refused.output
    assert call(*words, "--protecting-key", place).exit_code == 2
    done = call(*words, "--key", key, "--protecting-key", place)
    assert done.exit_code == 0, done.output


def test_one_file_is_encrypted_later_and_no_file_by_mistake(tmp_path: Path) -> None:
    key, place = tmp_path / "anna.key", tmp_path / "protecting.key"
    before = make_signing_key(key).public_bytes
    other = tmp_path / "notes.txt"
    other.write_text("a person's notes")
    other.chmod(0o600)
    words = ("--protecting-key", place)
    refused = call("keys", "protect", other, *words)
    assert refused.exit_code == 2
    assert "not a signing key" in refused.output
    assert other.read_text() == "a person's notes"
    assert call("keys", "protect", key, "--protecting-key", key).exit_code == 2
    assert call("keys", "protect", key, *words).output == "encrypted now: anna.key\n"
    assert "all were before" in call("keys", "protect", key, *words).output
    assert make_signing_key(key, protecting_of(tmp_path)).public_bytes == before


def test_a_bundle_is_signed_with_the_encrypted_key(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, signers = parties.coordinator, []

    def keep(_study: Path, _out: Path, key: CoordinatorKey, _collect: object) -> None:
        signers.append(key.fingerprint())
        raise BundleError("nothing is fetched in this test")

    monkeypatch.setattr(secfed.airgap, "write_bundle", keep)
    words = ("bundle", home / "study.toml", "--out", home / "out", "--keys")
    refused = call(*words, home / "keys")
    assert "Say where the protecting key is" in refused.output
    call(*words, home / "keys", "--protecting-key", home / "protecting.key")
    key = read_coordinator_key(home / "keys", protecting_of(home))
    assert signers == [key.fingerprint()]
