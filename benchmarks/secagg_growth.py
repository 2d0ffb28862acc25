"""How secfed's cost grows: with clients, parameters and dropouts; and suites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.measure import exponent
from benchmarks.secagg_run import Run
from benchmarks.secagg_session import Played
from benchmarks.sections import MS, Section

__all__ = ["growth", "large", "suites"]

_SUITES = {
    1: "X25519, AES-256-CTR masks",
    2: "X25519 and ML-KEM-768, AES-256-CTR masks",
    3: "X25519, ChaCha20 masks",
}


def large(run: Run) -> Iterator[Section]:
    """Sizes at which only secfed is measured."""
    section = Section(
        "large",
        "secfed at larger sizes",
        "CPU milliseconds: the median client, and the server for all clients "
        "together, and CPU seconds of all clients and the server. Keys are phases 0 "
        "and 1; unmask is the end.",
    )
    cost = Section(
        "recovery",
        "What a dropout costs the server",
        "The slope of unmasking over dropouts, by least squares, beside unmasking "
        "without any.",
    )
    for case, percents in run.plan.large:
        for playable in run.playable([case]):
            played = run.play(playable, percents)
            _large_rows(section, played)
            _recovery_row(cost, played)
    yield section
    yield cost


def _large_rows(section: Section, played: Played) -> None:
    case = played.case
    for percent, branch in played.branches.items():
        section.add(
            clients=case.clients,
            parameters=case.length,
            ring_bits=case.ring_bits,
            graph=case.graph,
            dropouts_percent=percent,
            client_ms=played.client_total.scaled(MS),
            up_bytes=played.up_bytes,
            down_bytes=played.down_bytes,
            server_keys_ms=played.keys_seconds * MS,
            add_ms=branch.sum_seconds * MS,
            confirm_ms=branch.confirm * MS,
            unmask_ms=branch.unmask.scaled(MS),
            all_parties_s=played.session_seconds(percent),
        )


def _recovery_row(section: Section, played: Played) -> None:
    branches = list(played.branches.values())
    gone = [branch.dropouts for branch in branches]
    if len(set(gone)) < 2:  # noqa: PLR2004
        return
    costs = [branch.unmask.median for branch in branches]
    slope, _ = np.polyfit(gone, costs, deg=1)
    section.add(
        clients=played.case.clients,
        parameters=played.case.length,
        ring_bits=played.case.ring_bits,
        graph=played.case.graph,
        without_ms=costs[0] * MS,
        per_dropout_ms=float(slope) * MS,
    )


def growth(run: Run) -> Iterator[Section]:
    """Exponents p of cost ~ size ** p, by least squares on logarithms."""
    section = Section(
        "growth",
        "How cost grows",
        "Exponent p in cost ~ size^p, by least squares on logarithms, no dropouts. "
        "Below the largest sizes constant costs weigh, so p comes out lower than "
        "it is in the limit.",
    )
    for name, cases in (
        ("parameters", run.plan.by_length),
        ("clients, complete graph", run.plan.by_clients),
        ("clients, sparse graph", run.plan.by_clients_sparse),
    ):
        played = [run.play_once(case) for case in run.playable(cases)]
        if len(played) > 1:
            _growth_rows(section, name, played)
    yield section


def _growth_rows(section: Section, name: str, played: Sequence[Played]) -> None:
    first, last = played[0].case, played[-1].case
    along = "length" if first.length != last.length else "clients"
    at = f"{first.clients} clients" if along == "length" else f"{first.length:,} long"
    sizes = [getattr(one.case, along) for one in played]
    costs = {
        "client, total": [one.client_total.median for one in played],
        "client, masking step": [one.steps("mask_input").median for one in played],
        "server, adding": [one.branches[0].sum_seconds for one in played],
        "server, unmasking": [one.branches[0].unmask.median for one in played],
        "server, all": [one.server_seconds() for one in played],
        "bytes up per client": [one.up_bytes for one in played],
        "bytes down per client": [one.down_bytes for one in played],
    }
    for cost, values in costs.items():
        section.add(
            cost=cost,
            grows_with=name,
            from_size=sizes[0],
            to_size=sizes[-1],
            at=at,
            exponent=round(exponent(sizes, values), 2),
        )


def suites(run: Run) -> Iterator[Section]:
    """Every suite that this version knows, over the same vectors."""
    section = Section(
        "suites",
        "Suites",
        "CPU milliseconds: the median client, and the server for all clients, "
        "without dropouts and with a tenth.",
    )
    cases = [replace(run.plan.suites, suite=suite) for suite in _SUITES]
    for case in run.playable(cases):
        percent = max(10, 100 // case.clients + 1)
        played = run.play(case, (0, percent))
        healthy, recovered = played.branches.values()
        section.add(
            suite=case.suite,
            what=_SUITES[case.suite],
            clients=case.clients,
            parameters=case.length,
            client_ms=played.client_total.scaled(MS),
            server_ms=played.server_seconds() * MS,
            unmask_ms=healthy.unmask.scaled(MS),
            unmask_after_dropouts_ms=recovered.unmask.scaled(MS),
            up_bytes=played.up_bytes,
            down_bytes=played.down_bytes,
        )
    yield section
