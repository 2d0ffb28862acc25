"""What every site does in a round, so that the weakest is in time.

What may differ between sites, and what may not:

- the rank, for rules that add products or weigh factors (hetlora, flexlora): a site
  trains the first rows of A and columns of B, as the study says under
  ``[adapter.ranks]``. Other rules get the rank of the weakest site for all;
- the micro-batch: it changes no sum, is in no study, and is the site's own choice;
- nothing else. The length of texts, the bits of the base, the steps and the batch are
  the same everywhere: sampling, steps and noise are the privacy plan, and the base is
  the model that the study pins. They are those that the weakest site can do.

The batch is never changed: with it the sampling rate would change. Where the study
asks too much, it is given up in this order: ranks, then the bits of the base (among
those that were measured), then the length, then steps. Everything chosen was measured
at the site; nothing is extrapolated but the number of steps and of records in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from secfed.errors import ProfileError
from secfed.profiles.estimate import (
    MEMORY_SHARE,
    TIME_MARGIN,
    fits_memory,
    margin_seconds,
    records_in_a_step,
    require_workload,
    timings_at,
)
from secfed.profiles.profile import SiteProfile, Timing
from secfed.strategies import get_strategy
from secfed.study import Study, load_study_dict

__all__ = ["Assignment", "Common", "SiteChoice", "assign", "preferences"]

_GIGABYTE: Final = 1e9


@dataclass(frozen=True)
class Common:
    """What all sites do alike."""

    steps_per_round: int
    max_length: int
    quantisation: str


@dataclass(frozen=True)
class SiteChoice:
    """What one site does, and what it takes there.

    Attributes:
        site: Its name.
        rank: Of its factors; 0 where there are none.
        micro_batch_tokens: The fastest that fits its memory; its own choice.
        seconds: A round of local training, with the margin.
        peak_bytes: Memory of the process.
    """

    site: str
    rank: int
    micro_batch_tokens: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Assignment:
    """A study that every site can do in time.

    Attributes:
        study: With what was chosen; its digest is what sites approve.
        common: What all sites do alike.
        sites: What each does, in the study's order.
        reasons: What was given up, and whose machine asked for it.
    """

    study: Study
    common: Common
    sites: tuple[SiteChoice, ...]
    reasons: tuple[str, ...]

    def tables(self) -> dict[str, dict[str, Any]]:
        """The keys of the study file that this assignment sets."""
        adapter = self.study.adapter
        chosen: dict[str, dict[str, Any]] = {
            "model": {"max_length": self.common.max_length},
            "training": {"steps_per_round": self.common.steps_per_round},
        }
        if self.common.quantisation != "none":
            chosen["model"]["quantisation"] = self.common.quantisation
        if adapter.how.has_rank:
            chosen["adapter"] = {"r": adapter.r, "lora_alpha": adapter.lora_alpha}
        if adapter.ranks:
            chosen["adapter.ranks"] = dict(adapter.ranks)
        return chosen


def assign(
    study: Study, profiles: Sequence[SiteProfile], deadline_seconds: float
) -> Assignment:
    """Choose what fits a deadline of local training in a round.

    Guarantees:
        Under the same choice for all, a site that is slower and has less memory
        never gets a higher rank; a slower site never makes the choice for all
        stand earlier in ``preferences``.

    Args:
        study: What is wished for; nothing chosen is above it.
        profiles: One of each site, measured for this study.
        deadline_seconds: For local training.

    Raises:
        ProfileError: A profile is missing or of other work, or a site cannot do
            even the least; the message says what it would need.
    """
    known = _by_site(study, profiles)
    possible = tuple(preferences(study, profiles))
    for common in possible:
        choices = _choices(study, known, common, deadline_seconds)
        if choices is not None:
            break
    else:
        raise ProfileError(_too_weak(study, known, deadline_seconds))
    changed = _changed(study, common, {s: c.rank for s, c in choices.items()})
    weakest = _weakest(study, known, possible, deadline_seconds)
    return Assignment(
        study=changed,
        common=common,
        sites=tuple(choices.values()),
        reasons=_reasons(study, changed, weakest),
    )


def preferences(study: Study, profiles: Sequence[SiteProfile]) -> Iterator[Common]:
    """Every choice for all sites, the best first: steps, then length, then bits."""
    asked = study.model.quantisation or "none"
    measured = [set(_pairs(profile)) for profile in profiles]
    shared = set.intersection(*measured) if measured else set()
    lengths = sorted({length for _, length in shared}, reverse=True)
    bits = sorted({bits for bits, _ in shared}, key=lambda b: (b != asked, b))
    for steps in range(study.training.steps_per_round, 0, -1):
        for length in lengths:
            for own in bits:
                if length <= study.model.max_length and (own, length) in shared:
                    yield Common(steps, length, own)


def _pairs(profile: SiteProfile) -> Iterator[tuple[str, int]]:
    return ((one.quantisation, one.max_length) for one in profile.timings)


def _by_site(study: Study, profiles: Sequence[SiteProfile]) -> dict[str, SiteProfile]:
    """The profiles in the study's order.

    Raises:
        ProfileError: Not one of each site, or one of other work.
    """
    for profile in profiles:
        require_workload(study, profile)
    known = {profile.site: profile for profile in profiles}
    if len(known) != len(profiles):
        raise ProfileError("two profiles of one site")
    missing = [site for site in study.sites if site not in known]
    if missing:
        raise ProfileError(f"no profile of: {', '.join(missing)}")
    return {site: known[site] for site in study.sites}


def _choices(
    study: Study,
    known: Mapping[str, SiteProfile],
    common: Common,
    deadline: float,
) -> dict[str, SiteChoice] | None:
    """Every site's choice under one for all; None where a site has none."""
    if get_strategy(study.training.method).unequal_ranks:
        own = [_ranks(study, profile) for profile in known.values()]
        return _each(study, known, common, own, deadline)
    shared = [set(_ranks(study, profile)) for profile in known.values()]
    for rank in sorted(set.intersection(*shared), reverse=True):
        choices = _each(study, known, common, [(rank,)] * len(known), deadline)
        if choices is not None:
            return choices
    return None


