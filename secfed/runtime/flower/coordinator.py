"""The coordinator's process: a SuperLink as a child, a run in it, and its ServerApp.

Flower would start a further process for the ServerApp. Here the process that was
started by a person takes the task itself, so that its messages and its end are
people's to see.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    RegisterNodeRequest,
    StartRunRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from secfed.canonical import canonical_json
from secfed.errors import RunDirectoryError
from secfed.runtime.envelope import Post
from secfed.runtime.flower.bundle import app_bundle
from secfed.runtime.flower.children import (
    LOOPBACK,
    Child,
    free_port,
    wait_for_port,
)
from secfed.runtime.flower.runner import ACQUIRE, alive
from secfed.runtime.flower.server_app import server_app
from secfed.runtime.flower.superlink import TOKEN_HEADER

__all__ = ["Listener", "coordinate"]

_TASK_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Listener:
    """Where the fleet API is published, with which certificate and its key (PEM)."""

    host: str
    port: int
    certificate: Path
    key: bytes = field(repr=False)


def coordinate(
    listener: Listener,
    nodes: Mapping[str, str],
    folder: Path,
    run: Callable[[Post], None],
    bundle: bytes | None = None,
) -> None:
    """Serve the fleet API and run a coordinator's loop over it.

    Args:
        listener: What sites connect to.
        nodes: The pinned node key (PEM) of every site; no other node is admitted.
        folder: The coordinator's private folder: Flower's home and its log.
        run: The loop.
        bundle: Another app than the installed; sites refuse it.

    Raises:
        RunDirectoryError: Flower does not start.
        SecfedError: As ``run``.
    """
    # Flower tells on the terminal, at level DEBUG, that its grid was closed.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    token = secrets.token_hex(32)
    with _superlink(listener, folder, token) as address:
        _register(address, token, nodes)
        _start_run(address, token, app_bundle() if bundle is None else bundle)
        with _task(address, token) as (grid, context):
            server_app(run, nodes)(grid=grid, context=context)


@contextmanager
def _superlink(listener: Listener, folder: Path, token: str) -> Iterator[str]:
    """The child; yields the address of its private listener."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    port = free_port()
    settings = {
        "host": listener.host,
        "port": listener.port,
        "private_port": port,
        "certificate": str(listener.certificate),
        "token": token,
    }
    child = Child(
        "secfed.runtime.flower.superlink",
        [],
        folder / "flower",
        folder / "superlink.log",
        {"--settings": canonical_json(settings), "--key": listener.key},
    )
    try:
        wait_for_port(child, port)
        yield f"{LOOPBACK}:{port}"
    finally:
        child.stop()


class _Token:
    """Shows the run's token to the private listener."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        add_headers(context.request, {TOKEN_HEADER: self._token})
        response: httpx.Response = call_next(context)
        return response


def _register(address: str, token: str, nodes: Mapping[str, str]) -> None:
    """Admit the nodes of the roster; Flower's database is new and knows no other."""
    client = _control(address, token)
    try:
        for site, pem in nodes.items():
            request = RegisterNodeRequest(public_key=pem.encode(), name=site)
            client.RegisterNode(request)
    except httpx.HTTPError as error:
        raise RunDirectoryError(f"Flower refuses to register: {error}") from error
    finally:
        client.close()


def _start_run(address: str, token: str, bundle: bytes) -> None:
    fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
    client = _control(address, token)
    try:
        client.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
    except httpx.HTTPError as error:
        raise RunDirectoryError(f"Flower refuses to start a run: {error}") from error
    finally:
        client.close()


def _control(address: str, token: str) -> ControlHttpClient:
    return ControlHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor("flwr-cli"), _Token(token)],
    )


@contextmanager
def _task(address: str, token: str) -> Iterator[tuple[HttpGrid, Any]]:
    """Take the task of the run that was started; yields its grid and context."""
    granted = _acquire(address, token)
    grid = _PrivateGrid(address, token, granted)
    sub_status, details = SubStatus.FAILED, "the coordinator ended"
    try:
        client = grid.runtime_client
        given = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid.set_run(run_from_proto(given.run))
        with alive(client):
            yield grid, context_from_proto(given.context)
        sub_status, details = SubStatus.COMPLETED, ""
    finally:
        output = PushTaskOutputRequest(sub_status=sub_status, details=details)
        # Where the child is gone, its next start marks the run as failed.
        with suppress(httpx.HTTPError):
            grid.runtime_client.PushTaskOutput(output)
        grid.close()


def _acquire(address: str, token: str) -> str:
    """The token of the ServerApp's task."""
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor("SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=token.encode(), protected_methods=[ACQUIRE]
            ),
            _Token(token),
        ],
    )
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    end = time.monotonic() + _TASK_SECONDS
    try:
        while time.monotonic() < end:
            taken = client.AcquireTask(request)
            if taken.HasField("task") and taken.token:
                return str(taken.token)
            time.sleep(0.1)
    finally:
        client.close()
    raise RunDirectoryError("Flower started no task for the run")


class _PrivateGrid(HttpGrid):
    """Flower's grid, by way of the private listener."""

    def __init__(self, address: str, token: str, granted: str) -> None:
        super().__init__(address, insecure=True, token=granted)
        self._client = RuntimeHttpClient.from_server_address(
            server_address=address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor("flwr-serverapp"),
                RuntimeTokenHttpInterceptor(token=granted),
                _Token(token),
            ],
            retry_invoker=self._retry_invoker,
        )

    @property
    def runtime_client(self) -> RuntimeHttpClient:
        """The client of the private listener."""
        return self._runtime_client
