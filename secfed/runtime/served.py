"""A coordinator's run on disk: how it was started, where it is, and who has it open.

``private/serve.json`` says how to start it again, ``private/status.json`` how far it
is. A lock on ``private/serve.lock`` tells whether a process has it open now.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json
from secfed.errors import RunDirectoryError
from secfed.runtime.directory import write_atomically
from secfed.runtime.progress import Progress

__all__ = [
    "ServeRecord",
    "StatusProgress",
    "create_served",
    "open_served",
    "opened",
    "status_of",
    "stop_served",
]

_RECORD = "serve.json"
_STATUS = "status.json"
_LOCK = "serve.lock"
_RUN_ID_BYTES = 8


@dataclass(frozen=True)
class ServeRecord:
    """How a coordinator was started; paths are absolute."""

    run_id: str
    roster: str
    keys: str
    base_dir: str
    host: str
    port: int
    rehearsal: bool
    joining: float
    training: float
    phase: float


def create_served(run_dir: Path, **values: Any) -> ServeRecord:
    """Start a coordinator's run directory.

    Raises:
        RunDirectoryError: The directory holds something else.
    """
    if run_dir.exists() and any(run_dir.iterdir()):
        raise RunDirectoryError(
            f"{run_dir} is not empty; choose another --out, or continue the run in it "
            f"with `secfed resume {run_dir}`"
        )
    (run_dir / "private").mkdir(parents=True, mode=0o700)
    record = ServeRecord(run_id=secrets.token_hex(_RUN_ID_BYTES), **values)
    write_atomically(run_dir / "private" / _RECORD, canonical_json(asdict(record)))
    return record


def open_served(run_dir: Path) -> ServeRecord:
    """Read back how a coordinator was started.

    Raises:
        RunDirectoryError: It was not started here, or the record is damaged.
    """
    path = run_dir / "private" / _RECORD
    try:
        return ServeRecord(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise RunDirectoryError(f"{run_dir}: not a run of `secfed serve`") from None
    except (OSError, ValueError, TypeError) as error:
        raise RunDirectoryError(f"{path}: damaged: {error}") from error


@contextmanager
def opened(run_dir: Path) -> Iterator[None]:
    """Have a run for this process alone.

    Raises:
        RunDirectoryError: Another process has it.
    """
    path = run_dir / "private" / _LOCK
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{run_dir}: a coordinator has this run open; see `secfed status`"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _holder(run_dir: Path) -> int | None:
    """The process that has a run open."""
    path = run_dir / "private" / _LOCK
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or b"0") or None
    return None


def stop_served(run_dir: Path) -> bool:
    """Ask the coordinator to end; False where none runs.

    A round that has begun counts as spent; the others are for ``secfed resume``.
    """
    process = _holder(run_dir)
    if process is None:
        return False
    os.kill(process, signal.SIGTERM)
    return True


def status_of(run_dir: Path) -> dict[str, Any]:
    """Where a run is: its state, round and phase, and who has answered.

    Raises:
        RunDirectoryError: There is no run of a coordinator here.
    """
    open_served(run_dir)
    path = run_dir / "private" / _STATUS
    told = json.loads(path.read_bytes()) if path.is_file() else {}
    finished = (run_dir / "manifest.json").is_file()
    running = _holder(run_dir) is not None
    state = "running" if running else "finished" if finished else "stopped"
    return {"state": state, **told}


class StatusProgress:
    """Passes events on and keeps the last ones for ``secfed status``."""

    def __init__(self, inner: Progress, run_dir: Path) -> None:
        self._inner = inner
        self._path = run_dir / "private" / _STATUS
        self._told: dict[str, Any] = {"round": 0, "rounds": 0, "phase": "", "sites": []}

    def arm(self, name: str, index: int, total: int) -> None:
        """Pass the event on."""
        self._inner.arm(name, index, total)

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """Keep the round."""
        self._inner.round(arm, round, rounds)
        self._keep(round=round, rounds=rounds, phase="", sites=[])

    def phase(self, text: str) -> None:
        """Keep the phase."""
        self._inner.phase(text)
        self._keep(phase=text, sites=[])

    def site(self, site: str, done: int, total: int) -> None:
        """Keep who has answered."""
        self._inner.site(site, done, total)
        self._keep(sites=[*self._told["sites"], site])

    def note(self, text: str) -> None:
        """Pass the event on."""
        self._inner.note(text)

    def event(self, kind: str, **fields: str | int | Sequence[str]) -> None:
        """Pass the event on."""
        self._inner.event(kind, **fields)

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """Pass the event on."""
        self._inner.finished_round(metrics)

    def _keep(self, **values: Any) -> None:
        self._told |= values | {"changed": int(time.time())}
        write_atomically(self._path, canonical_json(self._told) + b"\n")
