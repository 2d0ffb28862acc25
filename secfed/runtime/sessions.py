"""What the coordinator and every site derive for one round, each for itself.

Nothing here is taken from a message but the adapter: the codec, the roster, the
threshold and the session follow from the signed study and the pinned identities.
All runtimes use it, so that a round is the same round wherever it runs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
from safetensors.numpy import save

from protocols.secagg.graph import cohorts
from protocols.secagg.params import (
    MAX_COMPLETE,
    Member,
    SessionParams,
    default_threshold,
)
from secfed.codec import Codec, Metric
from secfed.errors import RoundAbortedError, SecfedError
from secfed.privacy.held_back import EvaluationPlan, cell_names
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.encoding import codec_for
from secfed.server import SecureSum
from secfed.study import Study
from secfed.types import Adapter

__all__ = [
    "EVALUATING",
    "PHASES",
    "TRAINING",
    "Link",
    "RoundTerms",
    "Sums",
    "broadcast_of",
    "evaluation_terms",
    "model_digest",
    "sessions_of",
    "smallest_sum",
    "sum_under_masks",
    "terms_of",
]

PHASES: Final = {
    "advertise": "advertise keys",
    "shares": "share keys",
    "masked-input": "masked input",
    "confirm": "confirm survivors",
    "unmask": "unmask",
}
"""The phases of ``secfed.server.Coordinator`` in order, and their names for people."""

TRAINING: Final = "local training"
EVALUATING: Final = "evaluation on held-back records"


@dataclass(frozen=True)
class RoundTerms:
    """The public parameters of one round: one session, or one of each cohort."""

    codec: Codec
    sessions: tuple[SessionParams, ...]

    def of(self, site: str) -> SessionParams:
        """The session that a site takes part in.

        Raises:
            KeyError: It is in none.
        """
        return self._sessions[site]

    def enough(self, sites: Collection[str]) -> bool:
        """Whether every session can be opened if these sites stay."""
        here = Counter(id(self._sessions[site]) for site in set(sites))
        return all(here[id(one)] >= one.threshold for one in self.sessions)

    @property
    def names(self) -> tuple[str, ...]:
        """The sites of all sessions."""
        return tuple(self._sessions)

    @property
    def threshold(self) -> int:
        """The fewest sites that every sum has."""
        return sum(one.threshold for one in self.sessions)

    @cached_property
    def _sessions(self) -> dict[str, SessionParams]:
        return {member.name: one for one in self.sessions for member in one.roster}


def broadcast_of(adapter: Adapter) -> bytes:
    """The bytes of an adapter as every site receives them (safetensors)."""
    return save({n: np.ascontiguousarray(v) for n, v in adapter.tensors.items()})


def model_digest(base_digest: str, broadcast: bytes) -> bytes:
    """SHA-256 of the base model's digest and of the adapter bytes as received."""
    return hashlib.sha256(bytes.fromhex(base_digest) + broadcast).digest()


def terms_of(
    study: Study,
    plans: Mapping[str, PrivacyPlan],
    identities: Mapping[str, bytes],
    adapter: Adapter,
    round_number: int,
    arm: str,
    *,
    private: bool = True,
) -> RoundTerms:
    """Derive the codec and the sessions of one round.

    Args:
        study: The study of this arm.
        plans: Every site's plan; public.
        identities: Every site's public identity key, 32 bytes; pinned.
        adapter: What the sites received.
        round_number: From 1.
        arm: Enters the session's purpose.
        private: False for the baseline without noise.

    Raises:
        CodecError: The ring is too small for so many sites.
    """
    codec = codec_for(study, plans, adapter, round_number, private=private)
    return RoundTerms(codec, sessions_of(study, identities, codec, round_number, arm))


