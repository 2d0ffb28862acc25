"""Commands where there is no network, and what they tried to reach.

A network namespace of its own has no interface but loopback: nothing that a command
tries leaves this machine. strace shows every connection that any of its processes
tried, also by libraries that are not written in Python.

Started as a program this raises loopback in its namespace and becomes the command.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_RAISE = 0x8914  # SIOCSIFFLAGS of Linux.
_UP = 1
_NAMES = ("--net",), ("--map-root-user", "--net")


@dataclass(frozen=True)
class Contact:
    """One try to send something to an address."""

    call: str
    family: str
    host: str
    port: int

    @property
    def outside(self) -> bool:
        """Whether it is not this machine's loopback interface."""
        return not (self.host.startswith("127.") or self.host == "::1")


@cache
def _unshare() -> tuple[str, ...]:
    """How a network namespace is made here; empty where it is not."""
    for options in _NAMES:
        if _runs("unshare", *options, "true"):
            return ("unshare", *options)
    return ()


@cache
def no_namespace() -> str:
    """Why no command can be run without a network; empty where it can."""
    return "" if _unshare() else "no network namespace may be made here (unshare)"


@cache
def no_watch() -> str:
    """Why no command can be watched; empty where it can."""
    if no_namespace() or _runs(
        "strace", "-f", "--seccomp-bpf", "-o", os.devnull, "true"
    ):
        return no_namespace()
    return "strace is not installed, or may not trace here"


def confined(command: Sequence[str]) -> list[str]:
    """The command in a network namespace of its own, with loopback only."""
    return [*_unshare(), sys.executable, __file__, *command]


def watch(
    command: Sequence[str],
    folder: Path,
    *,
    seconds: float = 600,
    environment: Mapping[str, str] | None = None,
) -> tuple[subprocess.CompletedProcess[str], list[Contact]]:
    """Run a command without a network under strace: its end, and all contacts."""
    log = folder / "strace.log"
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(log)]
    done = subprocess.run(
        confined([*strace, *command]),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, **(environment or {})},
    )
    return done, contacts(log.read_text("utf-8", "replace"))


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def contacts(text: str) -> list[Contact]:
    """Every internet address in what strace wrote.

    Raises:
        AssertionError: A line names such an address in a way that is not read here.
    """
    found = []
    for line in text.splitlines():
        for family, port, host in _addresses(line):
            call = re.search(r"(\w+)\(", line)
            assert call is not None, line
            found.append(Contact(call[1], family, host, int(port)))
        named = line.count("sa_family=AF_INET")
        assert named == len(_addresses(line)), line
    return found


def _addresses(line: str) -> list[tuple[str, str, str]]:
    four = r"sa_family=(AF_INET), sin_port=htons\((\d+)\), sin_addr=inet_addr\(\"([^\"]+)\"\)"
    six = (
        r"sa_family=(AF_INET6), sin6_port=htons\((\d+)\), sin6_flowinfo=[^,]+, "
        r"inet_pton\(AF_INET6, \"([^\"]+)\""
    )
    return [*re.findall(four, line), *re.findall(six, line)]


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        fcntl.ioctl(link, _RAISE, struct.pack("16sh14x", b"lo", _UP))


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


if __name__ == "__main__":
    assert _interfaces() == {"lo"}, _interfaces()
    _raise_loopback()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - a test's own command
