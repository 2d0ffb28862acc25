"""What a privacy statement says of how the study's settings were chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from secfed.earlier_runs import events_at
from secfed.entries import JsonObject, RunCosts
from secfed.errors import PlanError

__all__ = ["TUNED_ON", "tuning_section"]

TUNED_ON: Final[Mapping[str, str]] = {
    "none": "no data was looked at to choose the settings, by declaration",
    "public": "only public records were looked at to choose the settings, by "
    "declaration",
    "private": "the settings depend on the private records of earlier runs",
}
"""What ``[tuning] data`` means."""

_COMPOSED: Final = (
    ". What they spent at a site of the same name is composed with this run under "
    "sites.<site>.with_named_runs and in across_sites. Whose ledgers they are, that "
    "they are whole, and that no other run was looked at, is the study's word, but for "
    "sites whose own budgets hold what ran on their records"
)


def tuning_section(
    section: Mapping[str, Any] | None,
    runs: Sequence[RunCosts],
    cost: Callable[[Sequence[Any]], JsonObject],
) -> JsonObject | None:
    """On what data the settings were chosen, and what that cost.

    Args:
        section: The study's ``[tuning]``; None where it says nothing.
        runs: What the ledger says of the runs that it pins.
        cost: What events cost the unit that is protected.

    Returns:
        None where the study says nothing.

    Raises:
        PlanError: The ledger tells of other runs than the study pins.
    """
    pinned = [run["sha256"] for run in (section or {}).get("runs", ())]
    if pinned != [costs.ledger_sha256 for costs in runs]:
        raise PlanError("the ledger does not tell of the runs that [tuning] pins")
    if section is None:
        return None
    note = TUNED_ON[section["data"]] + _COMPOSED * bool(runs)
    said: JsonObject = {"data": section["data"], "note": note}
    if section.get("settings") is not None:
        said["settings"] = section["settings"]
    if not runs:
        return said
    sites = sorted({site for costs in runs for site in costs.spent})
    named = {c.run_id for costs in runs for own in costs.spent.values() for c in own}
    return said | {
        "ledgers": pinned,
        "runs": sorted(named),
        "sites": {site: cost(events_at(runs, site)) for site in sites},
    }
