"""The exhaustive search at several sizes; ``make exhaustive`` prints the table."""

# ruff: noqa: T201

from __future__ import annotations

import time
from dataclasses import dataclass

from protocols.secagg.params import SessionParams
from tests.protocols.invariants import Knowledge
from tests.protocols.search import Search
from tests.session import make_params

SIZES = (
    # clients, threshold, colluders, oddities
    (3, 2, 0, None),
    (3, 3, 1, None),
    (4, 3, 0, None),
    (4, 3, 1, None),
    (5, 4, 1, 0),
    (5, 4, 2, 0),
)


@dataclass(frozen=True)
class Found:
    """What one search went through."""

    messages: int  # given to a real client
    records: int  # of a client, that differ in more than the last message's digest
    states: int  # of all clients together
    opened: int  # states in which the server can compute a sum
    fewest: int  # honest inputs in any of these sums


def tiny(num_clients: int, threshold: int, colluders: int) -> SessionParams:
    return make_params(
        num_clients,
        threshold,
        max_colluders=colluders,
        body_length=1,
        lane_length=0,
        ring_bits=64,
    )


def searched(
    num_clients: int, threshold: int, colluders: int, oddities: int | None
) -> Found:
    """Check all promises in every reachable state; the last clients collude."""
    params = tiny(num_clients, threshold, colluders)
    search = Search(
        params, tuple(range(num_clients - colluders, num_clients)), oddities
    )
    search.replay_everything()
    knowledge = Knowledge(search)
    states = opened = 0
    groups = set()
    for state in search.states():
        found = knowledge.groups(state)
        states += 1
        opened += bool(found)
        groups |= found
    fewest = min(map(len, groups))
    assert fewest == knowledge.fewest, "the bound is not reached"
    return Found(search.steps, len(search.nodes), states, opened, fewest)


def main() -> None:
    print("  n  t  |C|  honest    messages  records    states  opened  seconds")
    for num_clients, threshold, colluders, oddities in SIZES:
        start = time.perf_counter()
        found = searched(num_clients, threshold, colluders, oddities)
        seconds = time.perf_counter() - start
        print(
            f"{num_clients:3} {threshold:2} {colluders:4} {found.fewest:7} "
            f"{found.messages:11,} {found.records:8,} {found.states:9,} "
            f"{found.opened:7,} {seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
