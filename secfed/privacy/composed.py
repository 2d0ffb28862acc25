"""What several comparisons on the same people cost together.

The cells of a grid are rehearsals, each with its own epsilon. On real records
everything is charged to the same people: one composition of all events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.plan import PrivacyPlan

__all__ = ["CellPlans", "composed_epsilon"]


@dataclass(frozen=True)
class CellPlans:
    """The private arms of one cell.

    Attributes:
        division: What the cell's division of records into sites is called; a record
            stays at its site in cells that share it.
        arms: For each private arm the plan of every site.
    """

    division: str
    arms: tuple[Mapping[str, PrivacyPlan], ...]


def composed_epsilon(cells: Sequence[CellPlans], delta: float) -> float:
    """Epsilon at ``delta`` of one unit that is in the records of all cells.

    With one division: of all events of a site, at the worst site. With several a
    record may be at another site in each, so that every arm is charged its largest
    sampling rate with its smallest noise: an upper bound, whatever the path.

    Returns:
        Zero where nothing is private.

    Raises:
        PlanError: ``delta`` is not in (0, 1).
    """
    arms = [arm for cell in cells for arm in cell.arms]
    if len({cell.division for cell in cells}) > 1:
        worst = [event for arm in arms for event in _worst(arm)]
        return accounting.epsilon(worst, delta)
    sites = {site for arm in arms for site in arm}
    return max(
        (
            accounting.epsilon(
                [e for arm in arms if site in arm for e in _events(arm[site])], delta
            )
            for site in sorted(sites)
        ),
        default=0.0,
    )


def _events(plan: PrivacyPlan) -> list[DpEvent]:
    """What budgets are charged: a person, where the unit is the site."""
    whole = plan.unit == "site"
    return [plan.event_of_a_person() if whole else plan.round_event()] * plan.rounds


def _worst(arm: Mapping[str, PrivacyPlan]) -> list[DpEvent]:
    """Events that dominate those of every site of an arm.

    The subsampled Gaussian mechanism reveals more with a larger rate and with less
    noise, each for itself.
    """
    plans = list(arm.values())
    if any(plan.unit == "site" for plan in plans):  # Never sampled.
        return _events(min(plans, key=lambda plan: plan.noise_multiplier))
    event = accounting.sampled_gaussian(
        max(plan.sampling_probability for plan in plans),
        min(plan.noise_multiplier for plan in plans),
        max(plan.steps_per_round for plan in plans),
    )
    return [event] * max(plan.rounds for plan in plans)
