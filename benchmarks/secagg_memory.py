"""The server alone in a fresh process, to see how much memory it needs.

This process plays the clients, one at a time, and holds no vector; the server runs
in a child and gets every message through a pipe. The child states its resident
memory after all imports, and the most it ever had.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from benchmarks.cases import MODEL, Case, fresh, identity_of, params_of
from benchmarks.inputs import dropped, ring_vector
from benchmarks.measure import peak_memory_bytes
from protocols.ring import RingVector
from protocols.secagg import client, server

__all__ = ["Memory", "server_memory"]

_LENGTH = struct.Struct("<Q")
_STEPS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (server.receive_keys, server.close_keys),
    (server.receive_shares, server.close_shares),
    (server.receive_input, server.close_inputs),
    (server.receive_confirmation, server.close_confirmations),
    (server.receive_reveal, server.close_reveals),
)


@dataclass(frozen=True)
class Memory:
    """Resident memory of the server's process, in bytes."""

    case: Case
    before: int  # interpreter and imports
    peak: int
    exact: bool

    @property
    def above(self) -> int:
        """What the session itself added."""
        return self.peak - self.before


class _Pipe:
    """Length-prefixed messages over two byte streams."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink

    def send(self, data: bytes) -> None:
        self._sink.write(_LENGTH.pack(len(data)))
        self._sink.write(data)
        self._sink.flush()

    def receive(self) -> bytes:
        (length,) = _LENGTH.unpack(self._source.read(_LENGTH.size))
        return self._source.read(length)


def server_memory(case: Case, percent: int, tick: Callable[[], None]) -> Memory:
    """Play a session whose server is a child process.

    Raises:
        RuntimeError: The sum was wrong.
    """
    command = [sys.executable, "-m", __spec__.name, json.dumps(asdict(case))]
    both = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # Each further thread of the linear algebra would reserve memory of its own.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, **both) as process:  # noqa: S603
        pipe = _Pipe(process.stdout, process.stdin)
        expected = _play_clients(pipe, case, percent, tick)
        sizes = json.loads(pipe.receive())
        total = pipe.receive()
    if total != expected.to_bytes():
        raise RuntimeError(f"wrong sum in {case}")
    return Memory(case, sizes["before"], sizes["peak"], exact=True)


def _play_clients(
    pipe: _Pipe, case: Case, percent: int, tick: Callable[[], None]
) -> RingVector:
    """All clients' phases, in turn; returns the plain sum of the survivors."""
    params = params_of(case)
    names = [member.name for member in params.roster]
    gone, expected = dropped(names, percent), params.zeros()
    states: dict[str, Any] = {}
    downs = dict.fromkeys(names, b"")

    def advertise(name: str, _down: bytes, _number: int) -> Any:
        args = (params, name, identity_of(name), MODEL)
        return client.advertise_keys(*args, randomness=fresh("keys", name))

    def share(name: str, down: bytes, _number: int) -> Any:
        return client.share_keys(states[name], down, randomness=fresh("s", name))

    def mask(name: str, down: bytes, number: int) -> Any:
        vector = ring_vector(number, params.zeros())
        expected.add_in_place(vector)
        return client.mask_input(states[name], down, vector)

    def confirm(name: str, down: bytes, _number: int) -> Any:
        return client.confirm_survivors(states[name], down)

    def unmask(name: str, down: bytes, _number: int) -> Any:
        return client.unmask(states[name], down)

    for step in (advertise, share, mask, confirm, unmask):
        there = set(downs) - (gone if step is mask else set())
        pipe.send(_LENGTH.pack(len(there)))
        for number, name in enumerate(names):
            if name not in there:
                continue
            states[name], message = step(name, downs.pop(name), number)
            pipe.send(name.encode())
            pipe.send(message)
            tick()
        if step is not unmask:
            (answers,) = _LENGTH.unpack(pipe.receive())
            downs = {pipe.receive().decode(): pipe.receive() for _ in range(answers)}
    return expected


def serve(case: Case, pipe: _Pipe) -> None:
    """The child: a server that reads messages and answers each phase."""
    # Loads what numpy and OpenSSL load at their first use, before "before".
    params_of(Case(3, 8))
    before = peak_memory_bytes()
    state: Any = server.open_session(params_of(case), MODEL)
    for receive, close in _STEPS:
        (count,) = _LENGTH.unpack(pipe.receive())
        for _ in range(count):
            name = pipe.receive().decode()
            state = receive(state, name, pipe.receive())
        if close is server.close_reveals:
            break
        state, downs = close(state)
        pipe.send(_LENGTH.pack(len(downs)))
        for name in list(downs):
            pipe.send(name.encode())
            pipe.send(downs[name])
    result = server.close_reveals(state)
    pipe.send(json.dumps({"before": before, "peak": peak_memory_bytes()}).encode())
    pipe.send(result.total.to_bytes())


if __name__ == "__main__":
    serve(Case(**json.loads(sys.argv[1])), _Pipe(sys.stdin.buffer, sys.stdout.buffer))
