"""What a study would add to what a population has spent, before it is reserved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from secfed.entries import RunCharge
from secfed.policy import SitePolicy
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.budget import Account, Budget, alarm_of, group_of, percent_of
from secfed.privacy.held_back import evaluation_events
from secfed.privacy.not_held import not_held
from secfed.privacy.plan import PrivacyPlan, Unit
from secfed.study import Study

__all__ = ["Outlay", "budget_file", "events_of", "held_account", "outlay"]


@dataclass(frozen=True)
class Outlay:
    """Epsilons of one population at the policy's delta, in the unit it is kept in.

    Attributes:
        population: Its declared name; a changed or longer file of records is the same.
        unit: Whose epsilon it is.
        delta: Of all epsilons here.
        limit: The site's cap.
        own: This study by itself, as the budget charges it.
        named: The runs that the study names, its teacher's and its tuning's, where the
            budget does not hold them yet; they are charged when the study begins.
        before: Everything that was reserved so far.
        after: All three, composed; never added.
        fits: Whether that stays within the limit.
        charges: How many rounds were reserved so far.
        events: All three, for ``attack``.
    """

    population: str
    unit: Unit
    delta: float
    limit: float
    own: float
    named: float
    before: float
    after: float
    fits: bool
    charges: int
    events: tuple[DpEvent, ...] = field(repr=False)

    @cached_property
    def attack(self) -> float:
        """Bound on the true positive rate, at 1 % false ones, after this study."""
        return accounting.true_positive_rate(self.events, 0.01)

    @property
    def percent(self) -> float:
        """Of the limit, after this study; a whole percent, rounded up."""
        return percent_of(self.after, self.limit)

    @property
    def alarm(self) -> int:
        """The highest of the budget's alarms that this study reaches anew; else 0."""
        reached = alarm_of(self.percent)
        return reached if reached > alarm_of(percent_of(self.before, self.limit)) else 0

    def to_json(self) -> dict[str, object]:
        """The numbers."""
        return {
            "population": self.population,
            "unit": self.unit,
            "delta": self.delta,
            "max_epsilon": self.limit,
            "epsilon_of_study": self.own,
            "epsilon_of_named_runs": self.named,
            "epsilon_before": self.before,
            "epsilon_after": self.after,
            "fits": self.fits,
            "percent_after": self.percent,
            "alarm": self.alarm,
            "charges_before": self.charges,
            "attack_tpr_at_fpr_1_percent": self.attack,
        }

    def refusal(self) -> str:
        """Why the study does not fit; empty where it does."""
        if self.fits:
            return ""
        return (
            f"the budget of {self.population!r} does not hold it: epsilon "
            f"{self.before:.4g} is spent, all together cost {self.after:.4g}, above "
            f"max_epsilon {self.limit:g}"
        )


def outlay(
    policy: SitePolicy,
    unit: Unit,
    events: Sequence[DpEvent],
    path: Path | None,
    named: Sequence[RunCharge] = (),
) -> Outlay:
    """Compose a study with what stands in a site's budget; changes nothing.

    Args:
        policy: Names the population and its limits.
        unit: What the study protects.
        events: All of the study at this site: rounds and evaluations.
        path: The site's budget file; None, or missing: nothing was spent.
        named: What the runs spent at this site that the study names.

    Raises:
        PolicyError: The population is kept in another unit, or a ledger tells less of
            an earlier run than the budget.
        BudgetFileError: The file is damaged.
    """
    cap = policy.max_records_per_person
    accounts = () if path is None else _accounts(path)
    account = _named(accounts, policy.population)
    kept = account.population.unit if account else "person" if cap else unit
    group = group_of(policy.population, kept, unit, cap)
    charges = () if account is None else account.charges
    missing = not_held(accounts, named)
    due = [accounting.event_from_json(charge.event) for charge in missing]
    own, added = (
        [accounting.group_event(event, group) for event in of] for of in (events, due)
    )
    spent = [charge.cost for charge in charges]
    everything = [*spent, *added, *own]
    return Outlay(
        population=policy.population,
        unit=kept,
        delta=policy.delta,
        limit=policy.max_epsilon,
        own=accounting.epsilon(own, policy.delta),
        named=accounting.epsilon(added, policy.delta) if added else 0.0,
        before=accounting.epsilon(spent, policy.delta),
        after=accounting.epsilon(everything, policy.delta),
        fits=accounting.fits(everything, policy.delta, policy.max_epsilon),
        charges=len(spent),
        events=tuple(everything),
    )


def events_of(study: Study, plan: PrivacyPlan) -> tuple[DpEvent, ...]:
    """All that a study runs at one site: its rounds, and its evaluations."""
    evaluations = evaluation_events(study, plan.nominal_units)
    return (*[plan.round_event()] * plan.rounds, *evaluations)


def budget_file(policy: SitePolicy, site: str, state: Path | None) -> Path | None:
    """Where a site keeps its budget; None in a rehearsal, which begins with none.

    Args:
        policy: May name a folder for all runs.
        site: The site's name.
        state: The durable folder of a deployed site.
    """
    if policy.budget_dir is not None:
        return Path(policy.budget_dir) / site / "budget.sqlite"
    return None if state is None else state / "sites" / site / "budget.sqlite"


def held_account(path: Path, population: str) -> Account | None:
    """A population's account; None where neither file of the budget is there.

    Raises:
        BudgetFileError: They are damaged.
    """
    return _named(_accounts(path), population)


def _accounts(path: Path) -> tuple[Account, ...]:
    journal = path.with_name(f"{path.name}.log")
    if not path.exists() and not journal.exists():
        return ()
    return Budget.read(path)


def _named(accounts: Iterable[Account], population: str) -> Account | None:
    return next((a for a in accounts if a.population.name == population), None)
