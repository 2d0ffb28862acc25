"""CPU time per example of the ways to train, in turn, on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from benchmarks.measure import Timing, timed
from benchmarks.sections import MS, Section
from benchmarks.training_checks import check
from benchmarks.training_plans import Case
from benchmarks.training_run import Run, System, build
from benchmarks.training_systems import (
    Batches,
    Opacus,
    Plain,
    SecfedPlain,
    SecfedPrivate,
    Work,
    require_same,
)

__all__ = ["Measured", "in_turn", "time"]

_PASSES = 2.5  # over a site's records in the shipped study
_WARM_UP = 8  # records


@dataclass(frozen=True)
class Measured:
    """One case: seconds per example by system, and what the first round did."""

    seconds: Mapping[str, Timing]
    works: Mapping[str, Work]

    def ratio(self, one: str, other: str) -> Timing:
        """Of two systems on the same batches, pair by pair."""
        return self.seconds[one].over(self.seconds[other])


def time(run: Run) -> Iterator[Section]:
    """Gradients compared, then times, ratios and work."""
    gradients = Section("gradients", "The same gradients, then clipped and noised", "")
    gradients.note = (
        "Relative distance of the sums over one batch in float32, by plain gradient "
        "descent. Clipped: to a fifth of the mean gradient's length; length is the "
        "clipped sum's over the sum's. Noise: its standard deviation over the plan's, "
        "which is right within the chance of so many numbers."
    )
    times = Section("time", "CPU milliseconds per example", "")
    times.note = (
        "A round each, in turn, on the same batches. Once: secfed's tokens and states "
        "below the adapter, per record of the site, before the first round."
    )
    ratios = Section("ratios", "Ratios of time, pair by pair", "")
    ratios.note = (
        f"With once: its share of an example over {_PASSES:g} passes of the records, "
        "as in the shipped study, is added to secfed's time."
    )
    work = Section("work", "What a round did", "")
    work.note = (
        "The same for all by check: steps, examples and tokens. Slots are tokens and "
        "padding, per example."
    )
    for case in run.plan.time:
        _case(run, case, gradients, times, ratios, work)
    yield from (times, ratios, work, gradients)


def _case(
    run: Run,
    case: Case,
    gradients: Section,
    times: Section,
    ratios: Section,
    work: Section,
) -> None:
    run.announce(f"gradients: {case}")
    agreement = check(build, case, run.plan.checked_records)
    run.rounds_checked += 1
    who = {"model": case.model, "adapter": case.adapter, "layers": case.where}
    gradients.add(
        **who,
        records=agreement.records,
        Opacus_to_plain=f"{agreement.opacus:.0e}",
        secfed_to_plain=f"{agreement.secfed:.0e}",
        clipped_secfed_to_Opacus=f"{agreement.clipped:.0e}",
        length=agreement.shortened,
        noise=agreement.noise,
    )
    run.announce(f"time: {case}")
    subject = build(case)
    records, once = timed(subject.encode)
    once /= case.size.records
    found = in_turn(
        run,
        case,
        {
            "plain": Plain(subject),
            "plain bf16": Plain(subject, torch.bfloat16),
            "Opacus": Opacus(subject),
            "secfed": SecfedPrivate(subject, records),
            "secfed, no privacy": SecfedPlain(subject, records),
        },
    )
    shown = {name: one.scaled(MS) for name, one in found.seconds.items()}
    times.add(**who, **shown, once=once * MS)
    whole = found.seconds["secfed"].shifted(once / _PASSES)
    against_plain = found.ratio("secfed", "plain")
    against_own = found.ratio("secfed", "secfed, no privacy")
    ratios.add(
        **who,
        **{
            "secfed / plain": against_plain,
            "with once": whole.over(found.seconds["plain"]),
            "secfed / plain bf16": found.ratio("secfed", "plain bf16"),
            "secfed / no privacy": against_own,
            "Opacus / plain": found.ratio("Opacus", "plain"),
        },
    )
    _show_work(work, who, case, found)
    run.at_most(f"time, secfed / plain ({case})", 0.7, against_plain.median, "")
    name = f"time, secfed / secfed without privacy ({case})"
    run.at_most(name, 1.1, against_own.median, "")


def _show_work(
    work: Section, who: Mapping[str, str], case: Case, found: Measured
) -> None:
    ours, plain = found.works["secfed"], found.works["plain"]
    work.add(
        **who,
        records=case.size.records,
        expected_batch=case.size.batch,
        steps=ours.steps,
        examples=ours.examples,
        tokens_per_example=ours.tokens / ours.examples,
        plain_slots=plain.slots / plain.examples,
        secfed_slots=ours.slots / ours.examples,
    )


def in_turn(
    run: Run,
    case: Case,
    systems: Mapping[str, System],
    measure: Callable[..., tuple[Work, float]] = timed,
) -> Measured:
    """Rounds of every system in turn, each turn on batches of its own.

    Raises:
        RuntimeError: Two systems did not do the same work.
    """
    few = replace(case.size, batch=min(_WARM_UP, case.size.batch), steps=1)
    for system in systems.values():
        system(Batches(few, seed=0))
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    first: dict[str, Work] = {}
    for turn in range(case.size.repetitions):
        works: dict[str, Work] = {}
        for name in _rotated(list(systems), turn):
            batches = Batches(case.size, seed=turn + 1)
            works[name], spent = measure(systems[name], batches)
            seconds[name].append(spent / works[name].examples)
            run.tick()
        require_same(works)
        run.rounds_checked += len(works)
        first = first or works
    found = {name: Timing.of(values) for name, values in seconds.items()}
    return Measured(found, first)


def _rotated(names: list[str], turn: int) -> list[str]:
    """Another one begins in each turn: what runs first may find a cold cache."""
    first = turn % len(names)
    return names[first:] + names[:first]
