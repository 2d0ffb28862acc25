"""One evaluation: every site counts on what it holds back, and noised sums are added.

A session of its own, after a round. The order is that of a round: policy and budget
first, then keys and shares, then the counting, and what leaves is a masked vector. An
evaluation is not repeated: what a site reserved for it is spent, sum or no sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secfed.client import Site, SiteRound
from secfed.evaluation import outcomes
from secfed.privacy.noise import RandomStream
from secfed.runtime.cohorts import Cohorts
from secfed.runtime.progress import Progress
from secfed.runtime.rounds import Guard, LinkHere
from secfed.runtime.sessions import (
    EVALUATING,
    RoundTerms,
    broadcast_of,
    evaluation_terms,
    model_digest,
    sum_under_masks,
)
from secfed.runtime.setup import Prepared, random_stream
from secfed.server import SecureSum
from secfed.study import Study
from secfed.types import Adapter

__all__ = ["Counting", "EvaluationResult", "count_of", "play_evaluation"]

Counting = Callable[[Site], NDArray[np.int64]]
"""What every held-back unit of a site contributes; private."""


@dataclass(frozen=True)
class EvaluationResult:
    """A finished evaluation.

    ``sums_equal`` compares with the plain sum of what the sites noised; None where
    nobody can know, because the sites are elsewhere.
    """

    result: SecureSum
    sums_equal: bool | None
    bytes_up: int
    bytes_down: int


def count_of(prepared: Prepared, adapter: Adapter) -> Counting:
    """How a site counts what an adapter does on its held-back records."""

    def count(site: Site) -> NDArray[np.int64]:
        held, plan = site.held_back, site.evaluation
        if held is None or plan is None:
            raise ValueError(f"{site.name} holds nothing back")
        found = outcomes(
            prepared.model,
            adapter,
            held.texts,
            held.labels,
            held.units,
            prepared.questions,
        )
        return plan.contributions(found)

    return count


def play_evaluation(
    study: Study,
    sites: Mapping[str, Site],
    guards: Mapping[str, Guard],
    adapter: Adapter,
    count: Counting,
    round_number: int,
    base_digest: str,
    arm: str,
    progress: Progress,
    received: Callable[[str, bytes], None] = lambda _site, _message: None,
) -> EvaluationResult:
    """Run one evaluation of all sites that evaluate, in this process.

    Args:
        study: The study of this arm.
        sites: The sites that evaluate, by their declared sizes.
        guards: What each asks before it counts.
        adapter: What is evaluated.
        count: What a site counts.
        round_number: The round that the evaluation follows.
        base_digest: SHA-256 of the base model's weights.
        arm: Labels the simulation's random streams.
        progress: Told about phases and sites.
        received: Called with everything that the coordinator receives.

    Raises:
        PolicyError, BudgetExceededError: Too many sites refused (the first says why).
        RoundAbortedError: Too few sites were left; nothing was learned.
    """
    plans = {n: s.evaluation for n, s in sites.items() if s.evaluation is not None}
    identities = {name: site.identity.public_bytes for name, site in sites.items()}
    terms = evaluation_terms(study, plans, identities, round_number, arm)

    def streams(purpose: str) -> dict[str, RandomStream]:
        labels = (arm, str(round_number))
        return {n: random_stream(study, *labels, n, purpose) for n in sites}

    link = _Evaluating(
        digest=model_digest(base_digest, broadcast_of(adapter)),
        present={
            name: SiteRound(site, study, terms.of(name), terms.codec, guards[name])
            for name, site in sites.items()
        },
        streams=streams("evaluation-protocol"),
        leaving={},
        progress=progress,
        received=received,
        count=count,
        noise=streams("evaluation-noise"),
    )
    coordinator = Cohorts(terms, link.digest)
    result = sum_under_masks(coordinator, link, sites)
    for sentence in result.suspected:
        progress.note(sentence)
    return EvaluationResult(
        result,
        _sums_equal(result, [link.plain[name] for name in result.survivors], terms),
        coordinator.bytes_up,
        coordinator.bytes_down,
    )


@dataclass
class _Evaluating(LinkHere):
    """Every site counts; its counts and its noise stay with it."""

    task: ClassVar[str] = EVALUATING
    count: Counting
    noise: Mapping[str, RandomStream]
    plain: dict[str, NDArray[np.uint64]] = field(default_factory=dict)

    def work(self, name: str, site: SiteRound) -> None:
        """Count and noise; nothing of it is a message."""
        site.evaluate(self.count, self.streams[name], self.noise[name])
        self.plain[name] = site.lane_for_simulator()


def _sums_equal(
    result: SecureSum, lanes: list[NDArray[np.uint64]], terms: RoundTerms
) -> bool:
    """Compare with the plain sum, outside the protocol: integers, exactly."""
    total = np.zeros(terms.codec.lane.length, dtype=np.uint64)
    for lane in lanes:
        total += lane
    plain = terms.codec.lane.decode(total, len(lanes))
    return bool(dict(plain.metrics) == dict(result.metrics))
