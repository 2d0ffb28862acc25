"""The way from a site to its coordinator, step by step as Flower will go it.

Only the address of the roster is contacted, or the proxy that the environment names
for it. The time is asked of the coordinator itself, over a connection that the
roster's authority vouches for; who cannot be verified is not believed.
"""

from __future__ import annotations

import base64
import http.client
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from cryptography import x509

from secfed.doctor.findings import Finding, failed, found, unknown, warned
from secfed.runtime.keys import certificate_fingerprint

__all__ = [
    "NAMES",
    "Route",
    "check_clock",
    "check_dns",
    "check_http",
    "check_proxy",
    "check_tcp",
    "check_tls",
    "network_findings",
    "route_to",
]

NAMES: Final = ("proxy", "dns", "tcp", "tls", "http", "clock")
TIMEOUT_SECONDS: Final = 5.0

_AHEAD_SECONDS: Final = 5.0
_BEHIND_SECONDS: Final = 300.0
"""Flower 1.41 admits a node whose signed time is up to 5 s later than the server's
clock and up to 305 s earlier (``flwr.common.constant``); a message travels, too."""

_NOTED_SECONDS: Final = 2.0
_RENEWAL_DAYS: Final = 14
_DAY_SECONDS: Final = 86400.0
_NOT_FOUND: Final = 404
_LONGEST_NAME: Final = 80
_PORTS: Final = {"http": 80, "https": 443}
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, ..._NOT_YET_VALID
_OTHER_NAME: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, ..._IP_ADDRESS_MISMATCH


@dataclass(frozen=True)
class Route:
    """How the coordinator is reached.

    Attributes:
        host: Of the coordinator.
        port: Of its fleet API.
        authority: Certificate (PEM) that must have signed the server's.
        proxy: What the environment names for this host; None: the direct way.
        timeout: Seconds for every single step.
    """

    host: str
    port: int
    authority: str
    proxy: SplitResult | None = None
    timeout: float = TIMEOUT_SECONDS

    @property
    def first(self) -> tuple[str, int]:
        """Whom a connection is opened to."""
        if self.proxy is None:
            return self.host, self.port
        port = self.proxy.port or _PORTS.get(self.proxy.scheme, 80)
        return self.proxy.hostname or "", port


