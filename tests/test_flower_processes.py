"""Flower's own processes under secfed's seam, with sites that hold nothing.

What is real: the SuperLink behind its two listeners, TLS, node authentication, the
SuperNodes, their resident runners, kill -9. What is not: records, models, protocol.
"""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from secfed.runtime.envelope import Post, Sealed
from secfed.runtime.flower.bundle import app_bundle
from secfed.runtime.flower.children import LOOPBACK, free_port
from secfed.runtime.flower.coordinator import Listener, coordinate
from secfed.runtime.keys import (
    make_authority,
    make_server_certificate,
    make_site_keys,
    read_server,
)

pytestmark = pytest.mark.slow

STUB = Path(__file__).with_name("stub_site.py")
JOIN_SECONDS, PHASE_SECONDS = 300.0, 120.0


@dataclass
class Nodes:
    folder: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_authority(self.folder / "keys")
        make_server_certificate(self.folder / "keys", [LOOPBACK])
        server = read_server(self.folder / "keys")
        self.listener = Listener(LOOPBACK, self.port, *server)
        self.authority = self.folder / "keys" / "authority.pem"

    def start(self, *names: str) -> None:
        for name in names:
            make_site_keys(self.folder / name / "keys")
            arguments = [
                str(self.folder / name),
                f"{LOOPBACK}:{self.port}",
                str(self.authority),
                str(self.folder / "end"),
            ]
            with (self.folder / name / "log.txt").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, str(STUB), *arguments], stdout=log, stderr=log
                )

    def roster(self, *names: str) -> dict[str, str]:
        return {
            name: make_site_keys(self.folder / name / "keys").node_public
            for name in names
        }

    def coordinate(
        self, names: tuple[str, ...], run: Callable[[Post], None], **more: Any
    ) -> None:
        folder = self.folder / "coordinator"
        coordinate(self.listener, self.roster(*names), folder, run, **more)

    def log(self, name: str) -> str:
        return (self.folder / name / "log.txt").read_text()

    def end(self) -> None:
        (self.folder / "end").touch()
        for process in self.processes.values():
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    made.end()


def orders(*names: str, body: bytes = b"order") -> dict[str, Sealed]:
    return {name: Sealed(b"header", body + name.encode(), b"") for name in names}


def asked(post: Post, phase: str, names: tuple[str, ...], seconds: float) -> set[str]:
    """Who answers an order, each with the body that it was sent."""
    found = set()
    for name, sealed in post.exchange(phase, orders(*names), seconds):
        assert sealed == Sealed(phase.encode(), b"order" + name.encode(), b"signed")
        found.add(name)
    return found


def test_orders_arrive_a_killed_site_is_passed_over_and_strangers_stay_outside(
    nodes: Nodes,
) -> None:
    names = ("north", "south")
    seen: dict[str, Any] = {}

    def run(post: Post) -> None:
        nodes.start("north", "south", "stranger")
        seen["joined"] = asked(post, "adapter", names, JOIN_SECONDS)
        began = time.monotonic()
        seen["large"] = {
            name: len(sealed.body)
            for name, sealed in post.exchange(
                "masked-input", orders(*names, body=bytes(8_000_000)), PHASE_SECONDS
            )
        }
        seen["seconds"] = time.monotonic() - began
        seen["control"] = _answers_outside(nodes)
        nodes.processes["south"].kill()
        nodes.processes["south"].wait()
        seen["after"] = asked(post, "confirm", names, PHASE_SECONDS)
        # On a busy machine it comes to the door after everything else.
        end = time.monotonic() + JOIN_SECONDS
        while "started again" not in nodes.log("stranger") and time.monotonic() < end:
            time.sleep(0.2)
        seen["everybody"] = set(post._sites.values())

    nodes.coordinate(names, run)
    assert seen["joined"] == {"north", "south"}
    assert seen["large"] == {"north": 8_000_005, "south": 8_000_005}
    assert seen["after"] == {"north"}
    # The stranger has the authority's certificate and a node key of its own.
    assert seen["everybody"] == {"north", "south"}
    assert nodes.processes["stranger"].poll() is None
    assert "started again" in nodes.log("stranger")
    assert set(seen["control"].values()) == {404}


def _answers_outside(nodes: Nodes) -> dict[str, int]:
    """What the public listener says to somebody with the authority's certificate."""
    paths = (
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/runtime/get-nodes",
        "/docs",
        "/openapi.json",
    )
    with httpx.Client(
        base_url=f"https://{LOOPBACK}:{nodes.port}", verify=str(nodes.authority)
    ) as client:
        return {path: client.post(path).status_code for path in paths}


def test_a_site_refuses_a_run_with_another_app_bundle(nodes: Nodes) -> None:
    other = BytesIO(app_bundle())
    with zipfile.ZipFile(other, "a") as bundle:
        bundle.writestr("more.py", "raise SystemExit('executed')")
    seen: dict[str, Any] = {}

    def run(post: Post) -> None:
        nodes.start("north")
        seen["answers"] = asked(post, "adapter", ("north",), JOIN_SECONDS)

    nodes.coordinate(("north",), run, bundle=other.getvalue())
    assert seen["answers"] == set()
    assert "refused: the coordinator sent another app bundle" in nodes.log("north")
    assert "executed" not in nodes.log("north")
