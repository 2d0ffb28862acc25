"""The coordinator's child: Flower's SuperLink behind two listeners.

The open-source SuperLink serves all its APIs on one port, and authenticates nobody on
the control API. Here the same application listens twice:

- public, with TLS: only the fleet API, which authenticates nodes by registered keys;
- private, on loopback: everything, for whoever shows the token of this run.

Started with ``--settings FILE --key FILE``: JSON, and the server's key in PEM. Both are
pipes that its parent filled (``children.py``): the token and the key are in no file.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import uvicorn
from flwr.common.constant import (
    ISOLATION_MODE_PROCESS,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import (
    SuperLinkLifespanConfig,
    load_control_authn_plugin,
)
from flwr.superlink.main import create_app

from secfed.runtime.flower.children import LOOPBACK, end_with_parent

__all__ = ["FLEET_PREFIX", "TOKEN_HEADER", "fleet_only", "main", "token_only"]

FLEET_PREFIX: Final = "/v1/fleet/"
TOKEN_HEADER: Final = "x-secfed-token"  # noqa: S105 - the name of a header

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


def fleet_only(app: _App) -> _App:
    """The application without everything but the fleet API: 404."""

    async def filtered(scope: _Scope, receive: _Receive, send: _Send) -> None:
        fleet = scope["type"] == "http" and scope["path"].startswith(FLEET_PREFIX)
        await (app if fleet else _not_found)(scope, receive, send)

    return filtered


def token_only(app: _App, token: str) -> _App:
    """The application for requests that carry the token: else 404."""

    async def filtered(scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        headers = dict(scope.get("headers", ()))
        shown = headers.get(TOKEN_HEADER.encode(), b"")
        known = hmac.compare_digest(shown, token.encode())
        await (app if known else _not_found)(scope, receive, send)

    return filtered


async def _not_found(scope: _Scope, receive: _Receive, send: _Send) -> None:
    del receive
    if scope["type"] != "http":
        raise RuntimeError("only requests over HTTP are answered")
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal comes or the parent ends."""
    end_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--key", required=True)
    told = parser.parse_args(arguments)
    settings = json.loads(told.settings.read_bytes())
    # As ``uvicorn.run`` does: uvloop where there is one, which takes less time.
    loop = uvicorn.Config("").get_loop_factory()
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_serve(settings, told.key))


async def _serve(settings: dict[str, Any], key: str) -> None:
    app: Any = create_app(_configuration(settings), SuperLinkLifespan)
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False}
    private = uvicorn.Server(
        uvicorn.Config(
            token_only(app, settings["token"]),
            host=LOOPBACK,
            port=settings["private_port"],
            **quiet,
        )
    )
    public = uvicorn.Server(
        uvicorn.Config(
            fleet_only(app),
            host=settings["host"],
            port=settings["port"],
            ssl_certfile=settings["certificate"],
            ssl_keyfile=key,
            lifespan="off",
            **quiet,
        )
    )
    await asyncio.gather(private.serve(), public.serve())


def _configuration(settings: dict[str, Any]) -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=LOOPBACK,
        port=settings["private_port"],
        insecure=False,
        certificates=None,
        superexec_auth_secret=settings["token"].encode(),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        # What a study needs is in the run's folder. On a disk each of a message's
        # dozens of small writes waits for it, which doubles the time of a round.
        database=FLWR_IN_MEMORY_DB_NAME,
        # No child of Flower's own: the coordinator's process takes the task itself.
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()
