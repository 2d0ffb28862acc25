"""What events cost the unit that is protected, and a person where it is the site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from secfed.entries import JsonObject
from secfed.privacy import accounting
from secfed.privacy.plan import PrivacyPlan

__all__ = ["UNKNOWN", "cost_of_both", "costing", "of_a_person", "round_event_json"]

UNKNOWN: Final = "UNKNOWN"


def round_event_json(plan: Mapping[str, Any]) -> JsonObject:
    """The event of one round under a site's plan, as ``spent`` records it.

    Args:
        plan: ``PrivacyPlan.to_json()``.

    Raises:
        PlanError: A value is missing, unknown or out of range.
    """
    return accounting.event_to_json(PrivacyPlan.from_json(plan).round_event())


def costing(privacy: Mapping[str, Any]) -> Callable[[Sequence[Any]], JsonObject]:
    """What events cost the unit that a study protects."""
    whole = privacy["unit"] == "site"
    return partial(cost_of_both, delta=privacy["delta"], whole=whole)


def _cost(events: Sequence[Any], delta: float) -> JsonObject:
    """What events cost the unit that they protect."""
    cost = accounting.guarantee(events, delta)
    return {
        "epsilon": cost.epsilon,
        "epsilon_rdp": cost.epsilon_rdp,
        "epsilon_replace_one": cost.epsilon_replace_one,
        "mu": UNKNOWN if cost.mu is None else cost.mu,
        "attack_rates": {
            "advantage": cost.advantage,
            "tpr_at_fpr_0.01": cost.tpr_at_fpr_1_percent,
            "tpr_at_fpr_0.001": cost.tpr_at_fpr_01_percent,
        },
    }


def cost_of_both(events: Sequence[Any], delta: float, *, whole: bool) -> JsonObject:
    """What events cost the unit, and a person where the unit is the site."""
    of_a_person = {"of_a_person": _cost_of_a_person(events, delta)} if whole else {}
    return {**_cost(events, delta), **of_a_person}


def of_a_person(events: Sequence[Any]) -> list[Any]:
    """Updates of a whole site, charged for a person whose records replace them."""
    return [accounting.replaced_event(event) for event in events]


def _cost_of_a_person(events: Sequence[Any], delta: float) -> JsonObject:
    cost = _cost(of_a_person(events), delta)
    # Any change of a person's records is meant already, so there is no second one.
    del cost["epsilon_replace_one"]
    return {
        "meaning": "any change of one person's records at this site: it can replace "
        "the whole update, twice the clip norm",
        **cost,
    }
