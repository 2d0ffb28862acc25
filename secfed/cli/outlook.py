"""What a study would cost each site, computed without training or spending."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from secfed.errors import PlanError, PolicyError

if TYPE_CHECKING:
    from secfed.entries import RunCharge
    from secfed.governance import Outlay
    from secfed.policy import SitePolicy
    from secfed.privacy.accounting import DpEvent
    from secfed.privacy.plan import PrivacyPlan
    from secfed.study import Study

__all__ = [
    "SiteOutlook",
    "evaluation_outlook",
    "noise_to_signal",
    "site_outlooks",
]


@dataclass(frozen=True)
class SiteOutlook:
    """What a study would cost one site; ``refusal`` is empty when it can run.

    Attributes:
        site: Its name.
        nominal_units: Its declared number of units; of records where the unit is
            the site.
        sampling_probability: q, of one noisy sum.
        expected_batch: In units, of one noisy sum.
        steps: Noisy sums in all rounds.
        noise_multiplier: Sigma; None where no plan exists.
        epsilon_per_round: For the study's unit, added or removed.
        epsilon_total: The same for all rounds.
        epsilon_replace_one: One unit replaced by another, all rounds.
        mu: A conservative GDP parameter of all rounds; None is UNKNOWN.
        epsilon_of_a_person: Where the unit is the site: any change of one person's
            records, all rounds. Budgets are charged for it.
        refusal: Why the site cannot take part.
        warning: What is valid but weaker than it should be.
        plan: The site's plan; None where none exists.
        budget: What the study adds to the site's budget; None in a rehearsal.
    """

    site: str
    nominal_units: int
    sampling_probability: float
    expected_batch: int
    steps: int
    noise_multiplier: float | None
    epsilon_per_round: float | None
    epsilon_total: float | None
    epsilon_replace_one: float | None
    mu: float | None
    epsilon_of_a_person: float | None
    refusal: str
    warning: str
    plan: PrivacyPlan | None = field(repr=False)
    budget: Outlay | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, object]:
        """The numbers and the verdict."""
        names = [f.name for f in fields(self) if f.name not in {"plan", "budget"}]
        own = {name: getattr(self, name) for name in names}
        budget = {} if self.budget is None else {"budget": self.budget.to_json()}
        return own | {"verdict": self.verdict} | budget

    @property
    def verdict(self) -> str:
        """``can run``, ``too small`` or ``refused``."""
        if not self.refusal:
            return "can run"
        return "too small" if self.noise_multiplier is None else "refused"


def site_outlooks(
    study: Study, base_dir: Path, policy: SitePolicy
) -> Iterator[SiteOutlook]:
    """Calibrate every site's plan and ask its policy.

    Raises:
        DataError: The records do not fit the study.
    """
    from secfed.data import load_sites  # noqa: PLC0415
    from secfed.earlier_runs import charges_at  # noqa: PLC0415
    from secfed.policy import MOMENTARY, check  # noqa: PLC0415
    from secfed.privacy.asked import plan_for  # noqa: PLC0415
    from secfed.privacy.held_back import evaluation_events  # noqa: PLC0415
    from secfed.runtime.earlier import read_named  # noqa: PLC0415

    data = load_sites(study, base_dir)
    whole = study.privacy.unit == "site"
    # Asked for where a lasting budget is looked at.
    runs = () if policy.budget_dir is None else read_named(study, base_dir).all
    for site in study.sites:
        units = data.nominal_units[site]
        plan, reasons = None, []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                plan = plan_for(study, units)
            except PlanError as error:
                reasons.append(str(error))
        try:
            check(policy, study, data.sites[site].num_units, without=MOMENTARY)
        except PolicyError as error:
            reasons.append(str(error))
        if plan is not None and whole:
            reasons += _refused_for_a_person(plan, policy)
        budget = None
        if plan is not None and policy.budget_dir is not None:
            named = charges_at(runs, site)
            budget, refusal = _outlay(policy, study, plan, site, named)
            reasons += refusal
        batch = 1 if whole else study.training.expected_batch
        yield SiteOutlook(
            site=site,
            nominal_units=units,
            sampling_probability=1.0 if whole else batch / units,
            expected_batch=batch,
            steps=study.training.rounds
            * (1 if whole else study.training.steps_per_round),
            **_costs(plan, [] if plan is None else evaluation_events(study, units)),
            refusal="; ".join(reasons),
            warning="; ".join(str(warning.message) for warning in caught),
            plan=plan,
            budget=budget,
        )


def _outlay(
    policy: SitePolicy,
    study: Study,
    plan: PrivacyPlan,
    site: str,
    named: tuple[RunCharge, ...],
) -> tuple[Outlay | None, list[str]]:
    """What the study adds to a lasting budget, and why that does not hold it."""
    from secfed.governance import outlay  # noqa: PLC0415
    from secfed.governance.outlay import budget_file, events_of  # noqa: PLC0415

    path = budget_file(policy, site, None)
    try:
        unit, events = study.privacy.unit, events_of(study, plan)
        found = outlay(policy, unit, events, path, named)
    except PolicyError as error:
        return None, [str(error)]
    return found, [] if found.fits else [found.refusal()]


def _costs(
    plan: PrivacyPlan | None, evaluations: list[DpEvent]
) -> dict[str, float | None]:
    """What the training costs, and beside it the evaluations, in total."""
    from secfed.privacy import accounting  # noqa: PLC0415

    names = (
        "noise_multiplier",
        "epsilon_per_round",
        "epsilon_total",
        "epsilon_replace_one",
        "mu",
        "epsilon_of_a_person",
    )
    if plan is None:
        return dict.fromkeys(names)
    one = plan.round_event()
    everything = [one] * plan.rounds + evaluations
    values = (
        plan.noise_multiplier,
        accounting.epsilon([one], plan.delta),
        accounting.epsilon(everything, plan.delta, plan.neighbouring),
        accounting.epsilon(everything, plan.delta, "replace-one"),
        accounting.conservative_mu(everything),
        plan.epsilon_of_a_person() if plan.unit == "site" else None,
    )
    return dict(zip(names, values, strict=True))


def evaluation_outlook(
    study: Study, outlooks: Sequence[SiteOutlook]
) -> dict[str, object] | None:
    """What evaluating on held-back records costs, and how exact it can be.

    Returns:
        None where the study asks for none.
    """
    from secfed.privacy import accounting  # noqa: PLC0415
    from secfed.privacy.estimates import expected_margin  # noqa: PLC0415
    from secfed.privacy.held_back import evaluation_plan  # noqa: PLC0415

    asked = {o.site: evaluation_plan(study, o.nominal_units) for o in outlooks}
    plans = {site: plan for site, plan in asked.items() if plan is not None}
    if study.evaluation is None:
        return None
    event = [plan.event() for plan in plans.values()][:1]
    return {
        "metrics": list(study.evaluation.metrics),
        "rounds": list(study.evaluation.due(study.training.rounds)),
        "held_back_nominal": {s: plan.nominal_units for s, plan in plans.items()},
        "epsilon_of_one": accounting.epsilon(event, study.privacy.delta),
        "margin": expected_margin(list(plans.values())) if plans else None,
    }


def _refused_for_a_person(plan: PrivacyPlan, policy: SitePolicy) -> list[str]:
    """A budget is charged for a person, also where the unit is the site."""
    from secfed.privacy import accounting  # noqa: PLC0415

    events = [plan.event_of_a_person()] * plan.rounds
    if accounting.fits(events, policy.delta, policy.max_epsilon):
        return []
    cost = accounting.epsilon(events, policy.delta)
    limit = f"max_epsilon {policy.max_epsilon:g}"
    return [f"a person would be charged epsilon {cost:.4g}, above {limit}"]


def noise_to_signal(
    study: Study, outlooks: Sequence[SiteOutlook], numbers: int | None
) -> float | None:
    """How long the noise of the mean update is, over the longest possible update.

    Only where the unit is the site, whose update is at most C long and gets noise of
    sigma * C in each of d numbers. In the mean of n equal sites that is about
    ``sigma * sqrt(d / n)`` times C.

    Returns:
        None for other units, or where d or a site's sigma is not known.
    """
    sigmas = [o.noise_multiplier for o in outlooks if o.noise_multiplier is not None]
    if study.privacy.unit != "site" or not numbers or len(sigmas) < len(outlooks):
        return None
    variance = sum(sigma**2 for sigma in sigmas) / len(sigmas) ** 2
    return math.sqrt(numbers * variance)