def route_to(address: str, authority: str, timeout: float = TIMEOUT_SECONDS) -> Route:
    """The way to ``HOST:PORT``, with the proxy that this process' environment names.

    Raises:
        ValueError: It is no address.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit():
        raise ValueError(f"{address!r} is not HOST:PORT")
    return Route(host, int(port), authority, _proxy_for(host), timeout)


def network_findings(
    route: Route, now: Callable[[], float] = time.time
) -> tuple[Finding, ...]:
    """All steps in their order; what follows a failed one is unknown."""
    results = [check_proxy(route)]
    steps = (check_dns, check_tcp, check_tls, check_http)
    for name, check in zip(NAMES[1:-1], steps, strict=True):
        if results[-1].status in {"failed", "unknown"}:
            results.append(unknown(name, f"not tried: {results[-1].check} comes first"))
        else:
            results.append(check(route))
    if results[-1].status in {"failed", "unknown"}:
        said = "the coordinator was not asked, and no other clock is believed"
        return (*results, unknown("clock", said))
    return (*results, check_clock(route, now))


def check_proxy(route: Route) -> Finding:
    """Which way the environment sends a connection to this host; never its password."""
    if route.proxy is None:
        return found("proxy", "none for this host")
    where = f"{route.first[0]}:{route.first[1]}"
    if route.proxy.scheme != "http" or not route.proxy.hostname:
        return unknown(
            "proxy",
            f"the environment names one of another kind ({route.proxy.scheme})",
            f"NO_PROXY={route.host}, or a plain HTTP proxy in HTTPS_PROXY",
        )
    return warned(
        "proxy",
        f"HTTPS_PROXY sends the connection through {where}",
        f"NO_PROXY={route.host} if the coordinator can be reached without it",
    )


def check_dns(route: Route) -> Finding:
    """Whether the first host has an address."""
    host, port = route.first
    answers = _within(route.timeout, lambda: _addresses(host, port))
    if isinstance(answers, list):
        return found("dns", f"{host} is {', '.join(answers[:3])}")
    why = answers.strerror if isinstance(answers, OSError) else "no answer in time"
    return failed(
        "dns",
        f"{host}: {why}",
        "ask for this name in the site's DNS, or check the roster's address with the "
        "coordinator",
    )


def check_tcp(route: Route) -> Finding:
    """Whether the first host accepts a connection."""
    host, port = route.first
    start = time.monotonic()
    try:
        with socket.create_connection((host, port), route.timeout):
            taken = 1000 * (time.monotonic() - start)
    except TimeoutError:
        return failed(
            "tcp",
            f"{host}:{port} does not answer within {route.timeout:g} s",
            "ask the firewall for an outgoing connection to this host and port",
        )
    except OSError as error:
        return failed(
            "tcp",
            f"{host}:{port}: {error.strerror or type(error).__name__}",
            "is the coordinator running (`secfed serve`)? Else the address, or a "
            "firewall that refuses",
        )
    return found("tcp", f"{host}:{port} answers in {taken:.0f} ms")


def check_tls(route: Route) -> Finding:
    """Whether the roster's authority signed a valid certificate for this host."""
    try:
        with closing(_connected(route)) as link:
            sock = _secured(link)
            version, ends = sock.version(), (sock.getpeercert() or {})["notAfter"]
    except ssl.SSLCertVerificationError as error:
        return failed("tls", *_untrusted(route, error))
    except OSError as error:
        return failed(
            "tls",
            f"no TLS: {error}",
            "something between here and the coordinator answers in its place: ask for "
            "a connection that is passed through unchanged",
        )
    days = (ssl.cert_time_to_seconds(str(ends)) - time.time()) / _DAY_SECONDS
    pin = certificate_fingerprint(route.authority)[:16]
    text = f"{version}; signed by the roster's authority {pin}, valid {days:.0f} days"
    if days < _RENEWAL_DAYS:
        return warned("tls", text, "the coordinator runs `secfed keys authority` again")
    return found("tls", text)


def check_http(route: Route) -> Finding:
    """Whether a coordinator answers, and which HTTP is spoken."""
    try:
        chosen = _chosen_protocol(route)
        response, _ = _asked(route)
    except (OSError, http.client.HTTPException) as error:
        return failed(
            "http",
            f"no answer over HTTP: {error or type(error).__name__}",
            "is the program at this address `secfed serve`?",
        )
    second = "HTTP/2 is agreed" if chosen == "h2" else "HTTP/2 is not agreed"
    text = f"HTTP/1.1 works; {second}, and Flower {_flower()} needs none"
    if response.status != _NOT_FOUND:
        return warned(
            "http",
            f"{text}; outside of the fleet API the answer is {response.status}",
            "a coordinator says 404 there: ask which program stands before it",
        )
    return found("http", text)


def check_clock(route: Route, now: Callable[[], float] = time.time) -> Finding:
    """How far this clock is from the coordinator's, to a second.

    Args:
        route: The way to it.
        now: This machine's clock, in seconds since 1970.
    """
    try:
        response, middle = _asked(route, now)
        told = parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (OSError, http.client.HTTPException) as error:
        return unknown("clock", f"the coordinator does not tell the time: {error}")
    except ValueError:
        return unknown("clock", "the coordinator's answer has no date")
    ahead = middle - told - 0.5  # A date is cut to a whole second.
    side = "ahead of" if ahead > 0 else "behind"
    text = f"{abs(ahead):.0f} s {side} the coordinator's"
    mend = "let both clocks follow a time server (NTP)"
    if ahead > _AHEAD_SECONDS or -ahead > _BEHIND_SECONDS:
        limits = f"up to {_AHEAD_SECONDS:g} s ahead or {_BEHIND_SECONDS:g} s behind"
        return failed("clock", f"{text}; Flower admits {limits}", mend)
    if abs(ahead) > _NOTED_SECONDS:
        return warned("clock", text, mend)
    return found("clock", "within 2 s of the coordinator's")


