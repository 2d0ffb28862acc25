"""flwr at sizes where a whole session takes minutes: some calls, multiplied.

Every client does the same, and so does the server for every client that stayed and
for every client that dropped out. A stated number of these calls is run, with the
arguments they would have in the whole session, and the median is multiplied. The
counts are those of the loops in ``SecAggPlusWorkflow``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    get_parameters_shape,
    parameters_addition,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
)

from benchmarks.inputs import update
from benchmarks.measure import Timing, timed
from benchmarks.secagg_flwr import (
    CLIPPING_RANGE,
    EXAMPLES,
    MODULUS,
    STEPS,
    FlwrCosts,
    payload_bytes,
    threshold,
)

__all__ = ["sample_flwr"]


def sample_flwr(
    clients: int,
    length: int,
    percents: Sequence[int],
    calls: int,
    tick: Callable[[], None],
) -> FlwrCosts:
    """``calls`` clients and ``calls`` of each kind of the server's calls.

    Raises:
        RuntimeError: A secret was not rebuilt.
    """
    sample = _Sample(clients, length, calls, tick)
    sample.run_clients()
    for percent in sorted(percents):
        sample.run_server(percent)
    sample.costs.calls = f"{calls}, scaled"
    return sample.costs


class _Sample:
    def __init__(
        self, clients: int, length: int, calls: int, tick: Callable[[], None]
    ) -> None:
        self.costs = FlwrCosts()
        self.states: dict[int, Any] = {}
        self.parts: list[bytes] = []  # the last masked vector, as it is sent
        self.count = clients
        self.length = length
        self.calls = calls
        self.tick = tick

    def run_clients(self) -> None:
        """The four stages: the first of all clients, the others of some."""
        setup = _configs(self.count)
        for node in range(1, self.count + 1):
            self.states[node] = SecAggPlusState()
            self.states[node].nid = node
            self._step(Stage.SETUP, _setup, node, setup)
        keys = {str(n): [state.pk1, state.pk2] for n, state in self.states.items()}
        for node in range(1, self.calls + 1):
            self._step(Stage.SHARE_KEYS, _share_keys, node, keys)
        for node in range(1, self.calls + 1):
            result = self._mask(node)
            self.parts = list(result[Key.MASKED_PARAMETERS])
        alive = {Key.ACTIVE_NODE_ID_LIST: list(self.states), Key.DEAD_NODE_ID_LIST: []}
        for node in range(1, self.calls + 1):
            self._step(Stage.UNMASK, _unmask, node, alive)

    def _mask(self, node: int) -> dict[str, Any]:
        configs = {
            Key.SOURCE_LIST: [peer for peer in self.states if peer != node],
            Key.CIPHERTEXT_LIST: [
                self._box(peer, node) for peer in self.states if peer != node
            ],
        }
        vector = ndarrays_to_parameters([update(node, self.length)])
        stage = Stage.COLLECT_MASKED_VECTORS
        extra = (EXAMPLES, vector)
        return self._step(stage, _collect_masked_vectors, node, configs, *extra)

    def _box(self, sender: int, recipient: int) -> bytes:
        """What ``sender`` would have sent; the shares inside are someone else's."""
        own = self.states[1]
        key = generate_shared_key(
            bytes_to_private_key(self.states[sender].sk2),
            bytes_to_public_key(self.states[recipient].pk2),
        )
        shares = (own.rd_seed_share_dict[1], own.sk1_share_dict[1])
        return encrypt(key, share_keys_plaintext_concat(sender, recipient, *shares))

    def _step(
        self, stage: str, step: Callable[..., Any], node: int, configs: Any, *more: Any
    ) -> dict[str, Any]:
        result: dict[str, Any]
        result, seconds = timed(step, self.states[node], configs, *more)
        self.costs.note(stage, seconds, payload_bytes(result), payload_bytes(configs))
        self.tick()
        return result

    def run_server(self, percent: int) -> None:
        """One dropout rate."""
        gone = self.count * percent // 100
        stayed = self.count - gone
        self.costs.sums[percent] = stayed * self._addition()
        seed = self._rebuilding(self.states[1].rd_seed, stayed) + self._masking()
        seconds = stayed * seed
        if gone:
            pair = self._agreement() + self._masking()
            key = self._rebuilding(self.states[1].sk1, stayed)
            seconds += gone * (key + (self.count - 1) * pair)
        self.costs.unmasks[percent] = seconds

    def _median(self, step: Callable[..., Any], *args: Any) -> float:
        found = Timing.of([timed(step, *args)[1] for _ in range(self.calls)])
        self.tick()
        return found.median

    def _addition(self) -> float:
        """One masked vector read and added."""
        total = self._vector()
        return self._median(lambda: parameters_addition(total, self._vector()))

    def _vector(self) -> list[Any]:
        return [bytes_to_ndarray(part) for part in self.parts]

    def _rebuilding(self, secret: bytes, shares: int) -> float:
        """One secret from the shares of all that stayed, as the workflow does."""
        dealt = create_shares(secret, threshold(self.count), self.count)[:shares]
        if combine_shares(dealt) != secret:
            raise RuntimeError("flwr did not rebuild a secret")
        return self._median(combine_shares, dealt)

    def _masking(self) -> float:
        """One mask expanded and taken off."""
        vector = self._vector()

        def take_off() -> object:
            shape = get_parameters_shape(vector)
            mask = pseudo_rand_gen(self.states[1].rd_seed, MODULUS, shape)
            return parameters_subtraction(vector, mask)

        return self._median(take_off)

    def _agreement(self) -> float:
        """One key of a dropout with a neighbour."""
        private, public = self.states[1].sk1, self.states[2].pk1

        def agree() -> object:
            own = bytes_to_private_key(private)
            return generate_shared_key(own, bytes_to_public_key(public))

        return self._median(agree)


def _configs(clients: int) -> dict[str, Any]:
    return {
        Key.SAMPLE_NUMBER: clients,
        Key.SHARE_NUMBER: clients,
        Key.THRESHOLD: threshold(clients),
        Key.CLIPPING_RANGE: CLIPPING_RANGE,
        Key.TARGET_RANGE: STEPS,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: float(EXAMPLES),
    }
