"""What every party of a session agrees on before it starts.

These values come from the signed study, never from the server (SA-001…SA-004).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from protocols import kdf, labels, wire
from protocols.errors import MisuseError, RuleBrokenError
from protocols.keys import KEY_BYTES
from protocols.ring import RING_BITS, RingVector
from protocols.secagg.graph import Graph, verify_parameters
from protocols.suites import SUITES, Suite

__all__ = [
    "MAX_CLIENTS",
    "MAX_COMPLETE",
    "MIN_COHORT",
    "PHASES",
    "Member",
    "Phase",
    "SessionParams",
    "default_threshold",
    "min_threshold",
]

Phase = Literal[
    "advertise-keys", "share-keys", "masked-input", "confirm-survivors", "unmask"
]
PHASES: Final[tuple[Phase, ...]] = (
    "advertise-keys",
    "share-keys",
    "masked-input",
    "confirm-survivors",
    "unmask",
)
"""The phases in time order, named after what the client sends in them."""

MIN_COHORT: Final = 3
"""Of two inputs each party knows the other's by subtraction."""

MAX_COMPLETE: Final = 256
"""Largest complete graph; beyond it a cohort is split or the graph is sparse."""

MAX_CLIENTS: Final = 2**16 - 1
"""Indices have two bytes on the wire."""

_MODES: Final = ("malicious", "semi-honest")


