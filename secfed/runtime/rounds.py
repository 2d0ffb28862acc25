"""One round: train at every site, sum under masks, hand the sum to the rule.

The order is that of the protocol; between the two sides go bytes only. Phases 0
and 1 need no update, so keys and shares are exchanged before training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import save

from protocols.errors import ProtocolError
from protocols.secagg.params import Member, SessionParams, default_threshold
from secfed.client import LANE_LENGTH, BudgetGuard, NoGuard, Site, SiteRound
from secfed.codec import Codec, RingArray
from secfed.errors import PolicyError, RoundAbortedError, SecfedError
from secfed.runtime.progress import Progress
from secfed.runtime.setup import random_stream
from secfed.server import Coordinator, SecureSum
from secfed.study import Study
from secfed.training import LocalUpdate
from secfed.types import Adapter

__all__ = ["RoundResult", "play_round"]

_DEFAULT_RANGE = 8.0
"""Magnitude bound of one number of an update; cut numbers are counted."""

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
    trains: Sequence[str],
    train: Callable[[Site], LocalUpdate],
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
        trains: Names of the tensors that are trained and sent, in wire order.
        train: One site's local training.
        round_number: From 1.
        base_digest: SHA-256 of the base model's weights.
        arm: Labels the simulation's random streams.
        progress: Told about phases and sites.
        received: Called with everything that the coordinator receives.

    Raises:
        PolicyError, BudgetExceededError: Every site refused (the first says why).
        RoundAbortedError: Too few sites were left; nothing was learned.
    """
    # 1. What both sides derive from the signed study, each for itself.
    codec = Codec.for_tensors(
        {name: adapter.tensors[name] for name in trains},
        value_range=study.secagg.clip_range or _DEFAULT_RANGE,
        num_sites=len(study.sites),
        ring_bits=study.secagg.ring_bits,
    )
    params = _session(study, sites, codec, round_number, arm)
    broadcast = save({n: np.ascontiguousarray(v) for n, v in adapter.tensors.items()})
    digest = hashlib.sha256(bytes.fromhex(base_digest) + broadcast).digest()
    coordinator = Coordinator(params, digest, codec)
    rounds = {
        name: SiteRound(site, study, params, codec, guards[name])
        for name, site in sites.items()
    }
    streams = {
        name: random_stream(study, arm, str(round_number), name, "protocol")
        for name in sites
    }
    leaving = {
        d.site: d.phase for d in study.simulation.dropouts if d.round == round_number
    }
    present = dict.fromkeys(sites)

    def ask(phase: str, answer: Callable[[str], bytes]) -> None:
        """Ask every present site; one that fails or vanishes is a dropout."""
        progress.phase(phase)
        for done, name in enumerate(tuple(present), start=1):
            try:
                message = answer(name)
            except (ProtocolError, SecfedError) as error:
                del present[name]
                refused[name] = error
                progress.note(f"{name} left in {phase}: {error}")
                continue
            received(name, message)
            coordinator.receive(name, message)
            if leaving.get(name) == coordinator.phase:
                del present[name]
                progress.note(f"{name} vanished after sending its {phase}")
            progress.site(name, done, len(sites))

    refused: dict[str, Exception] = {}
    ask("advertise keys", lambda name: rounds[name].advertise(digest, streams[name]))
    if len(refused) == len(sites):
        raise next(iter(refused.values()))
    outgoing = _close(coordinator, refused)
    ask("share keys", lambda name: rounds[name].share(outgoing[name], streams[name]))
    outgoing = _close(coordinator, refused)

    # 2. Train where the site is still there; the update stays in its SiteRound.
    progress.phase("local training")
    updates: dict[str, LocalUpdate] = {}
    plain: dict[str, RingArray] = {}
    for done, name in enumerate(tuple(present), start=1):
        updates[name] = rounds[name].train(train, streams[name])
        plain[name] = rounds[name].encoded_for_simulator()
        progress.site(name, done, len(sites))

    # 3. Masked input, confirmation, unmasking.
    ask("masked input", lambda name: rounds[name].mask(outgoing[name]))
    outgoing = _close(coordinator, refused)
    ask("confirm survivors", lambda name: rounds[name].confirm(outgoing[name]))
    outgoing = _close(coordinator, refused)
    ask("unmask", lambda name: rounds[name].reveal(outgoing[name]))
    _close(coordinator, refused)
    result = coordinator.result
    if result is None:  # pragma: no cover - close() raises instead
        raise RoundAbortedError("unmask", (), "no sum was opened")
    return RoundResult(
        result=result,
        updates={name: updates[name] for name in result.survivors},
        sums_equal=_sums_equal(result, plain),
        bytes_up=coordinator.bytes_up,
        bytes_down=coordinator.bytes_down + len(broadcast) * len(sites),
    )


def _close(
    coordinator: Coordinator, refused: Mapping[str, Exception]
) -> dict[str, bytes]:
    """End a phase; when that fails because sites refused, say what they said."""
    try:
        return coordinator.close()
    except RoundAbortedError as error:
        policies = [e for e in refused.values() if isinstance(e, PolicyError)]
        if policies:
            raise policies[0] from error
        raise


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
        lane_length=LANE_LENGTH,
        ring_bits=study.secagg.ring_bits,
        mode=study.secagg.mode,
    )


def _sums_equal(result: SecureSum, plain: Mapping[str, RingArray]) -> bool:
    """Compare with the plain sum, outside the protocol: integers, exactly."""
    total = np.zeros_like(result.total)
    for name in result.survivors:
        total += plain[name]
    return bool(np.array_equal(total, result.total))
