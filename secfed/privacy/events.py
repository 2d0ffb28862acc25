"""Which mechanism ran, how often: the events that accounting charges.

Events are dp_accounting's own. Known are the Gaussian mechanism, its
Poisson-sampled form, and compositions of these; any other is refused, never
approximated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import dp_accounting

from secfed.errors import PlanError

__all__ = [
    "REPLACED",
    "DpEvent",
    "Merged",
    "event_from_json",
    "event_to_json",
    "group_event",
    "merge",
    "replaced_event",
    "sampled_gaussian",
]

DpEvent: TypeAlias = Any  # dp_accounting.DpEvent; that library ships no types.

Merged: TypeAlias = tuple[tuple[float, float, int], ...]
"""Sorted (sampling probability, noise multiplier, steps)."""

REPLACED: Final = 2
"""The group that costs what replacing a unit costs, where each step draws all units.

Both contributions lie in the ball of radius C, so the sum moves by up to 2 C.
"""

_NOISE_RANGE = (0.01, 1e6)  # Outside, a loss distribution has no useful grid.


def sampled_gaussian(
    sampling_probability: float, noise_multiplier: float, steps: int
) -> DpEvent:
    """``steps`` Gaussian steps, each over a Poisson sample of the units."""
    step = dp_accounting.PoissonSampledDpEvent(
        sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    event = dp_accounting.SelfComposedDpEvent(step, steps)
    merge([event])
    return event


def group_event(event: DpEvent, size: int) -> DpEvent:
    """What an event costs a group of up to ``size`` units, pessimistically.

    A step holds none of the group with probability (1 - q)**size. Otherwise the
    group moves the sum by some vector v no longer than size * C. For every v the
    step is a sampled Gaussian with the rate 1 - (1 - q)**size, the worst |v| is
    size * C, and a mixture over v is no worse than its worst v (the divergences
    behind epsilon and delta are jointly convex). So we charge that rate at the
    noise sigma / size. The tight answer is a mixture of Gaussians (Ganesh,
    arXiv:2401.10294); ours is above it.

    Raises:
        PlanError: The event is unknown, ``size`` is not a positive integer, or
            the group is too large for the noise.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise PlanError(f"a group has a positive number of records, not {size!r}")
    merge([event])
    grouped = _grouped(event, size) if size > 1 else event
    merge([grouped])
    return grouped


def replaced_event(event: DpEvent) -> DpEvent:
    """What an event costs whoever can replace the contribution of a whole unit.

    Raises:
        PlanError: The event is unknown, or a step draws units by chance; how often a
            person is in it is then another question.
    """
    if any(probability != 1 for probability, _, _ in merge([event])):
        raise PlanError("a whole site's update is drawn always, not sampled")
    return group_event(event, REPLACED)


def _grouped(event: DpEvent, size: int) -> DpEvent:
    match event:
        case dp_accounting.GaussianDpEvent():
            return dp_accounting.GaussianDpEvent(event.noise_multiplier / size)
        case dp_accounting.PoissonSampledDpEvent():
            return dp_accounting.PoissonSampledDpEvent(
                _any_of(event.sampling_probability, size), _grouped(event.event, size)
            )
        case dp_accounting.SelfComposedDpEvent():
            return dp_accounting.SelfComposedDpEvent(
                _grouped(event.event, size), event.count
            )
    return dp_accounting.ComposedDpEvent([_grouped(p, size) for p in event.events])


def _any_of(probability: float, size: int) -> float:
    """1 - (1 - probability)**size, rounded up and at most 1."""
    if probability == 1:
        return 1.0
    exact = -math.expm1(size * math.log1p(-probability))
    return min(1.0, exact * (1 + 1e-12))


def event_to_json(event: DpEvent) -> dict[str, object]:
    """An event as JSON values that ``event_from_json`` reads back.

    Raises:
        PlanError: The event, or a part of it, is not one the accountant knows.
    """
    merge([event])
    match event:
        case dp_accounting.GaussianDpEvent():
            return {"event": "gaussian", "noise_multiplier": event.noise_multiplier}
        case dp_accounting.PoissonSampledDpEvent():
            return {
                "event": "poisson-sampled",
                "sampling_probability": event.sampling_probability,
                "of": event_to_json(event.event),
            }
        case dp_accounting.SelfComposedDpEvent():
            return {
                "event": "self-composed",
                "count": event.count,
                "of": event_to_json(event.event),
            }
    return {"event": "composed", "of": [event_to_json(part) for part in event.events]}


def event_from_json(value: object) -> DpEvent:
    """The event that ``event_to_json`` wrote.

    Raises:
        PlanError: The value has another shape, an unknown or a missing key, an
            unknown event, or a parameter out of range.
    """
    event = _parse(value)
    merge([event])
    return event


def _parse(value: object) -> DpEvent:
    match value:
        case {"event": "gaussian", "noise_multiplier": noise, **rest} if not rest:
            return dp_accounting.GaussianDpEvent(_real(noise))
        case {
            "event": "poisson-sampled",
            "sampling_probability": probability,
            "of": part,
            **rest,
        } if not rest:
            return dp_accounting.PoissonSampledDpEvent(_real(probability), _parse(part))
        case {"event": "self-composed", "count": count, "of": part, **rest} if not rest:
            return dp_accounting.SelfComposedDpEvent(_parse(part), count)
        case {"event": "composed", "of": list(parts), **rest} if not rest:
            return dp_accounting.ComposedDpEvent([_parse(part) for part in parts])
    raise PlanError(f"not a privacy event that this version knows: {value!r:.200}")


def _real(value: Any) -> Any:
    """JSON knows one kind of number; JCS writes 1.0 as 1."""
    return float(value) if type(value) is int else value


def merge(events: Iterable[DpEvent]) -> Merged:
    """Check every event and add up the steps of equal mechanisms."""
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        _collect(event, 1, steps)
    return tuple(sorted((q, noise, count) for (q, noise), count in steps.items()))


def _collect(event: DpEvent, times: int, steps: Counter[tuple[float, float]]) -> None:
    match event:
        case dp_accounting.GaussianDpEvent():
            steps[1.0, _checked_noise(event)] += times
        case dp_accounting.PoissonSampledDpEvent(event=dp_accounting.GaussianDpEvent()):
            probability = event.sampling_probability
            if not isinstance(probability, float) or not 0 < probability <= 1:
                raise PlanError(f"a sampling probability is in (0, 1]: {probability!r}")
            steps[probability, _checked_noise(event.event)] += times
        case dp_accounting.SelfComposedDpEvent():
            count = event.count
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise PlanError(f"a count of events is an integer >= 1: {count!r}")
            _collect(event.event, times * count, steps)
        case dp_accounting.ComposedDpEvent():
            for part in event.events:
                _collect(part, times, steps)
        case _:
            raise PlanError(f"the accountant does not know this event: {event!r:.200}")


def _checked_noise(event: DpEvent) -> float:
    noise = event.noise_multiplier
    smallest, largest = _NOISE_RANGE
    if not isinstance(noise, float) or not smallest <= noise <= largest:
        raise PlanError(
            f"a noise multiplier is a float in [{smallest:g}, {largest:g}]: {noise!r}"
        )
    return noise
