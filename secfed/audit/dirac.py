"""Part B: Dirac canaries in the copied pipeline, scored on what a site releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfed.audit.canaries import CanaryLoss, Place, place_canaries, with_canaries
from secfed.audit.curves import Curve, claimed_curve
from secfed.audit.findings import Findings
from secfed.audit.mechanism import RAW_NORM, drawn_members, power
from secfed.audit.membership import points_on_curve
from secfed.audit.one_run import lower_bounds
from secfed.audit.refutation import ASSUMPTION, Refutation, Scores, refute
from secfed.audit.rehearsal import Played, Rehearsal
from secfed.errors import StudyError
from secfed.privacy import accounting
from secfed.privacy.noise import simulation_stream
from secfed.runtime.setup import random_stream
from secfed.strategies import trained_names
from secfed.types import Tensors

__all__ = ["DiracSettings", "check_dirac", "claim_of", "play_canaries"]

_CONFIDENCE_LEVEL: Final = 0.05
_WEAKER: Final = 0.5


@dataclass(frozen=True)
class DiracSettings:
    """How large the audit is.

    Attributes:
        canaries: Gradients of which each is in with probability 1/2.
        level: At which the claim is refuted.
        repetitions: Simulated audits from which the power is told; 0: none.
    """

    canaries: int = 2000
    level: float = 0.01
    repetitions: int = 20


@dataclass(frozen=True)
class Views:
    """The same canaries as two attackers see them.

    ``local`` from what the audited site releases, ``outside`` from the opened mean;
    None where the rule does not send the canaries' tensors as they are.
    """

    local: Scores
    outside: Scores | None


def claim_of(rehearsal: Rehearsal) -> Curve:
    """The trade-off curve of the rounds that are audited."""
    return claimed_curve([rehearsal.plan.round_event()] * rehearsal.rounds)


def check_dirac(
    rehearsal: Rehearsal, findings: Findings, settings: DiracSettings, curve: Curve
) -> None:
    """Play the copy with canaries and hold their scores against the claim."""
    if rehearsal.plan.unit == "site":
        findings.add(
            "B",
            "Dirac canaries",
            "the unit is the site: its whole update is one contribution, and no "
            "record has a gradient of its own that could be a canary",
            passed=None,
        )
        return
    try:
        views = play_canaries(rehearsal, settings.canaries)
    except StudyError as error:
        findings.add("B", "Dirac canaries", str(error), passed=None)
        return
    _tell_refutation(findings, views.local, curve, settings)
    _tell_bounds(rehearsal, findings, views.local, curve, settings)
    if views.outside is not None:
        found = refute(views.outside, curve)
        findings.add(
            "B",
            "the same canaries in the opened mean",
            f"{_rates(found)}; p = {found.p:.3g}. The other sites' noise hides more "
            "than the claim asks for",
            passed=found.p >= settings.level,
            **_values(found),
        )
    _tell_power(rehearsal, findings, len(views.local), curve, settings)


def play_canaries(rehearsal: Rehearsal, count: int) -> Views:
    """One run of the copy, of which the audited site holds half of the canaries.

    Every site reserves the rounds in its budget: private records take part.
    """
    state, prepared = rehearsal.begin(), rehearsal.prepared
    trains = trained_names(rehearsal.strategy, state.adapter, 1)
    places = place_canaries(prepared.model, trains, count)
    count = sum(len(place.canaries) for place in places)
    stream = random_stream(rehearsal.study, "audit", rehearsal.site, "members")
    members = drawn_members(stream, count)
    own = prepared.records[rehearsal.site]
    records = {**prepared.records, rehearsal.site: with_canaries(own, members)}
    norm = RAW_NORM * rehearsal.plan.clip_norm
    loss = CanaryLoss(prepared.loss, places, norm, count)
    played = rehearsal.play(records, {rehearsal.site: loss}, charged=True)
    values = _scores(rehearsal, places, played.changes, count)
    outside = _outside(rehearsal, places, played, count)
    return Views(
        Scores(values, members),
        None if outside is None else Scores(outside, members),
    )


def _scores(
    rehearsal: Rehearsal,
    places: Sequence[Place],
    changes: Sequence[Tensors],
    count: int,
) -> NDArray[np.float64]:
    """Inner products of canaries and summed releases, in multiples of C."""
    plan = rehearsal.plan
    total = np.zeros(count)
    for change in changes:
        for place in places:
            if place.tensor in change:  # Some rules train a tensor in some rounds.
                scale = rehearsal.rate_of(place.tensor) * plan.clip_norm
                seen = place.read(change[place.tensor]) * plan.expected_batch
                total[place.canaries] -= seen / scale
    return total


def _outside(
    rehearsal: Rehearsal, places: Sequence[Place], played: Played, count: int
) -> NDArray[np.float64] | None:
    if played.survivors < 2 or not rehearsal.strategy.linear:  # noqa: PLR2004
        return None
    scores = _scores(rehearsal, places, played.means, count)
    return played.survivors * scores if scores.any() else None


def _tell_refutation(
    findings: Findings, scores: Scores, curve: Curve, settings: DiracSettings
) -> None:
    found = refute(scores, curve)
    refuted = found.p < settings.level
    points = points_on_curve(scores, curve)
    word = "refuted" if refuted else "not refuted"
    findings.add(
        "B",
        "Dirac canaries against the whole claimed curve",
        f"{_rates(found)}; p = {found.p:.3g}, {word} at level {settings.level:g}; "
        f"{ASSUMPTION}. All canaries: {'; '.join(map(str, points))}",
        passed=not refuted,
        assumption=ASSUMPTION,
        points=[point.to_json() for point in points],
        **_values(found),
    )


def _tell_bounds(
    rehearsal: Rehearsal,
    findings: Findings,
    scores: Scores,
    curve: Curve,
    settings: DiracSettings,
) -> None:
    delta = rehearsal.plan.delta
    events = [rehearsal.plan.round_event()] * rehearsal.rounds
    claimed = accounting.epsilon(events, delta)
    bounds = lower_bounds(scores, curve, level=_CONFIDENCE_LEVEL, delta=delta)
    highest = max(bounds.steinke, bounds.fdp)
    passed = bounds.steinke <= claimed and bounds.fdp_p >= settings.level
    guesses = bounds.guesses
    findings.add(
        "B",
        "lower bounds on epsilon, which need no independent scores",
        f"{guesses.correct} of {guesses.guessed} guesses right: epsilon >= "
        f"{bounds.steinke:.3g} (one run), >= {bounds.fdp:.3g} (one run, f-DP), "
        f"claimed {claimed:.4g}; the claimed curve by f-DP: p = {bounds.fdp_p:.3g}",
        passed=passed,
        guessed=guesses.guessed,
        correct=guesses.correct,
        epsilon_one_run=bounds.steinke,
        epsilon_one_run_fdp=bounds.fdp,
        p_one_run_fdp=bounds.fdp_p,
        highest=highest,
        claimed=claimed,
        confidence=1 - bounds.level,
        delta=delta,
    )


def _tell_power(
    rehearsal: Rehearsal,
    findings: Findings,
    canaries: int,
    curve: Curve,
    settings: DiracSettings,
) -> None:
    if not settings.repetitions:
        return
    share = power(
        rehearsal.plan,
        rehearsal.rounds,
        canaries,
        curve,
        simulation_stream(1, "audit", "power"),  # Of a simulation: protects nobody.
        noise=_WEAKER,
        level=settings.level,
        repetitions=settings.repetitions,
    )
    findings.add(
        "B",
        "the power of this audit",
        f"{canaries} canaries refute half the noise in {share:.0%} of "
        f"{settings.repetitions} simulated audits (the mechanism alone)",
        passed=True,  # It is told, not judged.
        power=share,
        noise=_WEAKER,
        repetitions=settings.repetitions,
        canaries=canaries,
    )


def _rates(found: Refutation) -> str:
    counts = found.counts
    return (
        f"TPR {counts.tpr:.3f} ({counts.true_positives}/{counts.members}) at FPR "
        f"{counts.fpr:.3f} ({counts.false_positives}/{counts.others}), at most "
        f"{found.bound:.3f} is claimed there"
    )


def _values(found: Refutation) -> dict[str, Any]:
    counts = found.counts
    return {
        "p": found.p,
        "tpr": counts.tpr,
        "fpr": counts.fpr,
        "members": counts.members,
        "others": counts.others,
        "claimed_tpr": found.bound,
        "threshold": found.threshold,
    }
