"""One round: train at every site, sum under masks, hand the sum to the rule.

The order is that of the protocol; between the two sides go bytes only. Phases 0
and 1 need no update, so keys and shares are exchanged before training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import save

from protocols.errors import ProtocolError
from protocols.secagg.params import Member, SessionParams, default_threshold
from secfed.client import BudgetGuard, Contribution, NoGuard, Site, SiteRound
from secfed.codec import Codec, RingArray
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RoundAbortedError,
    SecfedError,
)
from secfed.runtime.encoding import codec_for
from secfed.runtime.progress import Progress
from secfed.runtime.setup import random_stream
from secfed.server import Coordinator, SecureSum
from secfed.study import Study
from secfed.training import LocalUpdate
from secfed.types import Adapter

__all__ = ["RoundResult", "play_alone", "play_round"]

Guard = BudgetGuard | NoGuard


@dataclass(frozen=True)
class RoundResult:
    """A finished round as the simulator sees it; ``updates`` are private."""

    result: SecureSum
    updates: Mapping[str, LocalUpdate] = field(repr=False)
    sums_equal: bool
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
    codec = codec_for(
        study,
        {name: site.plan for name, site in sites.items()},
        adapter,
        round_number,
        private=any(isinstance(guard, BudgetGuard) for guard in guards.values()),
    )
    params = _session(study, sites, codec, round_number, arm)
    broadcast = save({n: np.ascontiguousarray(v) for n, v in adapter.tensors.items()})
    digest = hashlib.sha256(bytes.fromhex(base_digest) + broadcast).digest()
    stage = _Stage(
        coordinator=Coordinator(params, digest, codec),
        present={
            name: SiteRound(site, study, params, codec, guards[name])
            for name, site in sites.items()
        },
        leaving={
            d.site: d.phase
            for d in study.simulation.dropouts
            if d.round == round_number
        },
        progress=progress,
        received=received,
    )
    streams = {
        name: random_stream(study, arm, str(round_number), name, "protocol")
        for name in sites
    }

    # 2. Keys and shares, while nobody has an update yet.
    stage.ask("advertise keys", lambda n, site: site.advertise(digest, streams[n]))
    rosters = stage.close()
    stage.ask("share keys", lambda n, site: site.share(rosters[n], streams[n]))
    deliveries = stage.close()

    # 3. Train; the update and its encoding stay with the site.
    updates: dict[str, LocalUpdate] = {}
    plain: dict[str, RingArray] = {}

    def local_training(name: str, site: SiteRound) -> None:
        updates[name] = site.train(train, streams[name])
        plain[name] = site.encoded_for_simulator()

    stage.each("local training", local_training)

    # 4. Masked input, confirmation, unmasking.
    stage.ask("masked input", lambda n, site: site.mask(deliveries[n]))
    lists = stage.close()
    stage.ask("confirm survivors", lambda n, site: site.confirm(lists[n]))
    confirmations = stage.close()
    stage.ask("unmask", lambda n, site: site.reveal(confirmations[n]))
    stage.close()
    result = stage.coordinator.result
    if result is None:
        raise RoundAbortedError("unmask", (), "no sum was opened")
    for sentence in result.suspected:
        progress.note(sentence)
    return RoundResult(
        result=result,
        updates={name: updates[name] for name in result.survivors},
        sums_equal=_sums_equal(result, plain),
        bytes_up=stage.coordinator.bytes_up,
        bytes_down=stage.coordinator.bytes_down + len(broadcast) * len(sites),
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
    progress.phase("local training")
    updates = {}
    for done, (name, site) in enumerate(sites.items(), start=1):
        guards[name].before_training(site, study, round_number)
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
class _Stage:
    """Who is still there in a round, and the one way between the two sides."""

    coordinator: Coordinator
    present: dict[str, SiteRound]
    leaving: Mapping[str, str]
    progress: Progress
    received: Callable[[str, bytes], None]
    refusals: list[SecfedError] = field(default_factory=list)

    def ask(self, phase: str, answer: Callable[[str, SiteRound], bytes]) -> None:
        """Pass every present site's answer to the coordinator."""

        def deliver(name: str, site: SiteRound) -> None:
            message = answer(name, site)
            self.received(name, message)
            self.coordinator.receive(name, message)  # blames by itself, never raises
            if self.leaving.get(name) == self.coordinator.phase:
                del self.present[name]
                self.progress.note(f"{name} vanished after sending its {phase}")

        self.each(phase, deliver)

    def each(self, phase: str, act: Callable[[str, SiteRound], None]) -> None:
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
            self.progress.site(name, done, total)

    def close(self) -> dict[str, bytes]:
        """End the phase; who is sent nothing is not asked again.

        Raises:
            PolicyError, BudgetExceededError: Too few were left because sites refused.
            RoundAbortedError: Too few were left for another reason.
        """
        try:
            outgoing = self.coordinator.close()
        except RoundAbortedError as error:
            if self.refusals:
                raise self.refusals[0] from error
            raise
        for name in self.present.keys() - outgoing.keys():
            del self.present[name]
        return outgoing


def _session(
    study: Study,
    sites: Mapping[str, Site],
    codec: Codec,
    round_number: int,
    arm: str,
) -> SessionParams:
    roster = tuple(
        Member(name=name, identity=sites[name].identity.public_bytes)
        for name in sorted(sites)
    )
    colluders = study.secagg.colluders
    return SessionParams(
        study_digest=bytes.fromhex(study.digest()),
        round=round_number,
        attempt=1,
        purpose=f"update/{arm}",
        roster=roster,
        threshold=study.secagg.threshold or default_threshold(len(roster), colluders),
        max_colluders=colluders,
        body_length=codec.length,
        lane_length=codec.lane.length,
        ring_bits=codec.ring_bits,
        mode=study.secagg.mode,
        suite=study.secagg.suite_number,
    )


def _sums_equal(result: SecureSum, plain: Mapping[str, RingArray]) -> bool:
    """Compare with the plain sum, outside the protocol: integers, exactly."""
    total = np.zeros_like(result.total)
    for name in result.survivors:
        total += plain[name]
    return bool(np.array_equal(total, result.total))
