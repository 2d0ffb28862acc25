"""Flower's SecAgg+ workflow; the beginning of each of its stages is written down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import Context, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from .vectors import vector

__all__ = ["app"]


class _Stamps:
    """One line of JSON for each event, at once on the disk."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def note(self, what: str, **more: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"what": what, "at": time.time(), **more}) + "\n")


class _Stamped(SecAggPlusWorkflow):
    def __init__(self, clients: int, stamps: _Stamps) -> None:
        super().__init__(num_shares=clients, reconstruction_threshold=clients - 1)
        self.stamps = stamps

    def __call__(self, grid: Grid, context: Context) -> None:
        super().__call__(grid, context)
        self.stamps.note("end")

    def setup_stage(self, *args: Any) -> bool:
        self.stamps.note("setup")
        return super().setup_stage(*args)

    def share_keys_stage(self, *args: Any) -> bool:
        self.stamps.note("share keys")
        return super().share_keys_stage(*args)

    def collect_masked_vectors_stage(self, *args: Any) -> bool:
        self.stamps.note("masked vectors")
        return super().collect_masked_vectors_stage(*args)

    def unmask_stage(self, *args: Any) -> bool:
        self.stamps.note("unmask")
        return super().unmask_stage(*args)


class _Checked(FedAvg):
    """FedAvg that compares the mean with the plain one."""

    def __init__(self, clients: int, length: int, stamps: _Stamps) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=clients,
            min_available_clients=clients,
            initial_parameters=ndarrays_to_parameters([np.zeros(length, np.float32)]),
        )
        self.expected = np.mean([vector(c, length) for c in range(clients)], axis=0)
        self.stamps = stamps

    def aggregate_fit(self, *args: Any, **kwargs: Any) -> Any:
        parameters, metrics = super().aggregate_fit(*args, **kwargs)
        found = parameters_to_ndarrays(parameters)[0] if parameters else np.nan
        error = float(np.abs(found - self.expected).max())
        self.stamps.note("mean", error=error)
        return parameters, metrics


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of the workflow."""
    config = context.run_config
    clients, length = int(config["clients"]), int(config["length"])
    stamps = _Stamps(str(config["stamps"]))
    legacy = LegacyContext(
        context=context,
        config=ServerConfig(num_rounds=int(config["rounds"])),
        strategy=_Checked(clients, length, stamps),
    )
    DefaultWorkflow(fit_workflow=_Stamped(clients, stamps))(grid, legacy)
    stamps.note("finished")
