"""secfed and flwr's SecAgg+ over the same updates, in one run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from statistics import median
from typing import Final

import numpy as np

from benchmarks.cases import Case
from benchmarks.inputs import update
from benchmarks.measure import Timing, timed
from benchmarks.secagg_flwr import (
    CLIPPING_RANGE,
    FlwrCosts,
    play_flwr,
    quantize_seconds,
)
from benchmarks.secagg_flwr_sample import sample_flwr
from benchmarks.secagg_run import Run
from benchmarks.secagg_session import Played
from benchmarks.sections import MS, Section
from protocols.ring import RingVector
from secfed.codec import Codec
from secfed.privacy.noise import simulation_stream

__all__ = ["against_flwr"]

_RINGS: Final = (32, 16)
_ENCODINGS: Final = 5  # repetitions of the encoding alone

_CLIENTS_NOTE = (
    "CPU milliseconds per client, median and quartiles over the clients of a session "
    "without dropouts, on the same float32 updates. Encoding is clipping and "
    "stochastic rounding; flwr does it inside its masking stage, so it is measured "
    "again alone and subtracted there. The total is without encoding."
)
_SERVER_NOTE = (
    "CPU milliseconds for all clients together. Adding is everything from a masked "
    "vector's bytes to the sum; for secfed it includes the signature over them. "
    "Unmasking is everything from the revealed shares to the sum. "
    "Where calls are a number, flwr made so many of each kind, and its times are "
    "their medians times how often its workflow makes them."
)


def against_flwr(run: Run) -> Iterator[Section]:
    """Clients' and server's CPU time and bytes."""
    clients = Section("clients", "Clients: CPU time and bytes", _CLIENTS_NOTE)
    servers = Section("server", "Server: adding and unmasking", _SERVER_NOTE)
    ratios = Section("ratios", "How many times less CPU time than flwr", "")
    for number, length in run.plan.flwr:
        theirs = _play_theirs(run, number, length)
        _their_client(clients, theirs, number, length)
        _their_server(servers, theirs, number, length)
        for bits in _RINGS:
            ours = _play_ours(run, Case(number, length, bits))
            _our_client(clients, ours)
            _our_server(servers, ours)
            _compare(run, ratios, theirs, ours)
    yield clients
    yield servers
    yield ratios


# ---------------------------------------------------------------- sessions


def _percents(run: Run, number: int) -> list[int]:
    """Dropout rates at which at least one client is gone, and none at all."""
    return [p for p in run.plan.percents if p == 0 or number * p // 100]


def _play_theirs(run: Run, number: int, length: int) -> FlwrCosts:
    run.announce(f"flwr, {number:,} clients, {length:,} parameters")
    percents = _percents(run, number)
    if number > run.plan.flwr_whole:
        calls = run.plan.flwr_calls
        costs = sample_flwr(number, length, percents, calls, run.tick)
    else:
        costs = play_flwr(number, length, percents, run.tick)
        run.sums_checked += len(percents)
    costs.encoding = [quantize_seconds(i, length) for i in range(_ENCODINGS)]
    return costs


def _play_ours(run: Run, case: Case) -> Played:
    codec = _codec(case)
    percents = [*_percents(run, case.clients), *run.plan.more_percents]
    return run.play(
        case,
        percents,
        repetitions=run.plan.repetitions,
        vectors=lambda client, like: _encoded(codec, client, like)[0],
    )


def _codec(case: Case) -> Codec:
    return Codec(
        (("update", (case.length,)),),
        value_range=CLIPPING_RANGE,
        num_sites=case.clients,
        ring_bits=case.ring_bits,
    )


@lru_cache
def _own_encoding(case: Case) -> Timing:
    codec, like = _codec(case), RingVector.zeros(0, 1)
    return Timing.of([_encoded(codec, i, like)[1] for i in range(_ENCODINGS)])


def _encoded(codec: Codec, client: int, like: RingVector) -> tuple[RingVector, float]:
    """The update that flwr's client gets too, encoded, and the CPU seconds."""
    tensors = {"update": update(client, codec.length)}
    stream = simulation_stream(client, "benchmark")
    encoded, seconds = timed(codec.encode, tensors, stream)
    lane = np.arange(like.lane.size, dtype=like.lane.dtype)
    return RingVector(encoded.vector, lane), seconds


# -------------------------------------------------------------------- rows


def _their_total(costs: FlwrCosts) -> float:
    stages = sum(median(seconds) for seconds in costs.client.values())
    return stages - median(costs.encoding)


