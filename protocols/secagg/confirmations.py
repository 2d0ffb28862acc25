"""The survivor list, and the signatures that make everybody see the same one.

Without this phase a server could show different lists to different clients and
collect shares of both secrets of one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from protocols import kdf, labels, wire
from protocols.errors import RuleBrokenError
from protocols.secagg.messages import Confirm, Confirmation
from protocols.secagg.params import SessionParams

__all__ = ["confirmed_context", "verify_confirmations", "verify_survivors"]


def verify_survivors(
    params: SessionParams,
    own: int,
    neighbourhood: Collection[int],
    cohort: Collection[int],
    survivors: Sequence[int],
) -> None:
    """The list is one that client ``own``, which masked with ``cohort``, may sign.

    Args:
        params: For the bounds.
        own: Index of this client.
        neighbourhood: It and its neighbours; everybody in a complete graph.
        cohort: It and those it masked with.
        survivors: The list.
    """
    # SA-401: we are in it.
    if own not in survivors:
        raise RuleBrokenError("SA-401", "survivor list leaves this client out")
    # SA-402: of our neighbours only those we masked with, and members only. In
    # the sum of any other list our masks do not cancel, so it was made for
    # selectively delivered boxes.
    near = set(neighbourhood).intersection(survivors)
    if not near <= set(cohort) or max(survivors) >= len(params.roster):
        raise RuleBrokenError("SA-402", "survivor list names a stranger")
    # SA-403: enough inputs that, colluders apart, another one hides ours.
    params.require_cohort(len(survivors), "SA-403")
    params.require_threshold(len(near), "SA-403")


def confirmed_context(context: bytes, survivors: Sequence[int]) -> bytes:
    """SA-404: a confirmation covers session, directory and the whole list."""
    listed = wire.write_indices(survivors)
    return context + kdf.digest(labels.SURVIVOR_LIST, context, listed)


def verify_confirmations(
    params: SessionParams,
    session: bytes,
    confirmed: bytes,
    near: Collection[int],
    confirmations: Sequence[Confirmation],
) -> None:
    """SA-501: at least t distinct survivors signed exactly our list.

    The encoding is strictly increasing, so the signers are distinct. One bad
    signature refuses them all: a correct server relays only what it verified.

    Args:
        params: For the threshold and the identities.
        session: The session id.
        confirmed: What was signed, from ``confirmed_context``.
        near: The survivors in this client's neighbourhood, itself included.
        confirmations: As received.
    """
    params.require_threshold(len(confirmations), "SA-501")
    for one in confirmations:
        if one.signer not in near:
            raise RuleBrokenError("SA-501", "confirmation by a client not listed")
        message = Confirm(params.primitives, session, one.signer, one.signature)
        message.verify(params.roster[one.signer].identity, confirmed)
