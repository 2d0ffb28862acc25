"""The secure sums of one round: one, or one of each cohort, closed in step.

Up to 256 sites are one session. More are split into cohorts that the sorted roster
fixes (``protocols.secagg.graph.cohorts``); each is a session of its own with a complete
graph, and the round's sum is the sum of theirs. The coordinator learns the sum of each
cohort. Every phase ends for all of them together, so no share is asked for before every
cohort has confirmed its survivors, and one that has too few sites aborts the round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TypeVar

import numpy as np

from secfed.errors import CodecError, RoundAbortedError
from secfed.runtime.sessions import RoundTerms
from secfed.server import Coordinator, SecureSum

__all__ = ["Cohorts"]

_V = TypeVar("_V")


class Cohorts:
    """The coordinator of a round, with the steps of ``secfed.server.Coordinator``.

    Args:
        terms: The round's codec and sessions.
        model_digest: Of the base and of the adapter that was sent.
    """

    def __init__(self, terms: RoundTerms, model_digest: bytes) -> None:
        self._codec = terms.codec
        self._sums = tuple(
            Coordinator(params, model_digest, terms.codec) for params in terms.sessions
        )
        self._of = {
            member.name: one for one in self._sums for member in one.params.roster
        }
        self.result: SecureSum | None = None

    @property
    def phase(self) -> str:
        """The phase whose messages are collected now; the same in every cohort."""
        return self._sums[0].phase

    @property
    def bytes_up(self) -> int:
        """What was received."""
        return sum(one.bytes_up for one in self._sums)

    @property
    def bytes_down(self) -> int:
        """What was sent."""
        return sum(one.bytes_down for one in self._sums)

    @property
    def blamed(self) -> tuple[str, ...]:
        """Whose messages were refused, in every cohort."""
        return tuple(site for one in self._sums for site in one.blamed)

    def receive(self, client: str, message: bytes) -> None:
        """Take one client's message of the current phase.

        A client of no cohort is the first one's to refuse.
        """
        self._of.get(client, self._sums[0]).receive(client, message)

    def close(self) -> dict[str, bytes]:
        """End the phase; returns the next message for each remaining client.

        Raises:
            RoundAbortedError: Too few answered in some cohort, or shares do not fit.
        """
        outgoing: dict[str, bytes] = {}
        for one in self._sums:
            outgoing |= one.close()
        results = [one.result for one in self._sums if one.result is not None]
        if len(results) == len(self._sums):
            self.result = self._added(results)
        return outgoing

    def _added(self, results: list[SecureSum]) -> SecureSum:
        """The one sum as it is, or that of all cohorts; elements wrap as in the ring.

        The codec leaves room for all sites of the study.
        """
        if len(results) == 1:
            return results[0]
        total = reduce(np.add, (result.total for result in results))
        survivors = tuple(sorted(s for result in results for s in result.survivors))
        try:
            mean = self._codec.decode_mean(total, len(survivors))
        except CodecError as error:
            raise RoundAbortedError("unmask", (), str(error)) from error
        return SecureSum(
            mean=mean,
            total=total,
            survivors=survivors,
            dropouts=_joined(result.dropouts for result in results),
            silent=_joined(result.silent for result in results),
            saturated=sum(result.saturated for result in results),
            suspected=tuple(s for result in results for s in result.suspected),
            metrics={
                name: sum(result.metrics[name] for result in results)
                for name in results[0].metrics
            },
        )


def _joined(parts: Iterable[Mapping[str, _V]]) -> dict[str, _V]:
    return {name: value for part in parts for name, value in part.items()}
