"""Processes of a deployment that fail where they are told to.

Every party is a process of its own, with TLS, node authentication and Flower's
processes below it. They are forked from a server that has imported PyTorch and
encoded the texts once, so that a start costs seconds less. A fault is a line in a
party's list: where it happens is exact, and no test depends on how fast it is.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from parties import protecting_of
from small import EXAMPLE, planned, small_policy, small_study

from protocols.keys import generate_identity
from secfed.errors import SecfedError
from secfed.runtime.deployed import Deadlines
from secfed.runtime.envelope import Post, Sealed
from secfed.runtime.flower.coordinator import Listener, coordinate
from secfed.runtime.flower.site import Connection, work
from secfed.runtime.keys import (
    AUTHORITY_NAME,
    read_coordinator_key,
    read_server,
    read_site_keys,
)
from secfed.runtime.progress import NoProgress
from secfed.runtime.roster import Roster, read_roster
from secfed.runtime.serve import serve_rounds
from secfed.runtime.sessions import PHASES
from secfed.runtime.setup import Prepared, prepare
from secfed.runtime.site_worker import SiteWorker
from secfed.runtime.status import StatusProgress
from secfed.study import Study

__all__ = [
    "SEED",
    "Fault",
    "run_coordinator",
    "run_site",
    "study_of",
    "toml_of",
    "warm",
]

SEED, RUN_ID = 37, "0123456789abcdef"
PATIENT = Deadlines(3600.0, 3600.0, 3600.0)  # A machine that tests share may be slow.


@dataclass(frozen=True)
class Fault:
    """What goes wrong at one place: of a round (0: the first) and a phase.

    Kinds: ``kill`` before answering, ``kill-after`` the answer is made and before it
    is sent, ``truncate`` the answer, ``late`` until the coordinator has gone on,
    ``full-disk`` from then to the end of the round. Of a coordinator: ``kill`` when
    the first site has answered.
    """

    kind: str
    round: int
    phase: str


def toml_of(values: dict[str, Any]) -> str:
    """Nested tables as TOML; enough for a study."""
    lines: list[str] = []

    def write(table: dict[str, Any], path: tuple[str, ...]) -> None:
        plain = {k: v for k, v in table.items() if not isinstance(v, dict)}
        if path:
            lines.append("[" + ".".join(json.dumps(p) for p in path) + "]")
        lines.extend(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in plain.items())
        for key, inner in table.items():
            if isinstance(inner, dict):
                write(inner, (*path, key))

    write(values, ())
    return "\n".join(lines) + "\n"


def study_of(rounds: int) -> Study:
    """The small study, seeded; its sites are those of the example."""
    return small_study(rounds=rounds, seed=SEED)


@cache
def _encoded() -> Prepared:
    torch.set_num_threads(1)
    return prepare(study_of(2), EXAMPLE, small_policy(), NoProgress())


def prepared_for(study: Study) -> Prepared:
    """The same texts and model under the plan of this study."""
    return planned(_encoded(), study)


def warm() -> None:
    """Do what is slow once, in the process that the others are forked from."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoded()


# A site


class FaultySite:
    """A worker whose answers go through the list of its faults."""

    def __init__(
        self, worker: SiteWorker, faults: Sequence[Fault], folder: Path
    ) -> None:
        self.worker = worker
        self.faults = list(faults)
        self.folder = folder

    def answer(self, phase: str, sealed: Sealed) -> Sealed:
        number = int(json.loads(sealed.header)["round"])
        found = [f for f in self.faults if f.phase == phase and f.round in (0, number)]
        kinds = {fault.kind for fault in found}
        if "kill" in kinds:
            os.kill(os.getpid(), signal.SIGKILL)
        if "late" in kinds:
            wait_until_past(self.folder, number, phase)
        filler = self.folder / "state" / "filler"
        if "full-disk" in kinds:
            fill(filler)
        try:
            answer = self.worker.answer(phase, sealed)
        finally:
            filler.unlink(missing_ok=True)
        if "kill-after" in kinds:
            os.kill(os.getpid(), signal.SIGKILL)
        if "truncate" in kinds:
            return replace(answer, body=answer.body[:-1])
        return answer


def fill(path: Path) -> None:
    """Write until there is no room; only in a small file system."""
    with path.open("ab", buffering=0) as file:
        try:
            for _ in range(1 << 14):
                file.write(bytes(1024))
        except OSError:
            return
    raise AssertionError("the disk has more room than a test should fill")


