"""``/healthz`` and ``/metrics`` of one process, on the loopback interface only.

A host's own monitoring reads them. Nobody else should: there is no TLS and no
password, so no other address can be given.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Final

from secfed.errors import StudyError
from secfed.runtime.vitals import Vitals, metrics_text

__all__ = ["loopback", "serving_metrics"]

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_MAX_PORT: Final = 65535
_SECONDS: Final = 5.0  # For a request; a connection that says nothing is closed.


def loopback(where: str | int) -> tuple[str, int]:
    """The address and port of ``PORT``, ``127.0.0.1:PORT`` or ``[::1]:PORT``.

    Raises:
        StudyError: It is not a port, or not an address of the loopback interface.
    """
    host, _, port = str(where).rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= _MAX_PORT:
        raise StudyError("metrics", "", f"{where!r} is not a port of this machine")
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False  # A name may come to mean another machine.
    if not inside:
        raise StudyError(
            "metrics",
            "",
            f"{host} is not an address of the loopback interface; metrics are for this "
            "machine's own monitoring. Give a port, 127.0.0.1:PORT or [::1]:PORT",
        )
    return host, int(port)


@contextmanager
def serving_metrics(
    where: str | int | None, read: Callable[[], Vitals]
) -> Iterator[None]:
    """Answer while the block runs; nothing where ``where`` is None.

    Args:
        where: As for ``loopback``.
        read: Called for every request, in another thread.

    Raises:
        StudyError: The address is not loopback, or somebody has the port.
    """
    if where is None:
        yield
        return
    address = loopback(where)
    kind = _Server6 if ":" in address[0] else _Server
    try:
        server = kind(address, _answering(read))
    except OSError as error:
        text = f"{where}: {error.strerror}; choose another port"
        raise StudyError("metrics", "", text) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = AF_INET6


def _answering(read: Callable[[], Vitals]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Two paths, by GET; no word of a request is logged or repeated."""

        timeout = _SECONDS
        server_version = "secfed"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path == "/healthz":
                healthy = read().healthy
                status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
                self._say(status, "ok\n" if healthy else "not well\n")
            elif self.path == "/metrics":
                self._say(HTTPStatus.OK, metrics_text(read()))
            else:
                self._say(HTTPStatus.NOT_FOUND, "/healthz and /metrics\n")

        def _say(self, status: HTTPStatus, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", _TEXT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    return Handler