# ------------------------------------------------------------------ connections


def _proxy_for(host: str) -> SplitResult | None:
    """As Flower's HTTP client finds it: by the environment, with its exceptions."""
    known = urllib.request.getproxies()
    url = known.get("https") or known.get("all")
    if not url or urllib.request.proxy_bypass(host):
        return None
    return urlsplit(url if "://" in url else f"http://{url}")


def _connected(
    route: Route, protocols: tuple[str, ...] = ("http/1.1",)
) -> http.client.HTTPSConnection:
    """A verified connection, through the proxy where there is one."""
    context = ssl.create_default_context(cadata=route.authority)
    context.set_alpn_protocols(list(protocols))
    host, port = route.first
    link = http.client.HTTPSConnection(
        host, port, timeout=route.timeout, context=context
    )
    if route.proxy is not None:
        link.set_tunnel(route.host, route.port, _login(route.proxy))
    try:
        link.connect()
    except BaseException:
        link.close()
        raise
    return link


def _login(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _secured(link: http.client.HTTPSConnection) -> ssl.SSLSocket:
    if not isinstance(link.sock, ssl.SSLSocket):
        raise ssl.SSLError("the connection is not encrypted")
    return link.sock


def _chosen_protocol(route: Route) -> str | None:
    with closing(_connected(route, ("h2", "http/1.1"))) as link:
        return _secured(link).selected_alpn_protocol()


def _asked(
    route: Route, now: Callable[[], float] = time.time
) -> tuple[http.client.HTTPResponse, float]:
    """What the coordinator answers outside of its API, and when: headers alone.

    The time is the middle between question and answer, without the handshake.
    """
    with closing(_connected(route)) as link:
        before = now()
        link.request("HEAD", "/")
        response = link.getresponse()
        return response, (before + now()) / 2


def _untrusted(route: Route, error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """What is wrong with a certificate, and the mend."""
    again = "the coordinator runs `secfed keys authority` again"
    if error.verify_code in {_EXPIRED, _NOT_YET}:
        text = f"outside of the certificate's time: {error.verify_message}"
        return text, f"compare this machine's clock; if it is right, {again}"
    if error.verify_code in _OTHER_NAME:
        text = f"the certificate is not for {route.host}"
        return text, f"{again} with --host {route.host}, or the address is wrong"
    text = f"not signed by the roster's authority, but by {_issuer(route)}"
    mend = (
        "if that is a proxy of your own network, ask for a connection that it does "
        "not open; else this is not your coordinator: do not go on, call its operator"
    )
    return text, mend


def _issuer(route: Route) -> str:
    """Who signed the certificate that was not trusted; nothing is sent to it."""
    if route.proxy is not None:
        return "another"
    address = (route.host, route.port)
    try:
        pem = ssl.get_server_certificate(address, timeout=route.timeout)
        issuer = x509.load_pem_x509_certificate(pem.encode()).issuer
    except (OSError, ValueError):
        return "another"
    return repr(issuer.rfc4514_string()[:_LONGEST_NAME])


def _flower() -> str:
    return metadata.version("flwr")


def _addresses(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(answer[4][0]) for answer in answers})


def _within(seconds: float, ask: Callable[[], list[str]]) -> list[str] | OSError | None:
    """The answer, the error, or None after some seconds; resolvers have no timeout."""
    box: queue.Queue[list[str] | OSError] = queue.Queue()

    def run() -> None:
        try:
            box.put(ask())
        except OSError as error:
            box.put(error)

    threading.Thread(target=run, name="dns", daemon=True).start()
    try:
        return box.get(timeout=seconds)
    except queue.Empty:
        return None
