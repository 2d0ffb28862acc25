"""``secfed doctor`` on this machine: a site of a deployment, a study at home."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import ssl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from packaging.specifiers import SpecifierSet
from parties import protecting_of, set_up
from safetensors.numpy import save_file
from small import study_values
from test_doctor_network import Answers, _no_proxy, running
from typer.testing import CliRunner

from secfed.cli import app
from secfed.doctor.examine import examine_site, examine_study, kind_of
from secfed.doctor.findings import Finding, failed
from secfed.doctor.machine import check_disk, check_memory, check_telemetry
from secfed.doctor.versions import (
    check_packages,
    check_python,
    known_versions,
    required_packages,
)
from secfed.errors import StudyError
from secfed.runtime.flower.children import LOOPBACK, SWITCHES
from secfed.runtime.keys import read_server
from secfed.runtime.protection import read_secret
from secfed.study import load_study

SITE = "north-general"
WORDS = "the patient is called Ada"
TEXTS = 40

_ = _no_proxy  # Used by being here.


def study_with(folder: Path) -> dict[str, Any]:
    """A study on records of the sites' own, and a base model of twelve numbers."""
    model = folder / "model"
    model.mkdir(parents=True)
    save_file({"w": np.zeros((3, 4), np.float32)}, model / "model.safetensors")
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    values = study_values(2)
    partition = values["data"]["partition"]
    values["data"] = {
        "source": "records.csv",
        "text_column": "text",
        "label_column": "label",
        "labels": ["heart", "lung"],
        "partition": {"kind": "iid", "sites": partition["sites"]},
        "holdout": {"fraction": 0.1},
    }
    values["model"] = {"path": "model", "sha256": digest, "max_length": 8}
    return values


