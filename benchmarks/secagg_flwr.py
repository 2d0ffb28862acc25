"""The SecAgg+ functions of the installed flwr, measured phase by phase.

The clients run the four functions behind ``secaggplus_mod``; the server runs the
stages of ``SecAggPlusWorkflow`` over an exchange in memory. Nothing of flwr is
written again here. Its time is what its own functions take: making and carrying
messages, and the conversions for the training API, are left out.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import FitIns, FitRes, Parameters, ndarrays_to_parameters
from flwr.common import parameters_to_ndarrays as arrays_of
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    Key,
    Stage,
)
from flwr.common.typing import Code, Status
from flwr.compat.common.recorddict_compat import (
    fitres_to_recorddict,
    parameters_to_arrayrecord,
)
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import (
    SecAggPlusWorkflow,
    WorkflowState,
)
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.inputs import dropped, update
from benchmarks.measure import timed

__all__ = [
    "CLIPPING_RANGE",
    "EXAMPLES",
    "MODULUS",
    "STEPS",
    "FlwrCosts",
    "payload_bytes",
    "play_flwr",
    "quantize_seconds",
    "threshold",
]

CLIPPING_RANGE = 8.0  # flwr's default
EXAMPLES = 1000  # flwr's default max_weight: every client has weight one
STEPS = 2**22  # flwr's default quantization_range
MODULUS = 2**32  # flwr's default modulus_range

_CLIENT_STEPS: Mapping[str, Callable[..., Any]] = {
    Stage.SETUP: _setup,
    Stage.SHARE_KEYS: _share_keys,
    Stage.COLLECT_MASKED_VECTORS: _collect_masked_vectors,
    Stage.UNMASK: _unmask,
}


@dataclass
class FlwrCosts:
    """CPU seconds and bytes of one session, by stage."""

    client: dict[str, list[float]] = field(default_factory=dict)
    up: dict[str, list[int]] = field(default_factory=dict)
    down: dict[str, list[int]] = field(default_factory=dict)
    sums: dict[int, float] = field(default_factory=dict)  # by percent of dropouts
    unmasks: dict[int, float] = field(default_factory=dict)
    encoding: list[float] = field(default_factory=list)
    exact: bool = True
    calls: str = "all"

    def note(self, stage: str, seconds: float, up: int, down: int) -> None:
        """Add what one client spent in one stage."""
        self.client.setdefault(stage, []).append(seconds)
        self.up.setdefault(stage, []).append(up)
        self.down.setdefault(stage, []).append(down)


def threshold(clients: int) -> int:
    """The same rule as in secfed: ``floor(2 n / 3) + 1``."""
    return 2 * clients // 3 + 1


def quantize_seconds(client: int, length: int) -> float:
    """CPU seconds in which flwr turns one update into integers."""
    values = [update(client, length)]
    return timed(quantize, values, CLIPPING_RANGE, STEPS)[1]


def payload_bytes(record: Mapping[str, Any]) -> int:
    """Bytes of the values of a record: bytes as they are, a number as eight."""
    total = 0
    for value in record.values():
        for one in value if isinstance(value, list) else [value]:
            total += len(one) if isinstance(one, bytes) else 8
    return total


class Clients:
    """All clients of a session, and the exchange that the server sees.

    ``seconds`` grows by what happens inside the exchange, so that the server's
    share of a stage can be told from it.
    """

    def __init__(
        self, clients: int, length: int, costs: FlwrCosts, tick: Callable[[], None]
    ) -> None:
        self.states = {node: SecAggPlusState() for node in range(1, clients + 1)}
        for node, state in self.states.items():
            state.nid = node
        self.length = length
        self.costs = costs
        self.tick = tick
        self.silent: frozenset[int] = frozenset()
        self.kept: dict[int, Message] = {}
        self.seconds = 0.0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """What flwr's ``Grid`` does: one reply from each client that is there."""
        del timeout
        start = time.process_time()
        replies = [
            self._reply(message)
            for message in messages
            if message.metadata.dst_node_id not in self.silent
        ]
        self.seconds += time.process_time() - start
        return replies

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        configs = dict(message.content.config_records[RECORD_KEY_CONFIGS])
        stage = str(configs.pop(Key.STAGE))
        if stage == Stage.COLLECT_MASKED_VECTORS and node in self.kept:
            return self.kept[node]
        result = self._step(stage, node, configs)
        content = RecordDict()
        if stage == Stage.COLLECT_MASKED_VECTORS:
            content = _fit_result()
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(result)
        reply = Message(content, reply_to=message)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            self.kept[node] = reply
        return reply

    def _step(self, stage: str, node: int, configs: dict[str, Any]) -> dict[str, Any]:
        args: tuple[Any, ...] = (self.states[node], configs)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            vector = ndarrays_to_parameters([update(node, self.length)])
            args = (*args, EXAMPLES, vector)
        down = payload_bytes(configs)
        result: dict[str, Any]
        result, seconds = timed(_CLIENT_STEPS[stage], *args)
        self.costs.note(stage, seconds, payload_bytes(result), down)
        self.tick()
        return result


