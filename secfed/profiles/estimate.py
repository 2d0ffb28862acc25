"""From timings to a round of one site: how long it takes, and what fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from secfed.errors import ProfileError
from secfed.profiles.profile import SiteProfile, Timing, workload_digest
from secfed.study import Study

__all__ = [
    "MEMORY_SHARE",
    "TIME_MARGIN",
    "Estimate",
    "estimate",
    "fits_memory",
    "margin_seconds",
    "records_in_a_step",
    "require_workload",
    "timings_at",
]

TIME_MARGIN: Final = 1.25
"""Chosen: for steps with more records than expected, and the phases of the sum."""

MEMORY_SHARE: Final = 0.9
"""Chosen: of the memory that the process can have."""


@dataclass(frozen=True)
class Estimate:
    """What a study asks of one site's machine, from its profile.

    Attributes:
        site: Its name.
        rank: Of its factors; 0 where there are none.
        timing: The fastest measured choice that fits its memory; None where none
            does, or nothing was measured at this rank, length and bits.
        seconds: A round of local training, with the margin; None without a timing.
        measured: Whether anything was measured at this rank, length and bits.
    """

    site: str
    rank: int
    timing: Timing | None
    seconds: float | None
    measured: bool


def estimate(study: Study, profile: SiteProfile) -> Estimate:
    """The study as it is, on one site's machine.

    Raises:
        ProfileError: The profile is of other work, or of a site not in the study.
    """
    require_workload(study, profile)
    rank = (study.adapter.ranks or {}).get(profile.site, study.adapter.r)
    bits, length = study.model.quantisation or "none", study.model.max_length
    measured = timings_at(profile, bits, length, rank)
    steps, records = study.training.steps_per_round, records_in_a_step(study)
    able = [one for one in measured if fits_memory(profile, one)]
    best = min(able, key=lambda one: margin_seconds(one, steps, records), default=None)
    return Estimate(
        site=profile.site,
        rank=rank,
        timing=best,
        seconds=None if best is None else margin_seconds(best, steps, records),
        measured=bool(measured),
    )


def require_workload(study: Study, profile: SiteProfile) -> None:
    """Refuse a profile that says nothing about this study.

    Raises:
        ProfileError: Another site, or other work.
    """
    if profile.site not in study.sites:
        raise ProfileError(
            f"a profile of {profile.site!r}, which is not a site of {study.name!r}"
        )
    if profile.workload != workload_digest(study):
        raise ProfileError(
            f"the profile of {profile.site!r} was measured for other work: another "
            "model, adapter, method or task. Measure again with `secfed doctor "
            "--measure`"
        )


def records_in_a_step(study: Study) -> int:
    """Records that a step has on average, at most: persons bring several."""
    return study.training.expected_batch * study.privacy.max_records_per_unit


def timings_at(
    profile: SiteProfile, quantisation: str, length: int, rank: int
) -> tuple[Timing, ...]:
    """What was measured at one rank, length and bits, whatever the micro-batch."""
    wanted = (quantisation, length, rank)
    return tuple(
        one
        for one in profile.timings
        if (one.quantisation, one.max_length, one.rank) == wanted
    )


def fits_memory(profile: SiteProfile, timing: Timing) -> bool:
    """Whether the site has room for what was measured, with some to spare."""
    return timing.peak_bytes <= MEMORY_SHARE * profile.memory_bytes


def margin_seconds(timing: Timing, steps: int, records: int) -> float:
    """A round of local training, with the margin."""
    return TIME_MARGIN * timing.round_seconds(steps, records)