def _each(
    study: Study,
    known: Mapping[str, SiteProfile],
    common: Common,
    ranks: Sequence[Sequence[int]],
    deadline: float,
) -> dict[str, SiteChoice] | None:
    """The first rank of every site that fits, with the fastest micro-batch."""
    found = {}
    for (site, profile), own in zip(known.items(), ranks, strict=True):
        tried = (_fastest(study, profile, common, rank) for rank in own)
        best = next((c for c in tried if c and c.seconds <= deadline), None)
        if best is None:
            return None
        found[site] = best
    return found


def _ranks(study: Study, profile: SiteProfile) -> list[int]:
    """What was measured and is not above the study's own rank, highest first."""
    most = (study.adapter.ranks or {}).get(profile.site, study.adapter.r)
    return sorted({t.rank for t in profile.timings if t.rank <= most}, reverse=True)


def _fastest(
    study: Study, profile: SiteProfile, common: Common, rank: int
) -> SiteChoice | None:
    able = [
        _chosen(study, profile, common, one)
        for one in timings_at(profile, common.quantisation, common.max_length, rank)
        if fits_memory(profile, one)
    ]
    return min(able, key=lambda choice: choice.seconds, default=None)


def _chosen(
    study: Study, profile: SiteProfile, common: Common, timing: Timing
) -> SiteChoice:
    records = records_in_a_step(study)
    seconds = margin_seconds(timing, common.steps_per_round, records)
    return SiteChoice(
        site=profile.site,
        rank=timing.rank,
        micro_batch_tokens=timing.micro_batch_tokens,
        seconds=seconds,
        peak_bytes=timing.peak_bytes,
    )


def _changed(study: Study, common: Common, ranks: Mapping[str, int]) -> Study:
    """The study with the choice, checked as any study is; ``lora_alpha / r`` stays."""
    values, adapter = study.canonical(), study.adapter
    values["model"] |= {
        "max_length": common.max_length,
        "quantisation": common.quantisation,
    }
    values["training"]["steps_per_round"] = common.steps_per_round
    if adapter.how.has_rank:
        unequal = get_strategy(study.training.method).unequal_ranks
        r = max(ranks.values()) if unequal else min(ranks.values())
        lower = {site: rank for site, rank in ranks.items() if rank < r}
        values["adapter"] |= {
            "r": r,
            "lora_alpha": adapter.how.lora_alpha(r, adapter.scaling),
        }
        values["adapter"].pop("ranks", None)
        if unequal and lower:
            values["adapter"]["ranks"] = lower
    return load_study_dict(values, f"study {study.name}")


def _reasons(study: Study, changed: Study, weakest: Sequence[str]) -> tuple[str, ...]:
    """What is not as the study wished, and whose machine set it."""
    keys = (
        ("training", "steps_per_round"),
        ("model", "max_length"),
        ("model", "quantisation"),
        ("adapter", "r"),
    )
    said = []
    for table, key in keys:
        wished, got = (getattr(getattr(s, table), key) for s in (study, changed))
        if wished != got:
            names = ", ".join(weakest)
            said.append(f"{table}.{key}: {wished} -> {got}, set by {names}")
    for site, rank in (changed.adapter.ranks or {}).items():
        said.append(f"adapter.ranks.{site}: {rank}, the highest that fits there")
    return tuple(said)


def _weakest(
    study: Study,
    known: Mapping[str, SiteProfile],
    possible: Sequence[Common],
    deadline: float,
) -> list[str]:
    """The sites that could do no more if the study were theirs alone."""
    most = {
        site: _alone(study, {site: profile}, possible, deadline)
        for site, profile in known.items()
    }
    return [site for site, place in most.items() if place == max(most.values())]


def _alone(
    study: Study,
    known: Mapping[str, SiteProfile],
    possible: Sequence[Common],
    deadline: float,
) -> tuple[int, int]:
    """How far down the preferences a site goes by itself, and at which rank."""
    for place, common in enumerate(possible):
        choices = _choices(study, known, common, deadline)
        if choices is not None:
            return place, -next(iter(choices.values())).rank
    return len(possible), 0


def _too_weak(study: Study, known: Mapping[str, SiteProfile], deadline: float) -> str:
    """Who cannot do the least, and what it would need."""
    said = []
    for site, profile in known.items():
        records = records_in_a_step(study)
        least = min(margin_seconds(one, 1, records) for one in profile.timings)
        room = min(one.peak_bytes for one in profile.timings) / MEMORY_SHARE
        if room > profile.memory_bytes:
            said.append(
                f"{site} needs {room / _GIGABYTE:.1f} GB of memory and has "
                f"{profile.memory_bytes / _GIGABYTE:.1f}"
            )
        elif least > deadline:
            said.append(
                f"{site} needs {least / 60:.2f} minutes for the least that was "
                f"measured, with the margin of {TIME_MARGIN:g}"
            )
    listed = "; ".join(said) or (
        "no length and bits were measured at all sites that all can do; measure more "
        "(`secfed doctor --measure` with --lengths, --ranks, --quantisations)"
    )
    return (
        f"nothing fits {deadline / 60:g} minutes a round: {listed}. Give more time, "
        "take a smaller model or batch, or leave the site out"
    )
