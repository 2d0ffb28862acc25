"""The way to a coordinator, on real sockets of loopback: every way it can be wrong."""

from __future__ import annotations

import http.server
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from secfed.doctor.findings import Finding
from secfed.doctor.network import (
    NAMES,
    Route,
    check_clock,
    check_http,
    check_proxy,
    check_tls,
    network_findings,
    route_to,
)
from secfed.runtime import keys
from secfed.runtime.flower.children import LOOPBACK, free_port

SECONDS = 3.0


class Answers(http.server.BaseHTTPRequestHandler):
    """Of a coordinator: 404 outside of its API, and a date."""

    protocol_version = "HTTP/1.1"
    status, skew = 404, 0.0
    dated = True

    def do_HEAD(self) -> None:
        self.send_response_only(self.status)
        if self.dated:
            self.send_header("Date", formatdate(time.time() + self.skew, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def served(
    folder: Path, protocols: tuple[str, ...] = (), **changes: object
) -> Iterator[int]:
    """A coordinator's listener with the keys of a folder; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if protocols:
        context.set_alpn_protocols(list(protocols))
    handler = type("Changed", (Answers,), changes)
    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    with running(server.serve_forever, server.shutdown):
        yield server.server_address[1]
    server.server_close()


@contextmanager
def running(run: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join()


def made(folder: Path, *hosts: str) -> Path:
    keys.make_authority(folder)
    keys.make_server_certificate(folder, hosts or (LOOPBACK,))
    return folder


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "all_proxy", "http_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return made(tmp_path / "ours")


def route(folder: Path, port: int, host: str = LOOPBACK) -> Route:
    authority = (folder / keys.AUTHORITY_NAME).read_text("ascii")
    return route_to(f"{host}:{port}", authority, SECONDS)


def by_name(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    assert tuple(one.check for one in findings) == NAMES
    return {one.check: one for one in findings}


def test_a_coordinator_that_is_well_passes_every_step(ours: Path) -> None:
    with served(ours) as port:
        seen = by_name(network_findings(route(ours, port)))
    assert {one.status for one in seen.values()} == {"ok"}
    assert "HTTP/2 is not agreed" in seen["http"].text
    pin = keys.certificate_fingerprint((ours / keys.AUTHORITY_NAME).read_text())
    assert pin[:16] in seen["tls"].text


def test_http_2_is_seen_where_it_is_agreed(ours: Path) -> None:
    # The listener speaks it to nobody who does not ask for it.
    with served(ours, ("h2", "http/1.1")) as port:
        finding = check_http(route(ours, port))
    assert finding.status == "ok"
    assert "HTTP/2 is agreed" in finding.text


def test_another_authority_is_refused_and_named_and_nothing_is_asked_after(
    ours: Path, tmp_path: Path
) -> None:
    with served(made(tmp_path / "theirs")) as port:
        seen = by_name(network_findings(route(ours, port)))
    assert seen["tcp"].status == "ok"
    assert seen["tls"].status == "failed"
    assert "secfed coordinator's authority" in seen["tls"].text
    assert "do not go on" in seen["tls"].mend
    assert [seen[name].status for name in ("http", "clock")] == ["unknown"] * 2


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "named", "fl.example.org")
    with served(folder) as port:
        finding = check_tls(route(folder, port))
    assert finding.status == "failed"
    assert LOOPBACK in finding.text


def test_a_certificate_outside_of_its_time_asks_for_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_SERVER_DAYS", 0)  # It ends in the second it is made.
    folder = made(tmp_path / "old")
    time.sleep(1.1)
    with served(folder) as port:
        finding = check_tls(route(folder, port))
    assert finding.status == "failed"
    assert "clock" in finding.mend


def test_a_certificate_that_ends_soon_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_SERVER_DAYS", 5)
    folder = made(tmp_path / "soon")
    with served(folder) as port:
        assert check_tls(route(folder, port)).status == "warning"


def test_a_closed_port_fails_and_what_follows_is_unknown(ours: Path) -> None:
    seen = by_name(network_findings(route(ours, free_port())))
    assert seen["tcp"].status == "failed"
    assert "serve" in seen["tcp"].mend
    later = [seen[name].status for name in ("tls", "http", "clock")]
    assert later == ["unknown"] * 3


def test_a_name_without_address_fails(ours: Path) -> None:
    seen = by_name(network_findings(route(ours, 8443, "nowhere.invalid")))
    assert seen["dns"].status == "failed"
    assert seen["tcp"].status == "unknown"


def test_a_listener_that_says_nothing_ends_in_time(ours: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        start = time.monotonic()
        finding = check_tls(route(ours, silent.getsockname()[1]))
    assert finding.status == "failed"
    assert time.monotonic() - start < 3 * SECONDS


def test_a_listener_without_tls_fails(ours: Path) -> None:
    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Answers)
    with running(server.serve_forever, server.shutdown):
        finding = check_tls(route(ours, server.server_address[1]))
    server.server_close()
    assert finding.status == "failed"


def test_another_program_behind_the_certificate_is_a_warning(ours: Path) -> None:
    with served(ours, status=502) as port:
        finding = check_http(route(ours, port))
    assert finding.status == "warning"
    assert "502" in finding.text


# The server's date is this clock plus the skew.
@pytest.mark.parametrize(
    ("skew", "status"),
    [
        (0, "ok"),
        (-4, "warning"),
        (-30, "failed"),  # This clock is ahead: signed times are in the future.
        (30, "warning"),
        (400, "failed"),
    ],
)
def test_a_clock_is_compared_with_the_coordinators(
    ours: Path, skew: float, status: str
) -> None:
    with served(ours, skew=float(skew)) as port:
        finding = check_clock(route(ours, port))
    assert finding.status == status, finding
    if skew:
        assert ("ahead" if skew < 0 else "behind") in finding.text


def test_this_clock_is_the_one_that_is_asked_for(ours: Path) -> None:
    with served(ours) as port:
        ahead = check_clock(route(ours, port), lambda: time.time() + 3600)
    assert ahead.status == "failed"
    # The date in an answer has no fractions, and a busy machine answers late.
    assert 3595 <= int(ahead.text.split(" s ahead")[0]) <= 3605


def test_without_a_date_the_clock_is_unknown(ours: Path) -> None:
    with served(ours, dated=False) as port:
        assert check_clock(route(ours, port)).status == "unknown"


# Proxies


class Tunnel:
    """A proxy that passes CONNECT on, and remembers what it was asked."""

    def __init__(self) -> None:
        self.listener = socket.create_server((LOOPBACK, 0))
        self.asked: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(link,), daemon=True).start()

    def _pass(self, link: socket.socket) -> None:
        with link, suppress(OSError):
            head = link.recv(4096)  # A request for a tunnel is one segment.
            if not head:
                return
            self.asked.append(head)
            host, _, port = head.split()[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                self._copy(link, there)

    def _copy(self, link: socket.socket, there: socket.socket) -> None:
        while True:
            for one in select.select([link, there], [], [])[0]:
                data = one.recv(65536)
                if not data:
                    return
                (there if one is link else link).sendall(data)


def test_a_proxy_of_the_environment_is_the_way_and_its_password_is_not_shown(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel = Tunnel()
    port = tunnel.listener.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://us:hidden@{LOOPBACK}:{port}")
    with served(ours) as real:
        seen = by_name(network_findings(route(ours, real)))
    tunnel.listener.close()
    assert seen["proxy"].status == "warning"
    assert f"{LOOPBACK}:{port}" in seen["proxy"].text
    others = [seen[name].status for name in NAMES[1:]]
    assert others == ["ok"] * 5
    assert all(b"Proxy-Authorization: Basic" in head for head in tunnel.asked)
    assert "hidden" not in str(seen)


def test_an_exception_from_the_proxy_is_kept(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert route(ours, 1).proxy == urlsplit("http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", LOOPBACK)
    assert check_proxy(route(ours, 1)).status == "ok"


def test_a_proxy_of_another_kind_is_not_passed(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")
    seen = by_name(network_findings(route(ours, 1)))
    assert {one.status for one in seen.values()} == {"unknown"}


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:port", "h:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        route_to(address, "")


def test_an_address_of_version_6_keeps_its_colons() -> None:
    assert (route_to("[::1]:8443", "").host, route_to("[::1]:8443", "").port) == (
        "::1",
        8443,
    )