def small_disk(folder: Path) -> None:
    """Give this process, and no other, a file system of a megabyte at a folder.

    Raises:
        OSError: That is not allowed here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, recursive = 0x20000, 1 << 18, 1 << 14
    steps = (
        lambda: libc.unshare(new_namespace),
        lambda: libc.mount(b"none", b"/", None, private | recursive, None),
        lambda: libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=1m"),
    )
    for step in steps:
        if step() != 0:
            raise OSError(ctypes.get_errno(), "no file system of its own")


def wait_until_past(folder: Path, number: int, phase: str) -> None:
    """Until the coordinator's status shows a later moment than this phase."""
    names = {"training": "local training", "adapter": "send the adapter", **PHASES}
    path = folder.parent / "coordinator" / "run" / "private" / "status.json"
    while True:
        told = json.loads(path.read_bytes())
        if (told["round"], told["phase"]) != (number, names[phase]):
            return
        time.sleep(0.2)


def run_site(
    folder: str,
    site: str,
    faults: Sequence[Fault] = (),
    *,
    stolen: bool = False,
    through: str | None = None,
) -> None:
    """A site's process.

    Args:
        folder: Of all parties.
        site: Its name.
        faults: What goes wrong.
        stolen: It has the node key, and not the identity.
        through: The address that it connects to, instead of the coordinator's.
    """
    home = Path(folder) / site
    _log_to(home / "log.txt")
    roster = _roster(home / "roster.json")
    keys = read_site_keys(home / "keys", protecting_of(home))
    identity = generate_identity(bytes(32)) if stolen else keys.identity
    prepared = prepared_for(roster.study)
    own = replace(
        prepared,
        records={site: prepared.records[site]},
        fingerprints={site: prepared.fingerprints[site]},
    )
    state = home / "state"
    state.mkdir(exist_ok=True, mode=0o700)
    if any(fault.kind == "full-disk" for fault in faults):
        small_disk(state)
    (state / AUTHORITY_NAME).write_text(roster.authority)
    worker = SiteWorker(roster, site, identity, own, small_policy(), state, _say)
    faulty = FaultySite(worker, faults, home)
    link = Connection(
        through or roster.address, state / AUTHORITY_NAME, keys.node_private
    )
    flower = Path(folder) / f"{site}-flower"
    work(link, faulty.answer, flower, lambda: worker.finished, _say)
    shutil.copytree(state, home / "kept")  # The file system ends with this process.


# The coordinator


class FaultyPost:
    """A post that waits for whom it is told to, and kills its own process."""

    def __init__(
        self, inner: Any, faults: Sequence[Fault], *, wait_for_all: bool
    ) -> None:
        self._inner = inner
        self._faults = faults
        self._wait_for_all = wait_for_all

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        number = int(json.loads(next(iter(orders.values())).header)["round"])
        if phase == "adapter" and self._wait_for_all:
            self._inner._first = True  # Who starts again is back in this round.
        fatal = any(
            f.kind == "kill" and (f.round, f.phase) == (number, phase)
            for f in self._faults
        )
        for site, sealed in self._inner.exchange(phase, orders, seconds):
            if fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            yield site, sealed


def run_coordinator(
    folder: str,
    faults: Sequence[Fault] = (),
    deadlines: Deadlines = PATIENT,
    *,
    wait_for_all: bool = False,
    study: Study | None = None,
) -> None:
    """The coordinator's process; its exit code is that of the command line.

    ``study``: another one than the sites approved.
    """
    home = Path(folder) / "coordinator"
    _log_to(home / "log.txt")
    roster = _roster(home / "roster.json")
    if study is not None:
        roster = replace(roster, study=study)
    keys, run_dir = home / "keys", home / "run"
    protecting = protecting_of(home)
    (run_dir / "private").mkdir(parents=True, exist_ok=True, mode=0o700)
    host, port = roster.address.split(":")
    listener = Listener(host, int(port), *read_server(keys, protecting))
    public = replace(prepared_for(roster.study), records={}, fingerprints={})
    key, told = read_coordinator_key(keys, protecting), Notes(run_dir)

    def run(post: Post) -> None:
        faulty = FaultyPost(post, faults, wait_for_all=wait_for_all)
        serve_rounds(
            roster,
            public,
            run_dir,
            RUN_ID,
            key,
            faulty,
            deadlines,
            told,
            rehearsal=True,
        )

    try:
        coordinate(listener, roster.nodes, run_dir / "private" / "flower", run)
    except SecfedError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)


class Notes(StatusProgress):
    """Keeps the status file, and writes every note to the log."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(NoProgress(), run_dir)

    def note(self, text: str) -> None:
        _say(text)


# Files


def _roster(path: Path) -> Roster:
    return read_roster(path.read_bytes(), path)


def _log_to(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


if os.environ.get("SECFED_TEST_WARM"):
    warm()
