"""Who shares secrets with whom: the communication graph of SecAgg+.

Bell, Bonawitz, Gascon, Lepoint, Raykova, CCS 2020: in place of all pairs, a
k-regular Harary graph along a random ring, whose degree k and threshold t come
from tail bounds. Up to 256 clients the complete graph is cheap and needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import exp, floor, lgamma, log
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocols.errors import MisuseError
from protocols.prg import Stream

__all__ = [
    "Graph",
    "GraphParameters",
    "cohorts",
    "find_parameters",
    "verify_parameters",
]

Server = Literal["curious", "semi-malicious"]

_MAX_CLIENTS: Final = 1_000_000
"""The accuracy of the tails below is shown up to here."""

_LARGEST_TOTAL: Final = 0.9
"""Of colluding and dropping fractions; above it the search is long and vain."""

_LEAST_THRESHOLD: Final = 2
"""With one share each holder would know the secret."""

_SMALLEST_COHORT: Final = 3
"""Of two inputs each party knows the other's by subtraction."""

_SLACK: Final = 1e-6
"""Every bound is tightened by this fraction, so that rounding cannot loosen it.

A log factorial below 1,000,000! is off by less than 1e-8; a log probability adds
nine of them; a tail is a sum of positive terms. So a tail is off by less than
2e-7 of itself. The tests compare with exact integers.
"""


class GraphParameters(NamedTuple):
    """Neighbours of each client, and shares that reconstruct a secret."""

    degree: int
    threshold: int


# Hypergeometric tails


@lru_cache(maxsize=4)
def _log_factorials(largest: int) -> NDArray[np.float64]:
    """The natural logarithms of 0!, 1!, ... ``largest``!."""
    table = np.array([lgamma(number + 1) for number in range(largest + 1)])
    table.setflags(write=False)
    return table


