"""Part A: the training functions do what the plan says; white box, no private data.

Invented records go through the functions that train (``secfed.training``, and
``secfed.runtime.site_training`` for the streams of sites and rounds). What is checked
is deterministic, or a test of noise at a level of 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfed.audit.findings import Findings
from secfed.audit.invented import empty_records, invented
from secfed.audit.laws import (
    LEVEL,
    correlation_p,
    inclusion_p,
    ks_p,
    neighbours_p,
    variance_p,
)
from secfed.audit.probe import Probe, flat, probe_of
from secfed.audit.rehearsal import Rehearsal
from secfed.errors import TrainingError
from secfed.privacy import accounting
from secfed.privacy.noise import simulation_stream
from secfed.types import Tensors
from secfed.verify import verify_run

__all__ = ["check_conformance"]

_RECORDS: Final = 12
_WEIGHTS: Final = (1.0, -1.0, 1e6, -1e6, 1e12)
_POISON: Final = (math.inf, math.nan, 1e38)
_RELATIVE: Final = 1e-4
_TINY: Final = 1e-2
_BELOW_CLIP: Final = 0.1
_FLOAT32: Final = 2.0**-22
_ROUNDS: Final = 2
_STEPS: Final = 5
_DRAWS: Final = 4000
_UNITS: Final = 50

_UNEVEN: Final = (
    "the rule smooths noise or cuts ranks after the sum, so its releases have no "
    "common law; the empty batch and the steps above are judged before that"
)

Numbers = NDArray[np.float64]
Answer = tuple[bool | None, str, dict[str, Any]]


def check_conformance(
    rehearsal: Rehearsal, findings: Findings, run: Path | None = None
) -> None:
    """Ask every question of part A.

    Args:
        rehearsal: The copy of the pipeline.
        findings: Receives the answers.
        run: A finished run of the study, whose ledger is replayed; None: the plan's
            arithmetic alone.
    """
    own = rehearsal.prepared.records[rehearsal.site]
    records = invented(own, _RECORDS, len(rehearsal.prepared.label_names))
    probe = probe_of(rehearsal, records)
    whole = probe.plan.unit == "site"
    questions: list[tuple[str, Callable[[], Answer]]] = [
        ("one contribution is at most C", lambda: _contribution(probe)),
        ("poison contributes nothing", lambda: _poison(probe)),
    ]
    if not whole:
        questions += [
            ("D and D + record differ by at most C", lambda: _neighbours(probe)),
            ("nobody else's contribution changes", lambda: _others(probe)),
        ]
    releases = cache(lambda: _noise_of_rounds(rehearsal))
    questions += [
        ("an empty batch is noised", lambda: _empty(probe)),
        ("noise has the plan's law", lambda: _law(releases())),
        ("noise of steps is independent", lambda: _steps(probe)),
        ("noise of sites and rounds is independent", lambda: _streams(releases())),
        ("units are drawn with probability q", lambda: _inclusion(rehearsal)),
        ("steps done are steps paid", lambda: _paid(probe)),
        ("the accountant's replay", lambda: _replay(rehearsal, run)),
    ]
    for name, question in questions:
        _ask(findings, name, question)


def _ask(findings: Findings, name: str, question: Callable[[], Answer]) -> None:
    """A pipeline that stops itself where nothing is wrong with the records fails."""
    try:
        passed, text, values = question()
    except TrainingError as error:
        passed, text, values = False, f"training stopped: {error}", {}
    findings.add("A", name, text, passed=passed, **values)


def _slack(probe: Probe) -> float:
    """What float32 may add to a difference of two releases."""
    size = _norm(probe.nobody)
    start = _norm(flat(probe.start.tensors))
    return _RELATIVE * probe.plan.clip_norm + _FLOAT32 * (size + start)


def _contribution(probe: Probe) -> Answer:
    """Of ordinary, huge, reversed and overflowing records, each by itself."""
    norms = [
        _norm(probe.added([row], [weight])) for row in (0, 1) for weight in _WEIGHTS
    ]
    return _at_most_c(probe, norms, f"largest of {len(norms)} records")


def _poison(probe: Probe) -> Answer:
    """A record with a gradient that is no number, alone and beside another."""
    alone = [_norm(probe.added([3], [weight])) for weight in _POISON]
    clean = probe.added([4], [1.0])
    beside = [
        _norm(probe.added([4, 3], [1.0, weight]) - clean) for weight in _POISON[:2]
    ]
    slack = _slack(probe)
    clip = probe.plan.clip_norm + slack
    # A weight of 1e38 may be finite still; then it is clipped like any other.
    worst = max(*alone[:2], *beside)
    if probe.plan.unit == "site":  # There the whole update counts, poison and all.
        worst = max(0.0, max(alone) - clip)
    return (
        worst <= slack and max(alone) <= clip,
        f"a gradient that is not finite moves the sum by {worst:.2g}",
        {"moved": worst, "slack": slack},
    )


def _neighbours(probe: Probe) -> Answer:
    """One more record moves the released sum by at most C, whatever is in it."""
    base = list(range(6))
    cases: list[tuple[Sequence[float], int, float]] = [
        ([1.0] * 6, 6, 1.0),
        ([1.0] * 6, 6, 1e6),
        ([1e6] * 6, 0, -1e9),  # Against the direction of everybody else.
        ([1e6, 0.0, 0.0, 0.0, 0.0, 0.0], 0, -1e9),
        ([0.0] * 6, 7, -1e6),
    ]
    norms = []
    for weights, row, weight in cases:
        before = probe.sum_of(base, weights)
        after = probe.sum_of([*base, row], [*weights, weight])
        norms.append(_norm(after - before))
    return _at_most_c(probe, norms, f"largest of {len(norms)} neighbours")


def _others(probe: Probe) -> Answer:
    """The sum over many is the sum of what each adds alone.

    The records' gradients stay below the clip, which would hide a common factor.
    """
    tiny = probe.added([0], [_TINY])
    weight = _BELOW_CLIP * probe.plan.clip_norm * _TINY / max(_norm(tiny), _TINY**3)
    alone = [probe.added([row], [weight]) for row in range(6)]
    extra = probe.added([6], [1e6])
    everybody = probe.added(list(range(6)), [weight] * 6)
    with_extra = probe.added(list(range(7)), [weight] * 6 + [1e6])
    gaps = [
        _norm(everybody - np.sum(alone, axis=0)),
        _norm(with_extra - everybody - extra),
    ]
    slack = len(alone) * _slack(probe)
    return (
        max(gaps) <= slack,
        f"sums and single contributions differ by {max(gaps):.2g}",
        {"gap": max(gaps), "slack": slack},
    )


def _empty(probe: Probe) -> Answer:
    drawn = probe.release(empty_records(probe.records), simulation_stream(1, "empty"))
    deviation = float(drawn.std())
    promised = probe.plan.noise_std
    p = variance_p(drawn / promised)
    return (
        p >= LEVEL,
        f"standard deviation {deviation:.4g}, promised {promised:.4g}",
        {"deviation": deviation, "promised": promised, "p": p},
    )


def _law(releases: Sequence[Numbers]) -> Answer:
    if not releases:
        return None, _UNEVEN, {}
    sample = np.concatenate(releases)
    tests = {
        "kolmogorov_smirnov": ks_p(sample),
        "variance": variance_p(sample),
        "neighbours": neighbours_p(sample),
    }
    ratio, least = float(sample.std()), min(tests.values())
    text = (
        f"{len(sample)} numbers, {ratio:.4f} of the promised deviation; least p "
        f"{least:.2g} (law, variance, coordinates up to 8 apart)"
    )
    return least >= LEVEL, text, {"deviation_ratio": ratio, **tests}


def _steps(probe: Probe) -> Answer:
    """Successive sums of one stream."""
    stream, nobody = simulation_stream(1, "steps"), empty_records(probe.records)
    p = correlation_p([probe.release(nobody, stream) for _ in range(_STEPS)])
    return p >= LEVEL, f"{_STEPS} steps, least p of a pair {p:.2g}", {"p": p}


def _streams(samples: Sequence[Numbers]) -> Answer:
    """All pairs of sites and rounds, with the streams that the pipeline gives them."""
    if not samples:
        return None, _UNEVEN, {}
    p = correlation_p(samples)
    text = f"{len(samples)} releases of sites and rounds, least p of a pair {p:.2g}"
    return p >= LEVEL, text, {"p": p}


def _noise_of_rounds(rehearsal: Rehearsal) -> list[Numbers]:
    """Standardised releases of sites that hold nothing, as the pipeline makes them.

    None where a rule smooths noise or cuts ranks, so that numbers have other laws.
    """
    state, found = rehearsal.begin(), []
    uneven = rehearsal.study.adapter.ranks is not None
    if uneven or not rehearsal.strategy.plain_steps:
        return []
    for name, held in rehearsal.prepared.records.items():
        site = rehearsal.site_of(name, empty_records(held))
        for number in range(1, min(_ROUNDS, rehearsal.rounds) + 1):
            change = rehearsal.train(site, state, number).update.change
            found.append(_standardised(rehearsal, name, change))
    return found


def _standardised(rehearsal: Rehearsal, site: str, change: Tensors) -> Numbers:
    plan = rehearsal.prepared.plans[site]
    parts = []
    for name, value in change.items():
        scale = plan.noise_std
        if plan.unit != "site":
            steps = math.sqrt(plan.steps_per_round)
            scale *= rehearsal.rate_of(name) * steps / plan.expected_batch
        parts.append(np.asarray(value, np.float64).ravel() / scale)
    return np.concatenate(parts)


def _inclusion(rehearsal: Rehearsal) -> Answer:
    plan = rehearsal.plan
    stream = simulation_stream(1, "inclusion")
    draws = np.zeros((_DRAWS, _UNITS), dtype=bool)
    for row in draws:
        row[plan.sample_units(stream, _UNITS)] = True
    p = inclusion_p(draws, plan.sampling_probability)
    rate = float(draws.mean())
    promised = plan.sampling_probability
    text = (
        f"{rate:.4f} of {draws.size} draws, promised {promised:.4f}; least p {p:.2g} "
        "(rate, units, independence)"
    )
    return p >= LEVEL, text, {"rate": rate, "promised": promised, "p": p}


def _paid(probe: Probe) -> Answer:
    """Every step draws one sample and one noise for every trained number."""
    stream = probe.counted(_STEPS)
    size = sum(probe.start.tensors[name].size for name in probe.trains)
    noises = 1 if probe.plan.unit == "site" else _STEPS
    passed = stream.samples == _STEPS and stream.normals == [size] * noises
    drawn = {"samples": stream.samples, "noises": len(stream.normals), "numbers": size}
    text = (
        f"{_STEPS} steps drew {stream.samples} samples and {len(stream.normals)} "
        f"noises of {size} numbers"
    )
    return passed, text, drawn


def _replay(rehearsal: Rehearsal, run: Path | None) -> Answer:
    if run is not None:
        report = verify_run(run)
        failed = [f"{one.name}: {one.reason}" for one in report.failures()]
        text = failed[0] if failed else f"{run}: the ledger's events give its epsilon"
        return report.passed, text, {"failed": failed}
    plan, asked = rehearsal.plan, rehearsal.study.privacy.epsilon
    events = [plan.round_event()] * plan.rounds
    found = accounting.epsilon(events, plan.delta, plan.neighbouring)
    return (
        found <= asked,
        f"{plan.rounds} rounds cost epsilon {found:.4g} of {asked:g} (no run given)",
        {"epsilon": found, "claimed": asked},
    )


def _at_most_c(probe: Probe, norms: Sequence[float], what: str) -> Answer:
    clip, largest = probe.plan.clip_norm, max(norms)
    return (
        largest <= clip + _slack(probe),
        f"{what}: {largest / clip:.4f} C",
        {"largest_over_clip": largest / clip, "slack": _slack(probe)},
    )


def _norm(values: Numbers) -> float:
    return float(np.linalg.norm(values))
