"""What earlier runs spent at a site, and its budget does not hold yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from secfed.entries import RunCharge
from secfed.errors import PolicyError
from secfed.privacy import accounting
from secfed.privacy.budget import Account

__all__ = ["not_held"]


def not_held(
    accounts: Iterable[Account], charges: Sequence[RunCharge]
) -> list[RunCharge]:
    """The charges that no population of a budget holds.

    What a site reserved itself, it knows better than any ledger: one that tells less
    of a run than the site's own budget is refused.

    Args:
        accounts: Of the site's budget file.
        charges: What ledgers say of this site.

    Raises:
        PolicyError: The budget holds another event of a round, or a round of the same
            run that the ledgers do not tell of.
    """
    told = {(charge.run_id, charge.round): charge for charge in charges}
    runs = {charge.run_id for charge in charges}
    held = set()
    for own in (charge for account in accounts for charge in account.charges):
        key = (own.run_id, own.round)
        held.add(key)
        if own.run_id in runs and key not in told:
            raise PolicyError(
                f"the ledger of the earlier run {own.run_id} does not tell of round "
                f"{own.round}, which this site's budget holds: the study has to pin "
                "the run's whole ledger. One that was interrupted is finished by its "
                "coordinator (`secfed resume`)"
            )
        if key in told and accounting.event_to_json(own.event) != told[key].event:
            raise PolicyError(
                f"the ledger of the earlier run {own.run_id} tells of another cost of "
                f"round {own.round} than this site's budget"
            )
    return [charge for key, charge in told.items() if key not in held]
