"""A site's process: a SuperNode as a child, and the runner that works for it.

The SuperNode holds the node key and the connection; the runner, in the process that a
person started, holds the identity, the records and a session's secrets. They speak
over loopback with a secret that is made anew at each start.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from secfed.runtime.flower.children import LOOPBACK, Child, free_port, wait_for_port
from secfed.runtime.flower.client_app import Answering, client_app
from secfed.runtime.flower.runner import Runner

__all__ = ["Connection", "Linked", "work"]

_AGAIN_SECONDS: Final = 3.0
_LAST_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Connection:
    """How a site reaches its coordinator.

    Attributes:
        address: Host and port of the fleet API.
        authority: Certificate (PEM) that the server's must be signed by.
        node_key: The node's private key, in the format of OpenSSH.
    """

    address: str
    authority: Path
    node_key: bytes = field(repr=False)


class Linked(Protocol):
    """Told whether the connection's process runs."""

    def __call__(self, *, there: bool) -> None:
        """Told."""


def _unheard(*, there: bool) -> None:
    """Nobody asked."""


def work(
    connection: Connection,
    answer: Answering,
    folder: Path,
    until: Callable[[], bool],
    say: Callable[[str], None] = lambda _text: None,
    linked: Linked | None = None,
) -> None:
    """Answer orders until ``until`` says so; starts the SuperNode again if it ends.

    After a kill the coordinator refuses the same node for up to a minute, because the
    session before still counts; the SuperNode then ends and is started again.

    Args:
        connection: To the coordinator.
        answer: The site.
        folder: The site's folder for Flower's log and home.
        until: Whether to end.
        say: Told in one line what happens.
        linked: Told when the SuperNode's process runs, and when it does not.
    """
    ended = threading.Event()
    port, secret = free_port(), secrets.token_bytes(32)
    keeper = threading.Thread(
        target=_keep,
        args=(connection, port, secret, folder, ended, say, linked or _unheard),
        name="supernode",
        daemon=True,
    )
    keeper.start()
    try:
        Runner(f"{LOOPBACK}:{port}", secret, client_app(answer), say).run(until)
        # The last answer is still on its way through the child.
        ended.wait(_LAST_SECONDS)
    finally:
        ended.set()
        keeper.join()


def _keep(
    connection: Connection,
    port: int,
    secret: bytes,
    folder: Path,
    ended: threading.Event,
    say: Callable[[str], None],
    linked: Linked,
) -> None:
    """Keep a SuperNode running."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    while not ended.is_set():
        child = _supernode(connection, port, secret, folder)
        linked(there=child.running)
        while child.running and not ended.wait(0.5):
            pass
        child.stop()
        linked(there=False)
        if not ended.wait(_AGAIN_SECONDS):
            say("the connection's process ended and is started again")


def _supernode(connection: Connection, port: int, secret: bytes, folder: Path) -> Child:
    arguments = [
        *("--superlink", connection.address),
        *("--root-certificates", str(connection.authority)),
        *("--isolation", "process"),
        *("--host", LOOPBACK),
        *("--port", str(port)),
    ]
    child = Child(
        "secfed.runtime.flower.supernode",
        arguments,
        folder / "flower",
        folder / "supernode.log",
        {
            "--auth-supernode-private-key": connection.node_key,
            "--superexec-auth-secret-file": secret,
        },
    )
    try:
        wait_for_port(child, port)
    except Exception:  # noqa: BLE001 - it is started again by the caller
        child.stop()
    return child
