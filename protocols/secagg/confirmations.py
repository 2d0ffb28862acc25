"""The survivor list, and the signatures that make everybody see the same one.

Without this phase a server could show different lists to different clients and
collect shares of both secrets of one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from protocols import wire
from protocols.errors import RuleBrokenError
from protocols.secagg.messages import Confirm, Confirmation
from protocols.secagg.params import MIN_COHORT, SessionParams

__all__ = ["confirmed_context", "verify_confirmations", "verify_survivors"]


def verify_survivors(
    params: SessionParams, own: int, cohort: Collection[int], survivors: Sequence[int]
) -> None:
    """The list is one that client ``own``, which masked with ``cohort``, may sign."""
    # SA-401: we are in it.
    if own not in survivors:
        raise RuleBrokenError("SA-401", "survivor list leaves this client out")
    # SA-402: only those we masked with. In the sum of any other list our masks
    # do not cancel, so it was made for selectively delivered boxes.
    if not set(cohort).issuperset(survivors):
        raise RuleBrokenError("SA-402", "survivor list names a stranger")
    # SA-403: enough inputs that, colluders apart, another one hides ours.
    if len(survivors) < max(params.threshold, MIN_COHORT, params.max_colluders + 2):
        raise RuleBrokenError("SA-403", "survivor list is too short")


def confirmed_context(context: bytes, survivors: Sequence[int]) -> bytes:
    """SA-404: a confirmation covers session, directory and the whole list."""
    return wire.frame((context, wire.write_indices(survivors)))


def verify_confirmations(
    params: SessionParams,
    session: bytes,
    confirmed: bytes,
    survivors: Collection[int],
    confirmations: Sequence[Confirmation],
) -> None:
    """SA-501: at least t distinct survivors signed exactly our list.

    The encoding is strictly increasing, so the signers are distinct. One bad
    signature refuses them all: a correct server relays only what it verified.
    """
    if len(confirmations) < params.threshold:
        raise RuleBrokenError("SA-501", "fewer confirmations than the threshold")
    for one in confirmations:
        if one.signer not in survivors:
            raise RuleBrokenError("SA-501", "confirmation by a client not listed")
        message = Confirm(session, one.signer, one.signature)
        message.verify(params.roster[one.signer].identity, confirmed)
