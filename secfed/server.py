"""The coordinator in one round: bytes in, one sum out.

It is handed nothing but messages. What it learns is the sum of the survivors'
encodings; the strategy turns their mean into the next adapter. This module
cannot reach site data, models or training (an import contract).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocols.errors import (
    FaultyClientError,
    FaultySharesError,
    MessageError,
    TooFewSurvivorsError,
)
from protocols.secagg import server as secagg
from protocols.secagg.params import SessionParams
from secfed.codec import Codec, RingArray
from secfed.errors import CodecError, RoundAbortedError
from secfed.types import Tensors

__all__ = ["Coordinator", "SecureSum"]


@dataclass(frozen=True)
class SecureSum:
    """The result of a round.

    Attributes:
        mean: Mean of the survivors' updates, decoded.
        total: The ring elements of the sum, for the ledger's digest.
        survivors: Sites whose update is in the sum, sorted.
        dropouts: Every other site and the last phase it answered ("" if none).
        silent: Survivors that answered no more after their masked input, and the
            last phase they answered; the others' shares opened the sum.
        saturated: Numbers cut by the codec, summed over the survivors.
        suspected: Sentences that name groups of sites of which one deviated.
        metrics: Sums of the lane's metrics; none where updates are summed.
    """

    mean: Tensors
    total: RingArray
    survivors: tuple[str, ...]
    dropouts: Mapping[str, str]
    silent: Mapping[str, str]
    saturated: int
    suspected: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


class Coordinator:
    """Collects one round's messages phase by phase.

    ``receive`` takes a client's message of the current phase, ``close`` ends the
    phase and returns what to send to whom; after the fifth close, ``result``
    holds the sum. A message that is not valid drops its sender, by name.
    """

    def __init__(
        self, params: SessionParams, model_digest: bytes, codec: Codec
    ) -> None:
        self.params = params
        self._codec = codec
        self._state: Any = secagg.open_session(params, model_digest)
        self._steps = iter(_PHASES)
        self._phase, self._take, self._end = next(self._steps)
        self._answered: dict[str, str] = {}
        self.blamed: dict[str, str] = {}
        self.bytes_up = 0
        self.bytes_down = 0
        self.result: SecureSum | None = None

    @property
    def phase(self) -> str:
        """The phase whose messages are collected now."""
        return self._phase

    def receive(self, client: str, message: bytes) -> None:
        """Take one client's message of the current phase."""
        self.bytes_up += len(message)
        try:
            self._state = self._take(self._state, client, message)
        except (FaultyClientError, MessageError) as error:
            self.blamed[client] = str(error)
            return
        self._answered[client] = self._phase

    def close(self) -> dict[str, bytes]:
        """End the phase; returns the next message for each remaining client.

        Raises:
            RoundAbortedError: Too few answered, or shares do not fit; the sum is
                not opened and nothing is learned.
        """
        try:
            closed = self._end(self._state)
        except TooFewSurvivorsError as error:
            raise RoundAbortedError(
                self._phase,
                sorted(self.blamed),
                f"{error}; the adapter of the round before stands. Start the next "
                "round when more sites are reachable"
                + "".join(f". {one}" for one in self._suspected()),
            ) from error
        except FaultySharesError as error:
            raise RoundAbortedError(
                self._phase, (error.dealer, *error.holders), str(error)
            ) from error
        except FaultyClientError as error:
            raise RoundAbortedError(self._phase, (error.client,), str(error)) from error
        following = next(self._steps, None)
        if following is None:
            self.result = self._decode(closed)
            return {}
        self._state, outgoing = closed
        self._phase, self._take, self._end = following
        self.bytes_down += sum(len(message) for message in outgoing.values())
        return dict(outgoing)

    def _suspected(self) -> tuple[str, ...]:
        return _sentences(getattr(self._state, "suspicions", ()))

    def _decode(self, closed: secagg.SumResult) -> SecureSum:
        survivors = tuple(sorted(closed.survivors))
        try:
            lane = self._codec.lane.decode(closed.total.lane, len(survivors))
            mean = self._codec.decode_mean(closed.total.body, len(survivors))
        except CodecError as error:
            raise RoundAbortedError("unmask", (), str(error)) from error
        dropouts = {
            member.name: self._answered.get(member.name, "")
            for member in self.params.roster
            if member.name not in survivors
        }
        return SecureSum(
            mean=mean,
            total=closed.total.body,
            survivors=survivors,
            dropouts=dropouts,
            silent={
                name: self._answered[name]
                for name in survivors
                if self._answered[name] != _PHASES[-1][0]
            },
            saturated=lane.saturated,
            suspected=_sentences(closed.blamed),
            metrics=lane.metrics,
        )


def _sentences(suspicions: Iterable[secagg.Suspicion]) -> tuple[str, ...]:
    return tuple(
        f"One of {', '.join(one.clients)} deviated ({one.rule})" for one in suspicions
    )


_Take = Callable[[Any, str, bytes], Any]
_End = Callable[[Any], Any]
_PHASES: tuple[tuple[str, _Take, _End], ...] = (
    ("advertise", secagg.receive_keys, secagg.close_keys),
    ("shares", secagg.receive_shares, secagg.close_shares),
    ("masked-input", secagg.receive_input, secagg.close_inputs),
    ("confirm", secagg.receive_confirmation, secagg.close_confirmations),
    ("unmask", secagg.receive_reveal, secagg.close_reveals),
)
