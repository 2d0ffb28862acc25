"""Which sessions are measured, and whether this version of the protocol plays them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from protocols.errors import ProtocolError
from protocols.keys import SigningKey, generate_identity
from protocols.secagg.graph import GraphParameters, find_parameters
from protocols.secagg.params import (
    MAX_COMPLETE,
    Member,
    SessionParams,
    default_threshold,
)

__all__ = [
    "LANE_LENGTH",
    "MODEL",
    "Case",
    "fresh",
    "identity_of",
    "is_playable",
    "params_of",
]

LANE_LENGTH = 4
MODEL = hashlib.sha256(b"secfed/benchmark/model").digest()

_COLLUDING = 10  # percent that the sparse graphs are made for
_DROPPING = 30  # percent, likewise


@dataclass(frozen=True)
class Case:
    """One session to play."""

    clients: int
    length: int
    ring_bits: int = 32
    suite: int = 1

    @property
    def graph(self) -> str:
        """How clients are joined, for people."""
        if self.clients <= MAX_COMPLETE:
            return "complete"
        return f"{sparse_graph(self.clients).degree} neighbours"

    def __str__(self) -> str:
        return (
            f"{self.clients:,} clients ({self.graph}), {self.length:,} elements of "
            f"{self.ring_bits} bits, suite {self.suite}"
        )


def fresh(*labels: object) -> bytes:
    """32 bytes; the same in every run, so never use them for anything else."""
    return hashlib.sha256(repr(("secfed/benchmark", *labels)).encode()).digest()


@lru_cache(maxsize=1 << 15)
def identity_of(name: str) -> SigningKey:
    """A client's identity key."""
    return generate_identity(fresh("identity", name))


def params_of(case: Case) -> SessionParams:
    """The session's parameters.

    Raises:
        ProtocolError: This version does not know the ring, suite or graph.
    """
    names = [f"client-{number:05d}" for number in range(case.clients)]
    roster = tuple(Member(name, identity_of(name).public_bytes) for name in names)
    return SessionParams(
        study_digest=hashlib.sha256(b"secfed/benchmark/study").digest(),
        round=1,
        attempt=0,
        purpose="benchmark",
        roster=roster,
        body_length=case.length,
        lane_length=LANE_LENGTH,
        ring_bits=case.ring_bits,
        suite=case.suite,
        **_graph_of(case.clients),
    )


def _graph_of(clients: int) -> dict[str, Any]:
    if clients <= MAX_COMPLETE:
        return {"threshold": default_threshold(clients), "max_colluders": 1}
    degree, threshold = sparse_graph(clients)
    return {
        "threshold": threshold,
        "max_colluders": clients * _COLLUDING // 100,
        "degree": degree,
        "max_dropouts": clients * _DROPPING // 100,
        "mode": "semi-honest",
    }


@lru_cache
def sparse_graph(clients: int) -> GraphParameters:
    """Neighbours and threshold against a curious server."""
    fractions = (_COLLUDING / 100, _DROPPING / 100)
    return find_parameters(clients, *fractions, server="curious")


def is_playable(case: Case) -> bool:
    """Whether the installed protocol accepts this session."""
    known = {one.name for one in fields(SessionParams)}
    if case.clients > MAX_COMPLETE and "degree" not in known:
        return False
    try:
        params_of(case)
    except ProtocolError:
        return False
    return True
