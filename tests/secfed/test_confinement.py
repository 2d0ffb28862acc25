"""No process reaches anything but the coordinator: seen by strace, without a network.

That a local run reaches nothing at all is ``test_runs.py``'s to show, in the same way.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from confined import Contact, contacts, no_watch, watch
from faulty import toml_of
from small import EXAMPLE, study_values

from secfed.runtime.flower.children import LOOPBACK, SWITCHES

ROOT = Path(__file__).parents[2]
DNS = 53
watched = pytest.mark.skipif(bool(no_watch()), reason=no_watch())


def outside(found: list[Contact]) -> list[Contact]:
    """Contacts beyond loopback, and questions for names wherever they are asked."""
    return [contact for contact in found if contact.outside or contact.port == DNS]


# The check can fail. Nothing of this leaves the machine: the namespace has no interface
# but loopback, and the addresses are reserved for documents (RFC 5737, RFC 3849).

TRIES = {
    "import socket; socket.socket().connect_ex(('192.0.2.1', 443))": (
        "192.0.2.1",
        443,
    ),
    (
        "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"
        ".connect_ex(('2001:db8::1', 4433))"
    ): ("2001:db8::1", 4433),
    (
        "import contextlib, socket\n"
        "with contextlib.suppress(OSError):\n"
        "    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
        ".sendto(b'x', ('192.0.2.2', 514))"
    ): ("192.0.2.2", 514),
    # A grandchild, in another language than Python.
    (
        "import subprocess\n"
        "subprocess.run(['bash', '-c', 'true < /dev/tcp/192.0.2.3/80'], check=False)"
    ): ("192.0.2.3", 80),
}


@watched
@pytest.mark.parametrize("script", TRIES)
def test_a_program_that_tries_to_reach_something_else_is_caught(
    script: str, tmp_path: Path
) -> None:
    done, found = watch([sys.executable, "-c", script], tmp_path, seconds=60)
    assert done.returncode == 0, done.stderr
    assert TRIES[script] in {(one.host, one.port) for one in outside(found)}


@watched
def test_a_program_that_looks_up_a_name_is_caught(tmp_path: Path) -> None:
    script = (
        "import contextlib, socket\n"
        "with contextlib.suppress(OSError):\n"
        "    socket.getaddrinfo('telemetry.example', 443)"
    )
    done, found = watch([sys.executable, "-c", script], tmp_path, seconds=60)
    assert done.returncode == 0, done.stderr
    assert DNS in {one.port for one in outside(found)}


@watched
def test_loopback_is_seen_and_is_not_outside(tmp_path: Path) -> None:
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(s.getsockname()); print(s.getsockname()[1])"
    )
    done, found = watch([sys.executable, "-c", script], tmp_path, seconds=60)
    port = int(done.stdout)
    assert [(one.host, one.port) for one in found] == [(LOOPBACK, port)]
    assert outside(found) == []


def test_an_address_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(AssertionError):
        contacts("12 connect(3, {sa_family=AF_INET, sin_port=htons(80), ...}, 16) = 0")


# What secfed does


@watched
@pytest.mark.slow
def test_flowers_processes_reach_the_coordinator_alone_and_are_told_to_be_quiet(
    tmp_path: Path,
) -> None:
    environment = {**dict.fromkeys(SWITCHES, "1"), "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "tests" / "flower_parties.py")
    done, found = watch(
        [sys.executable, "-W", "ignore", script, str(tmp_path)],
        tmp_path,
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["joined"] == ["north", "south"]
    assert outside(found) == []
    assert said["port"] in {one.port for one in found}, "the sites' way is not seen"
    # The environment said otherwise, to each of them.
    assert said["own"] == SWITCHES
    kinds = [name.split()[0].rpartition(".")[2] for name in said["started"]]
    assert sorted(kinds) == ["superlink", "supernode", "supernode"]
    assert all(switches == SWITCHES for switches in said["started"].values())


DEPLOYMENT = """
import sys
from pathlib import Path
from parties import set_up

folder, study, policy = map(Path, sys.argv[1:])
options = "--rehearsal --joining 1200 --training 900 --phase 600".split()
parties = set_up(folder, study, policy, options)
try:
    parties.start_coordinator()
    for site in parties.study.sites:
        parties.start_site(site)
    code = parties.processes["coordinator"].wait(3000)
finally:
    parties.stop()
print(parties.log("coordinator"))
sys.exit(code)
"""


@watched
@pytest.mark.deployment
def test_a_whole_deployment_reaches_the_coordinator_alone(
    packages: None, tmp_path: Path
) -> None:
    values = study_values(1)
    values["simulation"] = {"seed": 41}
    (tmp_path / "study.toml").write_text(toml_of(values), "utf-8")
    text = (EXAMPLE / "site.toml").read_text("utf-8")
    text = text.replace("min_units = 50", "min_units = 10")
    (tmp_path / "site.toml").write_text(text, "utf-8")
    places = [str(ROOT), str(ROOT / "examples" / "deployment")]
    names = ("parties", "study.toml", "site.toml")
    done, found = watch(
        [sys.executable, "-c", DEPLOYMENT, *(str(tmp_path / name) for name in names)],
        tmp_path,
        seconds=3600,
        environment={"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert found
    assert outside(found) == []
