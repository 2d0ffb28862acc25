"""What the amplification benchmark says: tables, and whether the goals are met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from benchmarks.amplification_runs import FIRST, Result, RoundNoise
from benchmarks.sections import Findings, Section

__all__ = ["judge", "tables"]

_ONE_FACTOR_PERCENT: Final = 10.0
_TWO_FACTORS_TIMES: Final = 1.5
_NONE: Final = "-"


def judge(results: Sequence[Result], findings: Findings) -> None:
    """The goals: how far the measured energy may be from the closed form."""
    for result in results:
        ratio = _ratio(result.late())
        name = f"{result.method}: measured against the closed form"
        if result.two_factors:
            times = max(ratio, 1 / ratio)
            findings.at_most(name, _TWO_FACTORS_TIMES, times, "times")
        else:
            off = 100 * abs(ratio - 1)
            findings.at_most(name, _ONE_FACTOR_PERCENT, off, "% off")


def tables(results: Sequence[Result]) -> Iterator[Section]:
    """The sums over the late rounds, then every round."""
    yield _late(results)
    yield _each_round(results)


def _late(results: Sequence[Result]) -> Section:
    rounds = results[0].late()
    where = f"rounds {rounds[0].number} to {rounds[-1].number}"
    section = Section(
        "late",
        f"Noise energy in the weights, {where}",
        "Sums over these rounds. Closed form: expected around the factors that the run "
        "had. Study alone: expected before the study, from public numbers, with B "
        "learning nothing; '-' where no form holds after the first round. Quadratic: "
        "share of the measured energy, '-' where it is not a sum of parts. Gap: of the "
        "aggregate to the mean of the sites' products, relative. Moved: norm of the "
        f"change of the weights before round {rounds[0].number}.",
    )
    for result in results:
        section.add(**_late_cells(result))
    return section


def _late_cells(result: Result) -> dict[str, Any]:
    rounds = result.late()
    measured = math.fsum(r.measured for r in rounds)
    signal = math.fsum(r.signal for r in rounds)
    return {
        "rule": result.method,
        "noisy_factors": "two" if result.two_factors else "one",
        "measured": measured,
        "closed_form": math.fsum(r.closed_form for r in rounds),
        "measured_/_closed_form": _ratio(rounds),
        "measured_/_study_alone": _over_expected(rounds),
        "noise_/_signal": measured / signal,
        "quadratic_%": _percent([r.quadratic_share for r in rounds]),
        "gap_%": _percent([r.gap for r in rounds]),
        "moved": rounds[0].moved,
    }


def _each_round(results: Sequence[Result]) -> Section:
    section = Section(
        "rounds",
        "Measured / closed form, round by round",
        f"A round scatters around its expectation. The goals are about rounds {FIRST} "
        "and later, added up.",
    )
    for result in results:
        ratios = {f"round_{r.number}": _ratio([r]) for r in result.rounds}
        section.add(rule=result.method, **ratios)
    return section


def _ratio(rounds: Sequence[RoundNoise]) -> float:
    measured = math.fsum(r.measured for r in rounds)
    return measured / math.fsum(r.closed_form for r in rounds)


def _over_expected(rounds: Sequence[RoundNoise]) -> float | str:
    known = [r.expected for r in rounds if r.expected is not None]
    if len(known) < len(rounds):
        return _NONE
    return math.fsum(r.measured for r in rounds) / math.fsum(known)


def _percent(shares: Sequence[float | None]) -> float | str:
    known = [share for share in shares if share is not None]
    return 100 * math.fsum(known) / len(known) if known else _NONE
