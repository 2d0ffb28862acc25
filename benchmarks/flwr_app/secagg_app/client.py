"""A client that has trained already: it returns a vector."""

from __future__ import annotations

from typing import Any

from flwr.client import Client, ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import Context

from .vectors import vector

__all__ = ["app"]

_EXAMPLES = 1000  # flwr's default max_weight: every client has weight one


class _Site(NumPyClient):
    def __init__(self, client: int, length: int) -> None:
        self.client = client
        self.length = length

    def fit(
        self, parameters: Any, config: dict[str, Any]
    ) -> tuple[list[Any], int, dict[str, Any]]:
        """Return the vector without training."""
        del parameters, config
        return [vector(self.client, self.length)], _EXAMPLES, {}


def _client(context: Context) -> Client:
    number = int(context.node_config["client"])
    return _Site(number, int(context.run_config["length"])).to_client()


app = ClientApp(client_fn=_client, mods=[secaggplus_mod])
