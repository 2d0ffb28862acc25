"""Flower's two processes: how they are started, and that they end with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from secfed.errors import RunDirectoryError

__all__ = [
    "LOOPBACK",
    "SWITCHES",
    "Child",
    "end_with_parent",
    "free_port",
    "wait_for_port",
]

LOOPBACK: Final = "127.0.0.1"
PARENT: Final = "SECFED_PARENT_PID"

SWITCHES: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Without these Flower asks the network for things when it starts."""

_PIPE_BYTES: Final = 16384
_TERM_SECONDS: Final = 10.0
_GOODBYE_SECONDS: Final = 5.0


class Child:
    """A Flower process that belongs to this one; its output goes to a file.

    Args:
        module: What it runs.
        arguments: Of its command line.
        home: Flower's home.
        log: Where its output goes.
        handed: Secrets by the option that names a file of them. Each goes through a
            pipe, which is read once: no secret is in a file, or in the arguments.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        home: Path,
        log: Path,
        handed: Mapping[str, bytes],
    ) -> None:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        pipes = {option: _filled(secret) for option, secret in handed.items()}
        named = [part for o, pipe in pipes.items() for part in (o, f"/dev/fd/{pipe}")]
        try:
            with log.open("ab") as output:
                self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
                    [sys.executable, "-m", module, *arguments, *named],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(home),
                    pass_fds=list(pipes.values()),
                )
        finally:
            for pipe in pipes.values():
                os.close(pipe)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Ask it to end, and make it end."""
        if self.running:
            self.process.terminate()
        try:
            self.process.wait(_TERM_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _filled(secret: bytes) -> int:
    """The reading end of a pipe that holds a secret, and ends after it.

    Raises:
        RunDirectoryError: The secret is larger than the least that a pipe takes.
    """
    if len(secret) > _PIPE_BYTES:
        raise RunDirectoryError("a key is too large to be handed to Flower")
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as end:
        end.write(secret)
    return reading


def _environment(home: Path) -> Mapping[str, str]:
    return {
        **os.environ,
        **SWITCHES,
        "FLWR_HOME": str(home),
        PARENT: str(os.getpid()),
    }


def end_with_parent(*, politely: bool = False) -> None:
    """In a child: end when the parent does, however it ends (also by kill -9).

    Args:
        politely: Ask this process by a signal first, so that it says goodbye to whom
            it is connected to.
    """
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        if politely:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_GOODBYE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def free_port() -> int:
    """A port of the loopback interface that nobody has now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_for_port(child: Child, port: int, seconds: float = 600.0) -> None:
    """Wait until a child listens; on a busy machine Flower takes minutes to start.

    Raises:
        RunDirectoryError: It ended instead, or does not listen in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not child.running:
            raise RunDirectoryError(f"Flower did not start; see {child.log}")
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((LOOPBACK, port)) == 0:
                return
        time.sleep(0.1)
    raise RunDirectoryError(f"Flower does not listen; see {child.log}")