def _fit_result() -> RecordDict:
    status = Status(Code.OK, "")
    return fitres_to_recorddict(
        FitRes(status, Parameters([], "numpy.ndarray"), EXAMPLES, {}), keep_input=True
    )


class _Strategy:
    """What the workflow asks of a strategy: who takes part, and what came out."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.mean: Sequence[Any] = []

    def configure_fit(self, _round: int, parameters: Parameters, _: object) -> Any:
        """Everybody takes part."""
        everybody = range(1, self.clients + 1)
        return [
            (SimpleNamespace(node_id=node), FitIns(parameters, {}))
            for node in everybody
        ]

    def aggregate_fit(self, _round: int, results: Any, _failures: object) -> Any:
        """Keep the mean that the workflow found."""
        self.mean = arrays_of(results[0][1].parameters)
        return None, {}


def _context(strategy: _Strategy) -> LegacyContext:
    state = RecordDict()
    state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord(
        {WorkflowKey.CURRENT_ROUND: 1}
    )
    state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(
        ndarrays_to_parameters([np.zeros(1, dtype=np.float32)]), keep_input=True
    )
    manager: Any = SimpleNamespace(num_available=lambda: strategy.clients)
    inner = Context(1, 0, {}, state, {})
    typed: Any = strategy
    return LegacyContext(inner, strategy=typed, client_manager=manager)


def play_flwr(
    clients: int, length: int, percents: Sequence[int], tick: Callable[[], None]
) -> FlwrCosts:
    """A whole session: once up to the masked vectors, then once per dropout rate.

    Clients that drop out do so after sharing their keys. (One that leaves before
    makes every other client of flwr raise ``KeyError``.)
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # flwr's messages name the task that makes them.
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    costs = FlwrCosts()
    strategy = _Strategy(clients)
    context = _context(strategy)
    workflow = SecAggPlusWorkflow(1.0, threshold(clients))
    state = WorkflowState()
    exchange: Any = Clients(clients, length, costs, tick)
    _require(workflow.setup_stage(exchange, context, state))
    _require(workflow.share_keys_stage(exchange, context, state))
    for percent in sorted(percents):
        branch = _branch(state)
        gone = dropped([str(node) for node in range(1, clients + 1)], percent)
        exchange.silent = frozenset(map(int, gone))
        collect, unmask = workflow.collect_masked_vectors_stage, workflow.unmask_stage
        costs.sums[percent] = _server_seconds(collect, exchange, context, branch)
        costs.unmasks[percent] = _server_seconds(unmask, exchange, context, branch)
        costs.exact &= _is_mean(strategy.mean[0], exchange)
    if not costs.exact:
        raise RuntimeError("flwr's mean is not the mean of the updates")
    return costs


def _branch(state: WorkflowState) -> WorkflowState:
    """A copy for one dropout rate: the stages change sets and delete fields."""
    branch = copy.copy(state)
    branch.nid_to_neighbours = copy.deepcopy(state.nid_to_neighbours)
    branch.active_node_ids = set(state.active_node_ids)
    branch.legacy_results = []
    return branch


def _server_seconds(
    stage: Callable[..., bool], exchange: Any, context: Any, state: WorkflowState
) -> float:
    """CPU seconds of a stage without what happened inside the exchange."""
    before = exchange.seconds
    done, seconds = timed(stage, exchange, context, state)
    _require(done)
    return seconds - (exchange.seconds - before)


def _require(done: bool) -> None:  # noqa: FBT001
    if not done:
        raise RuntimeError("a stage of flwr's workflow stopped the session")


def _is_mean(found: Any, exchange: Clients) -> bool:
    """Within one quantisation step, which is what stochastic rounding promises."""
    nodes = exchange.states.keys() - exchange.silent
    expected = np.zeros(exchange.length)
    for node in nodes:
        expected += update(node, exchange.length)
    step = 2 * CLIPPING_RANGE / STEPS
    return bool(np.abs(found - expected / len(nodes)).max() <= step)
