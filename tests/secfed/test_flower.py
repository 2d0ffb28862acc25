"""The seam to Flower: the app bundle, the records, the handlers, the two listeners."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.config import get_fab_config
from flwr.supercore.task_identity import TaskIdentity
from small import EXAMPLE
from typer.testing import CliRunner

import secfed
from secfed.cli import app as cli
from secfed.errors import RunDirectoryError, VerificationError
from secfed.runtime.envelope import ORDERS, Sealed
from secfed.runtime.flower.bundle import app_bundle, app_digest
from secfed.runtime.flower.children import SWITCHES
from secfed.runtime.flower.client_app import client_app
from secfed.runtime.flower.records import from_record, to_record, type_of
from secfed.runtime.flower.superlink import fleet_only, token_only
from secfed.runtime.keys import (
    certificate_fingerprint,
    make_authority,
    make_server_certificate,
    make_site_keys,
    read_server,
    read_site_keys,
)
from secfed.runtime.roster import read_roster
from secfed.study import load_study

SEALED = Sealed(b"header", b"body\x00\xff", b"signature")


@pytest.fixture
def task() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1


def message(kind: str, content: RecordDict | None = None) -> Message:
    made = Message(content or to_record(SEALED), dst_node_id=7, message_type=kind)
    made.metadata.__dict__["_message_id"] = "asked"
    return made


CONTEXT = Context(2, 7, {}, RecordDict(), {}, 1)


def test_the_bundle_is_the_same_bytes_for_the_same_versions_and_holds_no_code() -> None:
    script = "from secfed.runtime.flower.bundle import app_digest; print(app_digest())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == app_digest()
    assert hashlib.sha256(app_bundle()).hexdigest() == app_digest()
    config = get_fab_config(app_bundle())
    assert config["project"]["version"] == secfed.__version__
    assert len(app_bundle()) < 3000


def test_a_message_carries_the_sealed_bytes_and_nothing_else() -> None:
    assert from_record(to_record(SEALED)) == SEALED
    fields = {"header": b"h", "body": b"b", "signature": b"s"}
    for wrong in (
        RecordDict(),
        RecordDict({"other": ConfigRecord(dict(fields))}),
        RecordDict({"secfed": ConfigRecord(fields | {"loss": 0.1})}),
        RecordDict({"secfed": ConfigRecord(fields | {"body": "text"})}),
        RecordDict({"secfed": ConfigRecord({"header": b"h"})}),
    ):
        with pytest.raises(VerificationError):
            from_record(wrong)


def test_every_phase_has_one_handler_and_nothing_else_has_one(task: None) -> None:
    asked: list[str] = []

    def answer(phase: str, sealed: Sealed) -> Sealed:
        asked.append(phase)
        assert sealed == SEALED
        return Sealed(b"h", phase.encode(), b"s")

    app = client_app(answer)
    for phase in ORDERS:
        reply = app(message(type_of(phase)), CONTEXT)
        assert from_record(reply.content).body == phase.encode()
    assert asked == list(ORDERS)
    for kind in ("train", "evaluate", "query", "train.other", "query.advertise"):
        with pytest.raises(ValueError, match="function registered"):
            app(message(kind), CONTEXT)
    assert asked == list(ORDERS)


def test_a_handler_passes_on_a_refusal_and_no_foreign_record(task: None) -> None:
    def refuse(phase: str, sealed: Sealed) -> Sealed:
        raise VerificationError("not for this site")

    app = client_app(refuse)
    with pytest.raises(VerificationError, match="not for this site"):
        app(message(type_of("advertise")), CONTEXT)
    foreign = RecordDict({"parameters": ConfigRecord({"x": 1})})
    with pytest.raises(VerificationError, match="other records"):
        app(message(type_of("advertise"), foreign), CONTEXT)


async def _inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _status(app: Any, path: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(app(scope, None, send))
    return int(sent[0]["status"])


def test_the_public_listener_has_the_fleet_api_only() -> None:
    app = fleet_only(_inner)
    assert _status(app, "/v1/fleet/pull-messages") == 200
    for path in (
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/v1/Fleet/x",
        "//v1/fleet/x",
        "/docs",
        "/health",
        "/",
    ):
        assert _status(app, path) == 404


def test_the_private_listener_answers_whoever_shows_the_token() -> None:
    app = token_only(_inner, "secret")
    path = "/v1/control/start-run"
    assert _status(app, path, ((b"x-secfed-token", b"secret"),)) == 200
    assert _status(app, path) == 404
    assert _status(app, path, ((b"x-secfed-token", b"secre"),)) == 404


def test_flower_asks_the_network_for_nothing_when_it_starts() -> None:
    assert SWITCHES["FLWR_TELEMETRY_ENABLED"] == "0"
    assert SWITCHES["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert SWITCHES["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


# Keys


def test_keys_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    made, again = make_site_keys(tmp_path / "keys"), make_site_keys(tmp_path / "keys")
    assert made.request("north") == again.request("north")
    for name in ("identity.key", "node.key"):
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600
    (tmp_path / "keys" / "node.key").chmod(0o640)
    with pytest.raises(RunDirectoryError, match="open to other users"):
        read_site_keys(tmp_path / "keys")
    (tmp_path / "keys" / "node.key").chmod(0o600)
    (tmp_path / "keys" / "identity.key").write_text("no key")
    with pytest.raises(RunDirectoryError, match="not the keys of a site"):
        read_site_keys(tmp_path / "keys")


def test_the_authority_stays_and_the_servers_certificate_is_renewed(
    tmp_path: Path,
) -> None:
    before = make_authority(tmp_path).read_bytes()
    make_server_certificate(tmp_path, ["127.0.0.1", "fl.example"])
    old, key = read_server(tmp_path)[0].read_bytes(), read_server(tmp_path)[1]
    assert make_authority(tmp_path).read_bytes() == before
    make_server_certificate(tmp_path, ["127.0.0.1"])
    assert read_server(tmp_path)[0].read_bytes() != old
    assert read_server(tmp_path)[1] != key
    assert len(certificate_fingerprint(before.decode())) == 64
    with pytest.raises(VerificationError, match="not a certificate"):
        certificate_fingerprint("nothing")


def test_from_keys_to_a_roster_on_the_command_line(tmp_path: Path) -> None:
    def secfed_(*arguments: object) -> str:
        done = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    home, study = tmp_path / "coordinator", EXAMPLE / "study.toml"
    protect = ("--protecting-key", tmp_path / "protecting.key")
    secfed_("keys", "authority", home, "--host", "fl.example", *protect)
    requests, said = [], ""
    for site in load_study(study).sites:
        keys = tmp_path / site
        said = secfed_("keys", "new", keys, *protect)
        requests.append(tmp_path / f"{site}.json")
        assert said.splitlines()[-1] in secfed_(
            "join", site, "--keys", keys, "--out", requests[-1], *protect
        )
    out = tmp_path / "roster.json"
    options = ("--keys", home, "--address", "fl.example:8443", "--out", out)
    secfed_("keys", "roster", study, *requests, *options, *protect)
    shown = secfed_("keys", "show", out)
    assert said.splitlines()[-1].removeprefix("identity: ") in shown
    roster = read_roster(out.read_bytes(), out)
    assert roster.address == "fl.example:8443"
    refused = CliRunner().invoke(
        cli,
        ["keys", "roster", str(study), str(requests[0]), *map(str, options + protect)],
    )
    assert refused.exit_code == 3
    assert "the study has the sites" in refused.output
