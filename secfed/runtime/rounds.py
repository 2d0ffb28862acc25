"""One round: train at every site, sum under masks, hand the sum to the rule.

The order is that of the protocol; between the two sides go bytes only. Phases 0
and 1 need no update, so keys and shares are exchanged before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from protocols.errors import ProtocolError
from secfed.client import BudgetGuard, Contribution, NoGuard, Site, SiteRound
from secfed.codec import RingArray
from secfed.errors import BudgetExceededError, PolicyError, SecfedError
from secfed.operations import left
from secfed.policy import require_running
from secfed.privacy.noise import RandomStream
from secfed.runtime.cohorts import Cohorts
from secfed.runtime.progress import Progress
from secfed.runtime.sessions import (
    PHASES,
    TRAINING,
    broadcast_of,
    model_digest,
    sum_under_masks,
    terms_of,
)
from secfed.runtime.setup import random_stream
from secfed.server import SecureSum
from secfed.study import Study
from secfed.training import LocalUpdate
from secfed.types import Adapter

__all__ = ["Guard", "LinkHere", "RoundResult", "play_alone", "play_round"]

Guard = BudgetGuard | NoGuard


@dataclass(frozen=True)
class RoundResult:
    """A finished round as the simulator sees it; ``updates`` are private.

    A coordinator whose sites are elsewhere has no updates, and cannot compare the sum
    (``sums_equal`` None).
    """

    result: SecureSum
    updates: Mapping[str, LocalUpdate] = field(repr=False)
    sums_equal: bool | None
    bytes_up: int
    bytes_down: int


def play_round(
    study: Study,
    sites: Mapping[str, Site],
    guards: Mapping[str, Guard],
    adapter: Adapter,
    train: Callable[[Site], Contribution],
    round_number: int,
    base_digest: str,
    arm: str,
    progress: Progress,
    received: Callable[[str, bytes], None] = lambda _site, _message: None,
) -> RoundResult:
    """Run one round of every site and the coordinator in this process.

    Args:
        study: The study of this arm.
        sites: The sites that start the round.
        guards: What each site asks before it trains.
        adapter: What the coordinator sends.
        train: One site's local training, and what it sends of the result.
        round_number: From 1.
        base_digest: SHA-256 of the base model's weights.
        arm: Labels the simulation's random streams.
        progress: Told about phases and sites.
        received: Called with everything that the coordinator receives.

    Raises:
        PolicyError, BudgetExceededError: Too many sites refused (the first says why).
        RoundAbortedError: Too few sites were left; nothing was learned.
    """
    # 1. What both sides derive from the signed study, each for itself.
    terms = terms_of(
        study,
        {name: site.plan for name, site in sites.items()},
        {name: site.identity.public_bytes for name, site in sites.items()},
        adapter,
        round_number,
        arm,
        private=any(isinstance(guard, BudgetGuard) for guard in guards.values()),
    )
    broadcast = broadcast_of(adapter)
    link = _Training(
        digest=model_digest(base_digest, broadcast),
        present={
            name: SiteRound(site, study, terms.of(name), terms.codec, guards[name])
            for name, site in sites.items()
        },
        streams={
            name: random_stream(study, arm, str(round_number), name, "protocol")
            for name in sites
        },
        leaving={
            d.site: d.phase
            for d in study.simulation.dropouts
            if d.round == round_number
        },
        progress=progress,
        received=received,
        train=train,
    )
    # 2. The five phases; the sites train before the third.
    coordinator = Cohorts(terms, link.digest)
    result = sum_under_masks(coordinator, link, sites)
    for sentence in result.suspected:
        progress.note(sentence)
    for name in coordinator.blamed:
        progress.event("message-refused", site=name, error="FaultyClientError")
    return RoundResult(
        result=result,
        updates={name: link.updates[name] for name in result.survivors},
        sums_equal=_sums_equal(result, link.plain),
        bytes_up=coordinator.bytes_up,
        bytes_down=coordinator.bytes_down + len(broadcast) * len(sites),
    )


def play_alone(
    study: Study,
    sites: Mapping[str, Site],
    guards: Mapping[str, Guard],
    _adapter: Adapter,
    train: Callable[[Site], Contribution],
    round_number: int,
    _base_digest: str,
    _arm: str,
    progress: Progress,
) -> RoundResult:
    """One round of a rule that sends nothing: every site trains by itself.

    The budget is charged as in any round. Arguments as for ``play_round``.

    Raises:
        PolicyError, BudgetExceededError: A site refuses.
    """
    progress.phase(TRAINING)
    updates = {}
    for done, (name, site) in enumerate(sites.items(), start=1):
        require_running(site.policy)
        guards[name].before_training(site, study, round_number)
        if isinstance(guards[name], BudgetGuard):
            progress.event("budget-reserved", site=name, round=round_number)
        updates[name] = train(site).update
        guards[name].before_sending()
        progress.site(name, done, len(sites))
    nothing = SecureSum(
        mean={},
        total=np.zeros(0, dtype=np.uint32),
        survivors=tuple(sorted(sites)),
        dropouts={},
        silent={},
        saturated=0,
    )
    return RoundResult(nothing, updates, sums_equal=True, bytes_up=0, bytes_down=0)


@dataclass
class LinkHere:
    """The link of a session whose sites are all in this process.

    A subclass says what a site does before it masks anything (``work``).
    """

    task: ClassVar[str] = ""
    digest: bytes
    present: dict[str, SiteRound]
    streams: Mapping[str, RandomStream]
    leaving: Mapping[str, str]
    progress: Progress
    received: Callable[[str, bytes], None]
    refusals: list[SecfedError] = field(default_factory=list, kw_only=True)

    def work(self, name: str, site: SiteRound) -> None:
        """What one site computes; the result stays with it."""
        raise NotImplementedError

    def collect(
        self,
        phase: str,
        messages: Mapping[str, bytes],
        receive: Callable[[str, bytes], None],
    ) -> None:
        """Pass every present site's answer to the coordinator."""
        for name in self.present.keys() - messages.keys():
            del self.present[name]
        if phase == "masked-input":
            self._each(self.task, self.work)

        def deliver(name: str, site: SiteRound) -> None:
            message = self._answer(phase, name, site, messages[name])
            if phase == "advertise" and site.charged:
                self.progress.event("budget-reserved", site=name, round=site.number)
            self.received(name, message)
            receive(name, message)  # The coordinator blames by itself, never raises.
            if self.leaving.get(name) == phase:
                del self.present[name]
                self.progress.note(f"{name} vanished after sending its {PHASES[phase]}")

        self._each(PHASES[phase], deliver)

    def _answer(self, phase: str, name: str, site: SiteRound, message: bytes) -> bytes:
        if phase == "advertise":
            return site.advertise(self.digest, self.streams[name])
        if phase == "shares":
            return site.share(message, self.streams[name])
        return site.answer(phase, message)

    def _each(self, phase: str, act: Callable[[str, SiteRound], None]) -> None:
        """Let every present site act; one whose step fails sends nothing more."""
        self.progress.phase(phase)
        total = len(self.present)
        for done, (name, site) in enumerate(tuple(self.present.items()), start=1):
            try:
                act(name, site)
            except (ProtocolError, SecfedError) as error:
                del self.present[name]
                if isinstance(error, PolicyError | BudgetExceededError):
                    self.refusals.append(error)
                self.progress.note(f"{name} left in {phase}: {error}")
                self.progress.event(
                    **left(error, site=name, phase=phase, round=site.number)
                )
            self.progress.site(name, done, total)


@dataclass
class _Training(LinkHere):
    """A round: every site trains; updates and encodings stay with it."""

    task: ClassVar[str] = TRAINING
    train: Callable[[Site], Contribution]
    updates: dict[str, LocalUpdate] = field(default_factory=dict)
    plain: dict[str, RingArray] = field(default_factory=dict)

    def work(self, name: str, site: SiteRound) -> None:
        """One site's local training."""
        self.updates[name] = site.train(self.train, self.streams[name])
        self.plain[name] = site.encoded_for_simulator()


def _sums_equal(result: SecureSum, plain: Mapping[str, RingArray]) -> bool:
    """Compare with the plain sum, outside the protocol: integers, exactly."""
    total = np.zeros_like(result.total)
    for name in result.survivors:
        total += plain[name]
    return bool(np.array_equal(total, result.total))
