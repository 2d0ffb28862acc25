"""The directory of session keys, checked alike by the server and each client.

Checks raise ``RuleBrokenError``; the role that runs them adds the blame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from protocols import kdf, labels
from protocols.errors import MessageError, RuleBrokenError
from protocols.keys import verify_exchange_key
from protocols.secagg.messages import Advertise, Roster
from protocols.secagg.params import SessionParams

__all__ = [
    "Directory",
    "bind",
    "verify_entry",
    "verify_roster",
    "verify_session",
    "with_entry",
]

Directory = Mapping[int, Advertise]
"""Verified advertisements by index in the roster; iterated in that order."""


def verify_session(expected: bytes, received: bytes) -> None:
    """SA-011: the message belongs to the session of this party."""
    if received != expected:
        raise RuleBrokenError(
            "SA-011", "message of another session (other model, study or roster)"
        )


def verify_entry(params: SessionParams, session: bytes, entry: Advertise) -> None:
    """One advertisement is of a member, signed by it, with usable keys."""
    # SA-011, SA-014: of this session, signed by the pinned identity.
    verify_session(session, entry.session)
    if entry.sender >= len(params.roster):
        raise RuleBrokenError("SA-103", "advertisement of a stranger")
    entry.verify(params.roster[entry.sender].identity, session)
    # SA-101: both keys are canonical and of full order.
    try:
        verify_exchange_key(entry.channel_key)
        verify_exchange_key(entry.mask_key)
    except MessageError as error:
        raise RuleBrokenError("SA-101", str(error)) from error


def with_entry(directory: Directory, entry: Advertise) -> Directory:
    """The directory with one more entry, in roster order (SA-102).

    All channel and mask keys of a session are distinct, so no party can take
    over another one's mask by repeating its key.
    """
    known = {
        key
        for other in directory.values()
        for key in (other.channel_key, other.mask_key)
    }
    if entry.channel_key == entry.mask_key or known & {
        entry.channel_key,
        entry.mask_key,
    }:
        raise RuleBrokenError("SA-102", "advertised key is not distinct")
    return dict(sorted({**directory, entry.sender: entry}.items()))


def verify_roster(
    params: SessionParams, session: bytes, own: Advertise, roster: Roster
) -> Directory:
    """The directory that one client accepts from the server."""
    # SA-011: of this session.
    verify_session(session, roster.session)
    # SA-101, SA-102, SA-103: members only, signed, usable and distinct keys.
    directory: Directory = {}
    for entry in roster.entries:
        verify_entry(params, session, entry)
        directory = with_entry(directory, entry)
    # SA-104: our own entry, exactly as we sent it.
    if directory.get(own.sender) != own:
        raise RuleBrokenError("SA-104", "our own keys are missing or altered")
    # SA-105: enough clients, by our own threshold.
    params.require_cohort(len(directory), "SA-105")
    return directory


def bind(session: bytes, entries: Iterable[Advertise]) -> bytes:
    """The context of all later phases: session id and directory digest (SA-106).

    It salts every derivation and joins every box header and signature from
    phase 1 on, so clients with different directories share nothing.
    """
    parts = [entry.to_bytes() for entry in entries]
    return session + kdf.digest(labels.DIRECTORY, session, *parts)
