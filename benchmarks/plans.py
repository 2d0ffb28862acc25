"""How much is measured: the whole, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cases import Case

__all__ = ["FULL", "QUICK", "Plan"]

_MILLION = 1_000_000


@dataclass(frozen=True)
class Plan:
    """Sizes of every part of the benchmark."""

    flwr: tuple[tuple[int, int], ...]  # clients and parameters
    flwr_whole: int  # up to this many clients, a whole session of flwr is played
    flwr_calls: int  # above it, so many calls of each kind
    percents: tuple[int, ...]  # dropouts of both; the first is 0
    more_percents: tuple[int, ...]  # of ours only
    large: tuple[tuple[Case, tuple[int, ...]], ...]
    rate_length: int
    masking: tuple[Case, ...]
    threads: Case
    memory: tuple[Case, ...]
    by_length: tuple[Case, ...]
    by_clients: tuple[Case, ...]
    by_clients_sparse: tuple[Case, ...]
    suites: Case
    repetitions: int


FULL = Plan(
    flwr=((10, _MILLION), (100, _MILLION)),
    flwr_whole=10,
    flwr_calls=2,
    percents=(0, 5, 10),
    more_percents=(30,),
    large=(
        (Case(10, 10 * _MILLION, 16), (0, 10, 30)),
        (Case(100, 10 * _MILLION, 16), (0, 10, 30)),
        (Case(1000, _MILLION, 16), (0, 5, 10, 30)),
        (Case(10_000, 100_000, 16), (0, 10, 30)),
    ),
    rate_length=_MILLION,
    masking=(
        Case(100, _MILLION, 16),
        Case(100, _MILLION, 32),
        Case(100, _MILLION // 3, 64),
    ),
    threads=Case(100, _MILLION, 32),
    memory=(Case(100, _MILLION, 32), Case(1000, _MILLION, 32)),
    by_length=tuple(Case(10, length, 32) for length in (10**5, 10**6, 10**7)),
    by_clients=tuple(Case(clients, 10**5, 32) for clients in (32, 64, 128, 256)),
    by_clients_sparse=tuple(Case(n, 10**5, 16) for n in (300, 1000, 10_000)),
    suites=Case(100, _MILLION, 32),
    repetitions=9,
)

QUICK = Plan(
    flwr=((5, 20_000), (6, 20_000)),
    flwr_whole=5,
    flwr_calls=2,
    percents=(0, 20),
    more_percents=(),
    large=((Case(8, 100_000, 16), (0, 25)), (Case(300, 2_000, 16), (0,))),
    rate_length=200_000,
    masking=(Case(10, 200_000, 16), Case(10, 200_000, 32), Case(10, 60_000, 64)),
    threads=Case(10, 200_000, 32),
    memory=(Case(10, 300_000, 32),),
    by_length=tuple(Case(5, length, 32) for length in (10_000, 100_000, 300_000)),
    by_clients=tuple(Case(clients, 10_000, 32) for clients in (8, 16, 32)),
    by_clients_sparse=(),
    suites=Case(8, 50_000, 32),
    repetitions=3,
)