def records(path: Path, count: int = TEXTS, label: str = "lung") -> None:
    lines = [f"{WORDS} {n},{label}" for n in range(count)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n", "utf-8")


def policy(path: Path, values: dict[str, Any]) -> None:
    own = {
        "format": 1,
        "population": "people",
        "max_epsilon": 20.0,
        "delta": 1e-4,
        "allowed_methods": [values["training"]["method"]],
        "allowed_model_sha256": [values["model"]["sha256"]],
        "budget_dir": "budgets",
    }
    path.write_text(tomli_w.dumps(own), "utf-8")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder of a site that lacks nothing but a coordinator."""
    home = tmp_path / "home"
    values = study_with(home)
    (home / "study.toml").write_text(tomli_w.dumps(values), "utf-8")
    policy(home / "site.toml", values)
    set_up(tmp_path / "all", home / "study.toml", home / "site.toml")
    folder = tmp_path / "all" / SITE
    shutil.copytree(home / "model", folder / "model")
    records(folder / "records.csv")
    return folder


def findings_at(folder: Path) -> dict[str, Finding]:
    found = examine_site(folder / "node.toml", timeout=2.0)
    assert len({one.check for one in found}) == len(found)
    return {one.check: one for one in found}


def test_a_site_that_lacks_nothing_passes_all_but_the_absent_coordinator(
    site: Path,
) -> None:
    seen = findings_at(site)
    assert [name for name, one in seen.items() if one.stops] == ["tcp"]
    unclear = [name for name, one in seen.items() if one.status == "unknown"]
    assert unclear == ["tls", "http", "clock"]
    for name in ("python", "disk", "telemetry", "pin", "study", "model", "records"):
        assert seen[name].status == "ok", seen[name]


def test_a_site_with_its_coordinator_passes_everything(site: Path) -> None:
    import http.server  # noqa: PLC0415

    home = site.parent / "coordinator"
    certificate, secret = read_server(home / "keys", protecting_of(home))
    opened = home / "server.key"  # Python takes a key from a file only.
    opened.write_bytes(secret)
    roster = json.loads((site / "roster.json").read_bytes())
    port = int(roster["address"].rpartition(":")[2])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, opened)
    server = http.server.ThreadingHTTPServer((LOOPBACK, port), Answers)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    with running(server.serve_forever, server.shutdown):
        seen = findings_at(site)
    server.server_close()
    assert not [one for one in seen.values() if one.stops]
    for name in ("proxy", "dns", "tcp", "tls", "http"):
        assert seen[name].status == "ok", seen[name]
    assert seen["clock"].status in {"ok", "warning"}  # A busy machine answers late.


def test_nobody_is_contacted_whom_the_pinned_coordinator_did_not_name(
    site: Path,
) -> None:
    own = site / "node.toml"
    pinned = re.sub(
        r'coordinator = "[0-9a-f]{8}', 'coordinator = "00000000', own.read_text()
    )
    own.write_text(pinned)
    seen = findings_at(site)
    assert seen["pin"].status == "failed"
    assert "telephone" in seen["pin"].mend
    assert seen["network"].status == "unknown"
    assert seen["records"].status == "unknown"


def test_keys_that_others_can_read_stop_a_run(site: Path) -> None:
    (site / "keys" / "identity.key").chmod(0o644)
    seen = findings_at(site)
    assert seen["pin"].status == "failed"
    assert "open to other users" in seen["pin"].text


def test_another_model_and_a_missing_one_stop_a_run(site: Path) -> None:
    weights = site / "model" / "model.safetensors"
    save_file({"w": np.ones((3, 4), np.float32)}, weights)
    assert findings_at(site)["model"].status == "failed"
    weights.unlink()
    gone = findings_at(site)
    assert gone["model"].status == "failed"
    assert gone["memory"].status == "unknown"


@pytest.mark.parametrize("count", [1, 9])
def test_below_the_floor_no_number_is_said(site: Path, count: int) -> None:
    records(site / "records.csv", count)
    found = findings_at(site)["records"]
    assert found.status == "failed"
    words = re.findall(r"\d+", found.text.replace(str(site), ""))
    assert set(words) <= {"10"}


def test_records_that_do_not_fit_are_named_by_row_and_never_shown(site: Path) -> None:
    records(site / "records.csv", label="a hidden label")
    found = findings_at(site)["records"]
    assert found.status == "failed"
    assert "hidden" not in found.text
    assert WORDS not in found.text


def test_a_policy_that_refuses_stops_a_run(site: Path) -> None:
    path = site / "site.toml"
    path.write_text(path.read_text().replace("20.0", "0.5"))
    found = findings_at(site)["records"]
    assert found.status == "failed"
    assert "max_epsilon" in found.text


def test_a_seed_stops_a_run_unless_it_is_a_rehearsal(tmp_path: Path) -> None:
    from secfed.doctor.held import check_rule  # noqa: PLC0415

    values = study_with(tmp_path)
    values["simulation"] = {"seed": 3}
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values), "utf-8")
    study = load_study(tmp_path / "study.toml")
    assert check_rule(study).status == "failed"
    assert check_rule(study, rehearsal=True).status == "ok"


# At home


def test_at_home_no_network_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket  # noqa: PLC0415

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    values = study_with(tmp_path)
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values), "utf-8")
    records(tmp_path / "records.csv", 200)
    seen = {one.check: one for one in examine_study(tmp_path / "study.toml")}
    assert "tcp" not in seen
    assert not [one for one in seen.values() if one.stops]
    assert seen["records"].status == "ok"


# The command


def test_the_command_says_what_stops_and_ends_with_1(site: Path) -> None:
    shown = CliRunner().invoke(app, ["doctor", str(site), "--timeout", "2"])
    assert shown.exit_code == 1, shown.output
    assert "A run would be stopped by: tcp." in shown.output
    assert re.search(r"^failed +tcp .* Mend: ", shown.output, re.MULTILINE)
    assert re.search(r"^UNKNOWN +clock ", shown.output, re.MULTILINE)


def test_as_json_it_is_one_value_and_holds_nothing_private(site: Path) -> None:
    command = ["doctor", str(site / "node.toml"), "--timeout", "2", "--json"]
    shown = CliRunner().invoke(app, command)
    value = json.loads(shown.stdout)
    assert value["situation"] == "site"
    assert value["stops"] is True
    assert {"check", "status", "text", "mend"} == set(value["findings"][0])
    assert WORDS not in shown.output
    for key in ("identity.key", "node.key"):
        secret = read_secret(site / "keys" / key, protecting_of(site)).decode().split()
        assert not any(len(w) > 20 and w in shown.output for w in secret)
    counts = re.findall(rf"\b{TEXTS}\b", json.dumps(value["findings"][-8:]))
    assert not counts


def test_a_file_that_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("format = 1\n")
    with pytest.raises(StudyError, match="neither"):
        kind_of(tmp_path / "other.toml")
    with pytest.raises(StudyError, match="0 files of a site"):
        kind_of(tmp_path)


# This machine


def test_what_failed_has_a_mend() -> None:
    with pytest.raises(ValueError, match="mend"):
        failed("disk", "full", "")


def test_memory_is_compared_with_the_weights(tmp_path: Path) -> None:
    values = study_with(tmp_path)
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values), "utf-8")
    section = load_study(tmp_path / "study.toml").model
    needed = 3 * 4 * 4
    for available, status in (
        (needed - 1, "failed"),
        (needed, "warning"),
        (2 * needed, "ok"),
    ):
        assert check_memory(section, tmp_path, available).status == status


def test_a_full_disk_and_a_folder_that_cannot_be_written_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os  # noqa: PLC0415

    folders = [tmp_path / "not" / "there" / "yet"]
    for free, status in ((10**6, "failed"), (5 * 10**8, "warning"), (10**10, "ok")):
        assert check_disk(folders, free).status == status
    monkeypatch.setattr(os, "access", lambda *_: False)  # Root may write anywhere.
    assert "written" in check_disk(folders).text


def test_telemetry_is_off_once_flower_may_be_loaded_and_on_is_seen() -> None:
    assert check_telemetry().status == "ok"
    for name in SWITCHES:
        on = check_telemetry({**SWITCHES, name: "2"})
        assert on.status == "failed"
        assert name in on.text


def test_versions_are_compared_with_ranges_and_with_those_tested() -> None:
    assert check_python("3.10.2").status == "failed"
    assert check_python("3.12.1").status == "ok"
    ranges = {"packaging": SpecifierSet(">=1"), "pytest": SpecifierSet(">=1")}
    assert check_packages(ranges, {}).status == "unknown"
    other = check_packages(ranges, {"packaging": "0.1"})
    assert (other.status, "0.1" in other.text) == ("warning", True)
    wrong = check_packages({"packaging": SpecifierSet("<1")}, {})
    assert wrong.status == "failed"
    assert check_packages({"no-such-package": SpecifierSet()}, {}).stops


def test_every_declared_package_has_a_tested_version() -> None:
    assert {"flwr", "torch", "cryptography"} <= set(required_packages())
    assert set(required_packages()) <= set(known_versions())
    assert check_packages().status in {"ok", "warning"}
