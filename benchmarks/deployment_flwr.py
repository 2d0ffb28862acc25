"""Flower's own SecAgg+ workflow over its own processes, as its defaults are.

A SuperLink, a SuperNode for each client, and the app of ``benchmarks/flwr_app``, which
uses Flower's workflow and mod unchanged. There is no TLS and no node authentication,
which is in its favour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from benchmarks.deployment_path import Reading, Rounds
from secfed.runtime.flower.children import LOOPBACK, SWITCHES, free_port

__all__ = ["STAGES", "play_flwr"]

APP = Path(__file__).with_name("flwr_app")
STAGES = ("setup", "share keys", "masked vectors", "unmask")
_LOOK_SECONDS = 0.02
_START_SECONDS = 1800.0
_ROUND_SECONDS = 1800.0
_STEP = 16.0 / 2**22  # twice flwr's default clipping range, by its default steps


def play_flwr(clients: int, length: int, rounds: int, folder: Path) -> Rounds:
    """Each round's stages, from their beginning to the next one's.

    Raises:
        RuntimeError: A process ended, a round took too long, or a mean was wrong.
    """
    stamps = folder / "stamps.jsonl"
    stamps.touch()
    config = {"rounds": rounds, "length": length, "clients": clients}
    with _federation(clients, folder) as address:
        _start(address, {**config, "stamps": str(stamps)})
        return _follow(stamps, rounds)


@contextmanager
def _federation(clients: int, folder: Path) -> Iterator[str]:
    """Flower's processes; yields the SuperLink's address."""
    address = f"{LOOPBACK}:{free_port()}"
    host, port = address.split(":")
    no_sync = "--disable-runtime-dependency-installation"
    commands = [
        ["flower-superlink", "--insecure", no_sync, "--host", host, "--port", port]
    ]
    for client in range(clients):
        own = ["--host", LOOPBACK, "--port", str(free_port())]
        own += ["--node-config", f"client={client}"]
        commands.append(
            ["flower-supernode", "--insecure", "--superlink", address, *own]
        )
    processes = []
    try:
        for number, command in enumerate(commands):
            processes.append(_process(command, folder / f"flwr-{number}.log", folder))
            if number == 0:
                _wait(address)
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(30)


def _process(command: Sequence[str], log: Path, home: Path) -> subprocess.Popen[bytes]:
    program = str(Path(sys.executable).with_name(command[0]))
    # Flower starts its other programs by name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **SWITCHES, "FLWR_HOME": str(home / "flwr"), "PATH": path}
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - flwr, installed beside this interpreter
            [program, *command[1:]], stdout=output, stderr=output, env=env
        )


def _wait(address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        try:
            httpx.get(f"http://{address}/health")
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("flwr's SuperLink does not listen")


def _start(address: str, config: dict[str, Any]) -> None:
    names = sorted(p for p in APP.rglob("*") if p.suffix in {".py", ".toml"})
    files = {str(p.relative_to(APP)): p.read_bytes() for p in names}
    files["LICENSE"] = b"Apache-2.0\n"
    bundle = build_fab_from_files(dict(files))[0]
    client = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor("flwr-cli")],
    )
    fab = fab_to_proto(Fab(sha256(bundle).hexdigest(), bundle, {}))
    request = StartRunRequest(fab=fab, override_config=user_config_to_proto(config))
    client.StartRun(request)
    client.close()


def _follow(stamps: Path, rounds: int) -> Rounds:
    """Read what the app writes as it writes it, and what CPU was used by then."""
    found: Rounds = []
    parts: dict[str, Any] = {}
    before: tuple[str, Reading] | None = None
    for what, value in _events(stamps, rounds * _ROUND_SECONDS):
        now = Reading.now()
        if what == "mean":
            if not value["error"] <= _STEP:
                raise RuntimeError(f"flwr's mean is off by {value['error']}")
            continue
        if before is not None:
            parts[before[0]] = now.since(before[1])
        before = (what, now)
        if what == "end":
            found.append({stage: parts[stage] for stage in STAGES})
            before, parts = None, {}
        if len(found) == rounds:
            return found
    raise RuntimeError("flwr's rounds took too long")


def _events(stamps: Path, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    end, read = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        lines = stamps.read_text().splitlines()
        for line in lines[read:]:
            value = json.loads(line)
            yield value["what"], value
        read = len(lines)
        time.sleep(_LOOK_SECONDS)