def evaluation_terms(
    study: Study,
    evaluations: Mapping[str, EvaluationPlan],
    identities: Mapping[str, bytes],
    round_number: int,
    arm: str,
) -> RoundTerms:
    """Derive the session in which one evaluation is summed; it sends no update.

    Args:
        study: The study of this arm.
        evaluations: Every evaluating site's plan; public.
        identities: Their public identity keys, 32 bytes; pinned.
        round_number: The round that the evaluation follows.
        arm: Enters the session's purpose.

    Raises:
        CodecError: A range is too wide for so many sites.
    """
    plans = tuple(evaluations.values())
    metrics = tuple(
        Metric(cell, max(plan.largest(metric) for plan in plans))
        for metric in plans[0].metrics
        for cell in cell_names((metric,), plans[0].classes)
    )
    # A range is asked for; no number of a body uses it.
    codec = Codec((), value_range=1.0, num_sites=len(plans), metrics=metrics)
    own = {name: identities[name] for name in evaluations}
    return RoundTerms(
        codec, sessions_of(study, own, codec, round_number, arm, "evaluation")
    )


def sessions_of(
    study: Study,
    identities: Mapping[str, bytes],
    codec: Codec,
    round_number: int,
    arm: str,
    purpose: str = "update",
) -> tuple[SessionParams, ...]:
    """The parameters of a round's secure sums; arguments as for ``terms_of``.

    One session, or above 256 sites one of each cohort, as the sorted roster fixes them.
    """
    names = sorted(identities)
    return tuple(
        _session(
            study,
            {name: identities[name] for name in names[part.start : part.stop]},
            codec,
            round_number,
            arm,
            purpose,
        )
        for part in cohorts(len(names), MAX_COMPLETE)
    )


def smallest_sum(study: Study) -> int:
    """The fewest sites in a sum over all sites of the study."""
    parts = cohorts(len(study.sites), MAX_COMPLETE)
    return sum(_threshold(study, len(part)) for part in parts)


def _threshold(study: Study, size: int) -> int:
    """The study names a threshold for all of its sites, or leaves it open."""
    chosen = study.secagg.threshold if size == len(study.sites) else 0
    return chosen or default_threshold(size, study.secagg.colluders)


def _session(
    study: Study,
    identities: Mapping[str, bytes],
    codec: Codec,
    round_number: int,
    arm: str,
    purpose: str,
) -> SessionParams:
    roster = tuple(Member(name, identity) for name, identity in identities.items())
    return SessionParams(
        study_digest=bytes.fromhex(study.digest()),
        round=round_number,
        attempt=1,
        purpose=f"{purpose}/{arm}",
        roster=roster,
        threshold=_threshold(study, len(roster)),
        max_colluders=study.secagg.colluders,
        body_length=codec.length,
        lane_length=codec.lane.length,
        ring_bits=codec.ring_bits,
        mode=study.secagg.mode,
        suite=study.secagg.suite_number,
    )


class Sums(Protocol):
    """The coordinator's side of a round: ``secfed.runtime.cohorts.Cohorts``."""

    @property
    def phase(self) -> str:
        """The phase whose messages are collected now."""

    @property
    def result(self) -> SecureSum | None:
        """The sum, after the last phase."""

    def receive(self, client: str, message: bytes) -> None:
        """Take one client's message of the current phase."""

    def close(self) -> dict[str, bytes]:
        """End the phase; returns the next message for each remaining client."""


class Link(Protocol):
    """The way between the coordinator and the sites of one round."""

    @property
    def refusals(self) -> Sequence[SecfedError]:
        """Sites that their own policy or budget kept out, as errors."""

    def collect(
        self,
        phase: str,
        messages: Mapping[str, bytes],
        receive: Callable[[str, bytes], None],
    ) -> None:
        """Ask the named sites and pass on every answer that arrives in time."""


def sum_under_masks(coordinator: Sums, link: Link, present: Iterable[str]) -> SecureSum:
    """The five phases of a round's sessions, from the first keys to the opened sum.

    Args:
        coordinator: The sessions, of which nothing was received yet.
        link: How sites are asked; who is sent nothing is not asked.
        present: The sites that are asked for keys.

    Raises:
        PolicyError, BudgetExceededError: Too few were left because sites refused.
        RoundAbortedError: Too few were left for another reason; nothing was learned.
    """
    messages = dict.fromkeys(present, b"")
    while coordinator.result is None:
        link.collect(coordinator.phase, messages, coordinator.receive)
        try:
            messages = coordinator.close()
        except RoundAbortedError as error:
            if link.refusals:
                raise link.refusals[0] from error
            raise
    return coordinator.result
