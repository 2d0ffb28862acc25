"""What earlier runs spent at a site, and its budget does not hold yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from secfed.entries import RunCharge
from secfed.errors import PolicyError
from secfed.privacy import accounting
from secfed.privacy.budget import Account
from secfed.privacy.chain import Charge

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
    held: dict[tuple[str, int], Charge] = {
        (charge.run_id, charge.round): charge
        for account in accounts
        for charge in account.charges
    }
    told = {(charge.run_id, charge.round) for charge in charges}
    runs = {charge.run_id for charge in charges}
    for (run_id, number), own in sorted(held.items(), key=lambda item: item[0]):
        if run_id in runs and (run_id, number) not in told:
            raise PolicyError(
                f"the ledger of the earlier run {run_id} does not tell of its round "
                f"{number}, which this site's budget holds: name the run's whole "
                "ledger; a run that was interrupted is finished by `secfed resume`"
            )
        for charge in charges if (run_id, number) in told else ():
            same = (charge.run_id, charge.round) == (run_id, number)
            if same and accounting.event_to_json(own.event) != charge.event:
                raise PolicyError(
                    f"the ledger of the earlier run {run_id} tells of another cost of "
                    f"its round {number} than this site's budget"
                )
    return [c for c in charges if (c.run_id, c.round) not in held]
