"""A bad line between two processes on loopback: late, narrow, and cut now and then.

Loss below TCP is seen above it as delay and as connections that end, and a kernel does not
let every test change its queues (``tc netem``); so this is a relay.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

_CHUNK = 16_384


@dataclass
class SlowLine:
    """Listens on a port of its own and passes everything on to another.

    Attributes:
        target: Where to.
        delay: Seconds that a piece takes; half of it to half again as much.
        lasting: A connection is cut when it has carried so many bytes to the target, or
            up to three times as many.
        cuts: How many connections were cut.
    """

    target: tuple[str, int]
    delay: float
    lasting: int
    cuts: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(7)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            left = int(self._random.integers(self.lasting, 3 * self.lasting))
            threading.Thread(
                target=self._connect, args=(near, left), daemon=True
            ).start()

    def _connect(self, near: socket.socket, left: int) -> None:
        with near, suppress(OSError), socket.create_connection(self.target, 10) as far:
            back = threading.Thread(
                target=self._pass, args=(far, near, None), daemon=True
            )
            back.start()
            self._pass(near, far, left)
            back.join()

    def _pass(
        self, here: socket.socket, there: socket.socket, left: int | None
    ) -> None:
        """Carry bytes one way; with a limit, both ends are cut when it is reached."""
        with suppress(OSError):
            while piece := here.recv(_CHUNK):
                time.sleep(self.delay * self._random.uniform(0.5, 1.5))
                if left is not None and len(piece) >= left:
                    there.sendall(piece[:left])
                    self.cuts += 1
                    here.shutdown(socket.SHUT_RDWR)
                    break
                left = None if left is None else left - len(piece)
                there.sendall(piece)
        with suppress(OSError):
            there.shutdown(socket.SHUT_RDWR)
