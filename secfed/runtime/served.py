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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json
from secfed.errors import RunDirectoryError, SecfedError
from secfed.runtime.directory import write_atomically
from secfed.runtime.roster import Roster, read_roster
from secfed.runtime.status import read_status

__all__ = [
    "ServeRecord",
    "StillRunningError",
    "create_served",
    "is_served",
    "open_served",
    "opened",
    "roster_of",
    "status_of",
    "stop_served",
]

_RECORD = "serve.json"
_LOCK = "serve.lock"
_RUN_ID_BYTES = 8
_LOOK_SECONDS = 0.1


class StillRunningError(SecfedError):
    """A coordinator that was asked to end has not; it may be in a long step."""


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
    protecting_key: str | None = None
    metrics: str | None = None
    also_sign: str | None = None


def is_served(run_dir: Path) -> bool:
    """Whether a coordinator made this run directory."""
    return (run_dir / "private" / _RECORD).is_file()


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


def roster_of(record: ServeRecord) -> Roster:
    """The roster of a run.

    Raises:
        RunDirectoryError: It is gone.
        VerificationError: It is damaged.
    """
    path = Path(record.roster)
    try:
        return read_roster(path.read_bytes(), path)
    except OSError as error:
        raise RunDirectoryError(f"{path}: no roster: {error.strerror}") from error


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


def stop_served(run_dir: Path, wait_seconds: float) -> bool:
    """Ask the coordinator to end, and wait until it has; False where none runs.

    A round that has begun counts as spent; the others are for ``secfed resume``.

    Raises:
        RunDirectoryError: There is no run of a coordinator here.
        StillRunningError: It has not ended in time.
    """
    open_served(run_dir)
    process = _holder(run_dir)
    if process is None:
        return False
    os.kill(process, signal.SIGTERM)
    end = time.monotonic() + wait_seconds
    while _holder(run_dir) is not None:
        if time.monotonic() >= end:
            raise StillRunningError(
                f"{run_dir}: asked to end, and process {process} has not after "
                f"{wait_seconds:g} s; see `secfed status {run_dir}`"
            )
        time.sleep(_LOOK_SECONDS)
    return True


def status_of(run_dir: Path) -> dict[str, Any]:
    """Where a run is: its state, round and phase, and who has answered.

    ``state`` is ``running``, how the coordinator ended (``StatusProgress``), or
    ``killed`` where it ended without a word.

    Raises:
        RunDirectoryError: There is no run of a coordinator here.
    """
    open_served(run_dir)
    told = read_status(run_dir / "private")
    end = told.pop("end", None)
    if _holder(run_dir) is not None:
        state = "running"
    elif (run_dir / "manifest.json").is_file():
        state = "finished"
    else:
        state = end or "killed"
    return {"state": state, **told}