def _their_client(section: Section, costs: FlwrCosts, number: int, length: int) -> None:
    stages = dict(costs.client)
    masking = Timing.of(stages["collect_masked_vectors"])
    encoding = Timing.of(costs.encoding)
    up, down = _bytes(costs.up), _bytes(costs.down)
    section.add(
        system="flwr",
        clients=number,
        parameters=length,
        ring_bits=32,
        set_up_ms=Timing.of(stages["setup"]).scaled(MS),
        share_keys_ms=Timing.of(stages["share_keys"]).scaled(MS),
        mask_ms=masking.shifted(-encoding.median).scaled(MS),
        confirm_and_unmask_ms=Timing.of(stages["unmask"]).scaled(MS),
        total_ms=_their_total(costs) * MS,
        encode_ms=encoding.scaled(MS),
        bytes_up_per_parameter=up / length,
        up_bytes=up,
        down_bytes=down,
        calls=costs.calls,
    )


def _our_client(section: Section, played: Played) -> None:
    case = played.case
    up, down = played.up_bytes, played.down_bytes
    section.add(
        system="secfed",
        clients=case.clients,
        parameters=case.length,
        ring_bits=case.ring_bits,
        set_up_ms=played.steps("advertise_keys").scaled(MS),
        share_keys_ms=played.steps("share_keys").scaled(MS),
        mask_ms=played.steps("mask_input").scaled(MS),
        confirm_and_unmask_ms=played.steps("confirm_survivors", "unmask").scaled(MS),
        total_ms=played.client_total.scaled(MS),
        encode_ms=_own_encoding(case).scaled(MS),
        bytes_up_per_parameter=up / case.length,
        up_bytes=up,
        down_bytes=down,
        calls="all",
    )


def _bytes(sizes: dict[str, list[int]]) -> int:
    return int(sum(median(values) for values in sizes.values()))


def _their_server(section: Section, costs: FlwrCosts, number: int, length: int) -> None:
    for percent in costs.sums:
        section.add(
            system="flwr",
            clients=number,
            parameters=length,
            ring_bits=32,
            dropouts_percent=percent,
            add_ms=costs.sums[percent] * MS,
            unmask_ms=costs.unmasks[percent] * MS,
            calls=costs.calls,
        )


def _our_server(section: Section, played: Played) -> None:
    for percent, branch in played.branches.items():
        section.add(
            system="secfed",
            clients=played.case.clients,
            parameters=played.case.length,
            ring_bits=played.case.ring_bits,
            dropouts_percent=percent,
            add_ms=branch.sum_seconds * MS,
            unmask_ms=branch.unmask.scaled(MS),
            calls="all",
        )


def _compare(run: Run, section: Section, theirs: FlwrCosts, ours: Played) -> None:
    """Ratios of medians, and the goals at the largest size."""
    case = ours.case
    rows: dict[str, float] = {}
    total = ours.client_total.median
    rows["client, total"] = _their_total(theirs) / total
    their_encoding, our_encoding = median(theirs.encoding), _own_encoding(case).median
    rows["client, total with encoding"] = (_their_total(theirs) + their_encoding) / (
        total + our_encoding
    )
    masking = median(theirs.client["collect_masked_vectors"]) - their_encoding
    rows["client, masking stage"] = masking / ours.steps("mask_input").median
    for percent, seconds in theirs.unmasks.items():
        unmask = ours.branches[percent].unmask.median
        rows[f"server, unmask, {percent} % dropouts"] = seconds / unmask
    for name, ratio in rows.items():
        section.add(
            what=name,
            clients=case.clients,
            parameters=case.length,
            ring_bits=case.ring_bits,
            times_less=ratio,
        )
    if (case.clients, case.length) == run.plan.flwr[-1]:
        _note_goals(run, ours, rows)


def _note_goals(run: Run, ours: Played, ratios: dict[str, float]) -> None:
    bits, length = ours.case.ring_bits, ours.case.length
    where = f"n = {ours.case.clients}, d = {length:,}, {bits} bits"
    for name, wanted in (
        ("client, total", 15),
        ("client, total with encoding", 15),
        (f"server, unmask, {run.plan.percents[1]} % dropouts", 100),
    ):
        if name in ratios:
            full = f"{name}: flwr's CPU time over secfed's ({where})"
            run.at_least(full, wanted, ratios[name], "times")
    if bits == min(_RINGS):
        up = ours.up_bytes / length
        run.at_most(f"upload per parameter ({where})", 2.2, up, "bytes")