def min_threshold(num_clients: int, max_colluders: int) -> int:
    """Smallest threshold that is safe against the server and its colluders.

    ``2 t > n + |C|`` keeps the server from collecting t shares of both secrets
    of one client (Bonawitz et al., CCS 2017, section 6.2).
    """
    return max(2, (num_clients + max_colluders) // 2 + 1)


def default_threshold(num_clients: int, max_colluders: int = 1) -> int:
    """``floor(2 n / 3) + 1``, or more where many colluders are assumed."""
    usual = 2 * num_clients // 3 + 1
    return max(usual, min_threshold(num_clients, max_colluders))


@dataclass(frozen=True)
class Member:
    """One client that may take part, with its pinned identity."""

    name: str
    identity: bytes  # Ed25519 public key, 32 bytes


@dataclass(frozen=True)
class SessionParams:
    """Everything that is fixed about one secure sum.

    Guarantees: in a complete graph ``2 * threshold > n + max_colluders``; in a
    sparse one the bounds of ``graph.verify_parameters``, which hold against a
    server that follows the protocol only. In both ``min_cohort`` inputs are in
    every sum. ``mode`` names the claim and is part of the session id.

    Attributes:
        study_digest: 32 bytes.
        round, attempt, purpose: What this sum is for; never the same twice.
        roster: Sorted by name; names and identities are unique.
        threshold: How many shares give a secret back, and how many clients must
            confirm a survivor list.
        max_colluders: Clients assumed to share what they see with the server.
        body_length, lane_length: Elements of the vector.
        ring_bits: Width of a body element: 16, 32 or 64.
        suite: Number in ``suites.SUITES``.
        mode: Whether the server may deviate.
        degree: Neighbours of each client; 0 for a complete graph.
        max_dropouts: In a sparse graph, how many clients may leave, in all
            phases together.

    Raises:
        MisuseError: The values contradict each other.
    """

    study_digest: bytes
    round: int
    attempt: int
    purpose: str
    roster: tuple[Member, ...]
    threshold: int
    max_colluders: int
    body_length: int
    lane_length: int
    ring_bits: int = 32
    suite: int = 1
    mode: Literal["malicious", "semi-honest"] = "malicious"
    degree: int = 0
    max_dropouts: int = 0

    def __post_init__(self) -> None:
        self._check_roster()
        self._check_threshold()
        self._check_shape()

    def _check_roster(self) -> None:
        """SA-001: at least 3 members, sorted; names and identities are unique."""
        names = [member.name for member in self.roster]
        identities = {member.identity for member in self.roster}
        largest = MAX_CLIENTS if self.degree else MAX_COMPLETE
        if not MIN_COHORT <= len(names) <= largest:
            raise MisuseError(f"a roster has {MIN_COHORT} to {largest} members")
        if names != sorted(set(names)) or not all(names):
            raise MisuseError("roster names must be sorted, unique and not empty")
        if len(identities) != len(names):
            raise MisuseError("two members of the roster have the same identity")
        if any(len(identity) != KEY_BYTES for identity in identities):
            raise MisuseError(f"identities must have {KEY_BYTES} bytes")

    def _check_threshold(self) -> None:
        """SA-002: the threshold is safe and can be reached."""
        n, colluders = len(self.roster), self.max_colluders
        if not 0 <= colluders < n or not 0 <= self.max_dropouts < n:
            raise MisuseError("max_colluders and max_dropouts must be in 0..n-1")
        if self.min_cohort > n:
            raise MisuseError(f"{self.min_cohort} inputs are needed of {n} clients")
        if self.degree:
            self._check_sparse()
            return
        least = min_threshold(n, colluders)
        if self.max_dropouts or not least <= self.threshold <= n:
            raise MisuseError(
                f"threshold {self.threshold} must be in {least}..{n} for {n} clients "
                f"and {colluders} colluders; max_dropouts is for sparse graphs"
            )

    def _check_sparse(self) -> None:
        """SA-002: a sparse graph is for a server that follows the protocol."""
        if self.mode != "semi-honest":
            raise MisuseError("a sparse graph needs mode 'semi-honest'; use cohorts")
        verify_parameters(
            len(self.roster),
            self.max_colluders,
            self.max_dropouts,
            self.degree,
            self.threshold,
        )

    def _check_shape(self) -> None:
        """SA-003: known suite, ring and mode; SA-004: fields fit their width."""
        if self.suite not in SUITES or self.mode not in _MODES:
            raise MisuseError(f"unknown suite {self.suite} or mode {self.mode!r}")
        if self.ring_bits not in RING_BITS:
            raise MisuseError(f"ring_bits must be one of {RING_BITS}")
        if len(self.study_digest) != kdf.DIGEST_BYTES:
            raise MisuseError(f"study_digest must have {kdf.DIGEST_BYTES} bytes")
        for name in ("round", "attempt", "body_length", "lane_length"):
            if not 0 <= getattr(self, name) < 2**32:
                raise MisuseError(f"{name} must fit four bytes")

    @property
    def min_cohort(self) -> int:
        """Fewest inputs in a sum: colluders apart, another one hides each."""
        least = max(self.threshold, MIN_COHORT, self.max_colluders + 2)
        return max(least, len(self.roster) - self.max_dropouts if self.degree else 0)

    @cached_property
    def primitives(self) -> Suite:
        """The suite behind the number."""
        return SUITES[self.suite]

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {member.name: index for index, member in enumerate(self.roster)}

    def index_of(self, name: str) -> int:
        """A member's position in the roster; its number on the wire."""
        if name not in self._indices:
            raise MisuseError(f"{name!r} is not a member of this session")
        return self._indices[name]

    def name_of(self, index: int) -> str:
        """The member at a position of the roster."""
        return self.roster[index].name

    def zeros(self) -> RingVector:
        """A zero vector of this session's shape."""
        return RingVector.zeros(self.body_length, self.lane_length, self.ring_bits)

    def fits(self, vector: RingVector) -> bool:
        """Whether ``vector`` has this session's ring and lengths."""
        shape = (vector.ring_bits, vector.body.size, vector.lane.size)
        return shape == (self.ring_bits, self.body_length, self.lane_length)

    def require_cohort(self, size: int, rule: str) -> None:
        """Refuse fewer inputs than every sum must have, citing ``rule``."""
        if size < self.min_cohort:
            raise RuleBrokenError(rule, f"{size} clients, {self.min_cohort} are needed")

    def require_threshold(self, size: int, rule: str) -> None:
        """Refuse fewer clients than give a secret back, citing ``rule``."""
        if size < self.threshold:
            raise RuleBrokenError(rule, f"{size} clients, {self.threshold} are needed")

    def graph(self, context: bytes) -> Graph:
        """Who shares with whom, once the directory is fixed (SA-107).

        The seed of a sparse graph covers the nonces of all clients, so no single
        one of them chooses its place.
        """
        if not self.degree:
            return Graph.complete(len(self.roster))
        seed = kdf.digest(labels.GRAPH, context)
        return Graph.harary(len(self.roster), self.degree, seed)

    @cached_property
    def _roster_root(self) -> bytes:
        entries = [(member.name.encode(), member.identity) for member in self.roster]
        return kdf.digest(labels.ROSTER, *(part for e in entries for part in e))

    def session_id(self, model_digest: bytes) -> bytes:
        """The 32-byte id of this session for one received model (SA-007).

        It covers all parameters and the digest of the model that the caller
        itself received: parties that were shown different models, rosters or
        parameters derive different keys and refuse each other's signatures.
        """
        if len(model_digest) != kdf.DIGEST_BYTES:
            raise MisuseError(f"model_digest must have {kdf.DIGEST_BYTES} bytes")
        numbers = (
            self.threshold,
            self.max_colluders,
            self.body_length,
            self.lane_length,
            self.ring_bits,
            self.degree,
            self.max_dropouts,
        )
        parameters = kdf.digest(
            labels.PARAMETERS, self.mode.encode(), *map(wire.u32, numbers)
        )
        return kdf.digest(
            labels.SESSION,
            wire.u8(self.suite),
            self.study_digest,
            wire.u32(self.round),
            wire.u32(self.attempt),
            self.purpose.encode(),
            model_digest,
            self._roster_root,
            parameters,
        )