def _hypergeometric(population: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """P[exactly x marked ones among those drawn], for x = 0 to ``drawn``."""
    logs = _log_factorials(population)
    unmarked, left = population - marked, population - drawn
    x: NDArray[np.int64] = np.arange(max(0, drawn - unmarked), min(drawn, marked) + 1)
    whole = logs[drawn] + logs[left] + logs[marked] + logs[unmarked] - logs[population]
    parts = logs[x] + logs[drawn - x] + logs[marked - x] + logs[unmarked - drawn + x]
    probabilities = np.zeros(drawn + 1)
    probabilities[x] = np.exp(whole - parts)
    return probabilities


@dataclass(frozen=True)
class _Crowd:
    """How many clients there are, and how many of them collude or drop out."""

    num_clients: int
    colluders: int
    dropouts: int

    def disconnected(self, degree: int) -> float:
        """Bound on P[the honest survivors are not connected].

        Two gaps of ``degree / 2`` bad clients in a row cut the ring in two; the
        union bound runs over the places of the two gaps.
        """
        n, bad = self.num_clients, self.colluders + self.dropouts
        pairs_of_gaps = n * (n - degree - 1) // 2
        if degree > bad or pairs_of_gaps == 0:
            return 0.0
        logs = _log_factorials(n)
        all_bad = logs[bad] - logs[bad - degree] + logs[n - degree] - logs[n]
        return min(1.0, exp(log(pairs_of_gaps) + float(all_bad)))

    def exposed(self, degree: int) -> NDArray[np.float64]:
        """Expected clients with >= t colluding neighbours, for t = 0 to degree + 1.

        It bounds the probability that there is one. Colluding clients are
        counted too, which only adds: the sum over all clients is n times the
        tail for ``degree`` draws from all n.
        """
        draws = _hypergeometric(self.num_clients, self.colluders, degree)
        at_least = draws[::-1].cumsum()[::-1]
        return self.num_clients * np.append(at_least, 0.0)

    def stranded(self, degree: int) -> NDArray[np.float64]:
        """Expected clients with < t live neighbours, for t = 0 to degree + 1."""
        live = self.num_clients - self.dropouts
        at_most = _hypergeometric(self.num_clients, live, degree).cumsum()
        return self.num_clients * np.append(0.0, at_most)


def _allowed(bits: int) -> float:
    return float(2.0**-bits) * (1 - _SLACK)


# Degree and threshold


def find_parameters(
    num_clients: int,
    corrupt_fraction: float,
    dropout_fraction: float,
    *,
    server: Server,
    security_bits: int = 40,
    failure_bits: int = 20,
) -> GraphParameters:
    """The smallest even degree, with its smallest threshold, that is safe.

    The bounds are those of Bell et al., CCS 2020, in the exact form of the
    public reference implementation (google-parfait/federated-compute,
    ``fcp/secagg/server/graph_parameter_finder.cc``). With n clients, c colluding
    and d dropping ones, degree k and threshold t:

    * the honest survivors are connected, but for 2^-(security_bits + 1);
    * no client has t colluding neighbours, but for 2^-(security_bits + 1);
    * every client has t live neighbours, but for 2^-failure_bits (which that
      implementation forgets where it raises t to 2, for crowds of about ten);
    * for ``server="semi-malicious"`` also 2 t > k + colluding neighbours, so
      that the server never gets t shares of both secrets of one client.

    Requires: colluders and dropouts are spread over the ring at random. See
    ``verify_parameters`` for what that excludes.

    Args:
        num_clients: n, up to 1,000,000.
        corrupt_fraction: c / n, at least 0; c is rounded down.
        dropout_fraction: d / n, at least 0; d is rounded down. The sum of both
            fractions is at most 0.9, with the second one doubled for a
            semi-malicious server.
        server: What the server may do.
        security_bits: Privacy fails with probability below 2^-security_bits.
        failure_bits: A session fails with probability below 2^-failure_bits.

    Raises:
        MisuseError: A value is out of range, or only the complete graph will do.
    """
    _check_fractions(num_clients, corrupt_fraction, dropout_fraction, server)
    crowd = _Crowd(
        num_clients,
        _count(corrupt_fraction, num_clients),
        _count(dropout_fraction, num_clients),
    )
    secret, alive = _allowed(security_bits + 1), _allowed(failure_bits)
    for degree in range(2, num_clients - 1, 2):
        if crowd.disconnected(degree) > secret:
            continue
        least = _first(crowd.exposed(degree) <= secret)
        if server == "semi-malicious":
            least = (degree + least - 1) // 2 + 1
        threshold = max(least, _LEAST_THRESHOLD)
        if crowd.stranded(degree)[threshold] <= alive:
            return GraphParameters(degree, threshold)
    raise MisuseError(f"no sparse graph of {num_clients} clients is safe")


def _check_fractions(
    num_clients: int, corrupt: float, dropout: float, server: Server
) -> None:
    if server not in ("curious", "semi-malicious"):
        raise MisuseError(f"unknown kind of server {server!r}")
    if not 1 <= num_clients <= _MAX_CLIENTS:
        raise MisuseError(f"num_clients must be in 1..{_MAX_CLIENTS}")
    total = corrupt + dropout * (1 if server == "curious" else 2)
    # The negated form also refuses NaN.
    if not (corrupt >= 0 and dropout >= 0 and total <= _LARGEST_TOTAL):
        raise MisuseError("the fractions are negative, or too large for any graph")


def _count(fraction: float, num_clients: int) -> int:
    """``floor(fraction n)``, unharmed by a product such as 0.29 * 100 < 29."""
    return floor((fraction + 1e-14) * num_clients)


def _first(conditions: NDArray[np.bool_]) -> int:
    return int(conditions.argmax())


def verify_parameters(
    num_clients: int,
    max_colluders: int,
    max_dropouts: int,
    degree: int,
    threshold: int,
    *,
    security_bits: int = 40,
    failure_bits: int = 20,
) -> None:
    """Recompute the bounds of a sparse graph before joining its session.

    For the semi-honest mode only: the bounds assume that dropouts are random,
    and that nobody tried out permutations until the colluders came to lie well.
    A malicious server chooses who seems to drop out, and may grind; there,
    split the roster with ``cohorts``.

    The shares of a client's secrets are held by its neighbours and itself.
    An honest client's own share is not the colluders', so they hold at most as
    many as they are among its ``degree`` neighbours. A dropped client's own
    share is gone, so ``threshold`` live neighbours are needed.

    Args:
        num_clients: Members of the roster.
        max_colluders: Clients that may collude with the server.
        max_dropouts: Clients that may drop out, in all phases together.
        degree: Neighbours of each client; even.
        threshold: Shares that reconstruct a secret.
        security_bits: Each of two events must be below half of 2^-security_bits.
        failure_bits: Too few live neighbours must be below 2^-failure_bits.

    Raises:
        MisuseError: A value is out of range, or a bound fails; it says which,
            and the value.
    """
    _check_degree(num_clients, degree)
    if not _LEAST_THRESHOLD <= threshold <= degree:
        raise MisuseError(f"threshold {threshold} must be in 2..{degree}")
    if min(max_colluders, max_dropouts) < 0:
        raise MisuseError("max_colluders and max_dropouts must not be negative")
    if max_colluders + max_dropouts > num_clients - 2:
        raise MisuseError("fewer than two honest clients may be left in the sum")
    crowd = _Crowd(num_clients, max_colluders, max_dropouts)
    secret = security_bits + 1
    _require("survivors fall apart", crowd.disconnected(degree), secret)
    _require("colluders open a client", crowd.exposed(degree)[threshold], secret)
    _require("live neighbours too few", crowd.stranded(degree)[threshold], failure_bits)


def _require(event: str, probability: float, bits: int) -> None:
    """Refuse a bound on the probability of ``event`` that is not below 2^-bits."""
    if probability > _allowed(bits):
        value = min(1.0, probability)
        raise MisuseError(
            f"{event}: probability up to {value:.2g}, 2^-{bits} is allowed"
        )


def _check_degree(num_clients: int, degree: int) -> None:
    if not _SMALLEST_COHORT <= num_clients <= _MAX_CLIENTS:
        raise MisuseError(f"num_clients must be in {_SMALLEST_COHORT}..{_MAX_CLIENTS}")
    if degree % 2 or not 0 < degree < num_clients:
        raise MisuseError(
            f"degree {degree} must be even and in 2..{num_clients - 1} "
            f"for {num_clients} clients"
        )


# The graph


@dataclass(frozen=True)
class Graph:
    """Who is whose neighbour among clients 0 to ``size - 1``.

    Guarantees: every client has ``degree`` neighbours; being neighbours is
    mutual; the graph is connected.
    """

    size: int
    degree: int
    # The clients along the ring, with degree / 2 repeated at either end, and
    # the place of each. Empty for the complete graph.
    _ring: tuple[int, ...] = field(default=(), repr=False)
    _places: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def complete(cls, size: int) -> Graph:
        """All are neighbours of all."""
        return cls(size, size - 1)

    @classmethod
    def harary(cls, size: int, degree: int, seed: bytes) -> Graph:
        """Neighbours are those at most ``degree / 2`` steps away on a random ring.

        The order on the ring is that of 128-bit keys, client i's being bytes
        16 i to 16 i + 15 of the seed's stream as a little-endian number; equal
        keys stay in order of index. So every order is equally likely, but for
        the chance of an equal pair: below n^2 / 2^129, 2^-97 for 65,535 clients.
        The last result for each of a few seeds is kept and shared.

        Args:
            size: Number of clients, n.
            degree: Even, at least 2 and below ``size``.
            seed: 32 bytes for nothing else, which no party could choose.

        Raises:
            MisuseError: No such graph exists, or the seed has another length.
        """
        _check_degree(size, degree)
        return _harary(size, degree, seed)

    def neighbours(self, index: int) -> frozenset[int]:
        """The neighbours of one client, without itself."""
        return self.closed(index) - {index}

    def closed(self, index: int) -> frozenset[int]:
        """The neighbours of one client and itself: who holds its shares."""
        if not 0 <= index < self.size:
            raise MisuseError(f"no client {index} in a graph of {self.size}")
        if not self._ring:
            return frozenset(range(self.size))
        place = self._places[index]
        return frozenset(self._ring[place : place + self.degree + 1])


@lru_cache(maxsize=8)
def _harary(size: int, degree: int, seed: bytes) -> Graph:
    order = _permutation(size, seed)
    places = np.empty_like(order)
    places[order] = np.arange(size)
    half = degree // 2
    ring = np.concatenate((order[-half:], order, order[:half]))
    return Graph(size, degree, tuple(ring.tolist()), tuple(places.tolist()))


def _permutation(size: int, seed: bytes) -> NDArray[np.int64]:
    """0 to ``size - 1`` in the order of the keys that ``harary`` describes."""
    keys = np.frombuffer(Stream(seed).read(16 * size), dtype="<u8").reshape(size, 2)
    return np.lexsort((keys[:, 0], keys[:, 1]))


def cohorts(roster_size: int, largest: int = 256) -> tuple[range, ...]:
    """Split the sorted roster into the fewest slices of at most ``largest``.

    In malicious mode each slice is a complete graph of its own, and so fixed by
    the roster; the server learns the sum of each.

    Guarantees: the slices are contiguous, in order, cover the roster, differ
    in size by at most one, and have at least 3 members.

    Raises:
        MisuseError: No such split exists.
    """
    count = -(-roster_size // max(largest, 1))
    if roster_size < _SMALLEST_COHORT * max(count, 1):
        raise MisuseError(
            f"{roster_size} clients cannot form cohorts of "
            f"{_SMALLEST_COHORT} to {largest}"
        )
    bounds = [place * roster_size // count for place in range(count + 1)]
    return tuple(range(start, end) for start, end in pairwise(bounds))
