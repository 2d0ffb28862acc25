"""A coordinator and its sites as processes on this machine, with TLS between them.

The folders are those that the parties would have on machines of their own; only what
travels in life is copied from one to another: requests, and the roster. In life a
protecting key lies elsewhere than the keys: with systemd, in the keyring.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from secfed.governance.approvals import approve
from secfed.policy import load_policy
from secfed.runtime.flower.children import LOOPBACK, free_port
from secfed.runtime.key_places import make_protecting_key, read_protecting_key
from secfed.runtime.keys import (
    AUTHORITY_NAME,
    SiteKeys,
    make_authority,
    make_coordinator_key,
    make_server_certificate,
    make_site_keys,
    read_site_keys,
)
from secfed.runtime.protection import ProtectingKey
from secfed.runtime.roster import make_roster, read_request, read_roster
from secfed.study import Study, load_study

__all__ = ["Parties", "approve_as", "protecting_of", "set_up"]

_PROTECTING = "protecting.key"
_SITE_FILE = """\
format = 1
site = "{site}"
keys = "keys"
roster = "roster.json"
coordinator = "{fingerprint}"
policy = "site.toml"
state = "state"
protecting_key = "protecting.key"
"""


@dataclass
class Parties:
    """The folders of all parties, and their processes."""

    folder: Path
    study: Study
    options: Sequence[str] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def run(self) -> Path:
        """The run directory that the coordinator makes."""
        return self.coordinator / "run"

    def start_coordinator(self, *, resume: bool = False) -> subprocess.Popen[bytes]:
        """Start `secfed serve`, or `secfed resume`."""
        command = ["resume", str(self.run)]
        if not resume:
            keys = str(self.coordinator / "keys")
            command = ["serve", str(self.coordinator / "study.toml"), *self.options]
            command += ["--roster", str(self.coordinator / "roster.json")]
            command += ["--keys", keys, "--out", str(self.run)]
            command += ["--protecting-key", str(self.coordinator / _PROTECTING)]
        return self._start("coordinator", command)

    def start_site(self, site: str) -> subprocess.Popen[bytes]:
        """Start `secfed site run` at one site."""
        rehearsal = [o for o in self.options if o == "--rehearsal"]
        path = str(self.folder / site / "node.toml")
        return self._start(site, ["site", "run", path, *rehearsal])

    def kill(self, name: str) -> None:
        """Kill a party's process without a warning (kill -9)."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def stop(self) -> None:
        """End every process that still runs."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, name: str) -> str:
        """What a party's process wrote."""
        return (self.folder / name / "log.txt").read_text("utf-8")

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / name / "log.txt").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-m", "secfed.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self.processes[name] = process
        return process


def protecting_of(home: Path) -> ProtectingKey:
    """The protecting key of a party's folder."""
    return read_protecting_key(str(home / _PROTECTING))


def _site_keys(home: Path) -> SiteKeys:
    protecting = make_protecting_key(str(home / _PROTECTING))
    return make_site_keys(home / "keys", protecting)


def set_up(
    folder: Path,
    study_file: Path,
    policy_file: Path,
    options: Sequence[str] = (),
    requests: Mapping[str, bytes] | None = None,
) -> Parties:
    """Make every party's keys, exchange requests and roster, write the sites' files.

    Args:
        folder: Made; one folder in it for each party.
        study_file: The study.
        policy_file: The policy of every site.
        options: More options of `secfed serve`.
        requests: Instead of a site's own request, what the coordinator is given.
    """
    study = load_study(study_file)
    parties = Parties(folder, study, options)
    home = parties.coordinator
    keys, protecting = home / "keys", make_protecting_key(str(home / _PROTECTING))
    make_authority(keys, protecting)
    make_server_certificate(keys, [LOOPBACK, "localhost"], protecting)
    key = make_coordinator_key(keys, protecting)
    shutil.copy(study_file, home / "study.toml")
    given = {
        site: _site_keys(folder / site).request(site) for site in study.sites
    } | dict(requests or {})
    roster = make_roster(
        key,
        study,
        f"{LOOPBACK}:{free_port()}",
        (home / "keys" / AUTHORITY_NAME).read_text("ascii"),
        [read_request(data, site) for site, data in given.items()],
    )
    (home / "roster.json").write_bytes(roster)
    for site in study.sites:
        (folder / site / "roster.json").write_bytes(roster)
        shutil.copy(policy_file, folder / site / "site.toml")
        text = _SITE_FILE.format(site=site, fingerprint=key.fingerprint())
        (folder / site / "node.toml").write_text(text, "utf-8")
        approve_as(folder / site, site)
    return parties


def approve_as(folder: Path, site: str) -> None:
    """What `secfed approve roster.json --site node.toml --yes` does at a site."""
    path = folder / "roster.json"
    policy = load_policy(folder / "site.toml")
    now = datetime.now(UTC)
    approve(
        Path(str(policy.approvals_dir)),
        read_site_keys(folder / "keys", protecting_of(folder)).signer,
        read_roster(path.read_bytes(), path).manifest,
        site=site,
        population=policy.population,
        exceptions=(),
        shown="a rehearsal on public text",
        approved_at=now,
        expires_at=now + timedelta(days=1),
        nonce=os.urandom(16),
    )
