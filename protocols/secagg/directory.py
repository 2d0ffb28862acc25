"""The directory of session keys, checked alike by the server and each client.

Checks raise ``RuleBrokenError``; the role that runs them adds the blame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from protocols import kdf, labels, merkle, wire
from protocols.agreement import components, verify_public_key
from protocols.errors import MessageError, RuleBrokenError
from protocols.secagg.messages import Advertise, Neighbourhood, Roster
from protocols.secagg.params import SessionParams

__all__ = [
    "Directory",
    "bind",
    "directory_root",
    "joined",
    "keys_of",
    "verify_entry",
    "verify_neighbourhood",
    "verify_roster",
    "verify_session",
]

Directory = Mapping[int, Advertise]
"""Verified advertisements by index in the roster; iterated in that order.

The server has everybody's (U1), a client those of its neighbours and itself.
"""


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
        verify_public_key(entry.channel_key, params.primitives)
        verify_public_key(entry.mask_key, params.primitives)
    except MessageError as error:
        raise RuleBrokenError("SA-101", str(error)) from error


def keys_of(entry: Advertise) -> frozenset[bytes]:
    """SA-102: the public keys of one entry, all distinct."""
    parts = (*components(entry.channel_key), *components(entry.mask_key))
    if len(set(parts)) != len(parts):
        raise RuleBrokenError("SA-102", "advertised key is not distinct")
    return frozenset(parts)


def joined(taken: frozenset[bytes], keys: frozenset[bytes]) -> frozenset[bytes]:
    """SA-102: all channel and mask keys of a session are distinct.

    So no party can take over another one's mask by repeating its key.
    """
    if not taken.isdisjoint(keys):
        raise RuleBrokenError("SA-102", "advertised key is not distinct")
    return taken | keys


def verify_roster(
    params: SessionParams, own: Advertise, roster: Roster
) -> tuple[Directory, bytes]:
    """The directory and context that one client of a complete graph accepts."""
    # SA-011, SA-101, SA-102, SA-103, SA-104.
    directory = _verified(params, own, roster.session, roster.entries)
    # SA-105: enough clients, by our own bound.
    params.require_cohort(len(directory), "SA-105")
    return directory, bind(own.session, len(directory), directory_root(directory))


def verify_neighbourhood(
    params: SessionParams, own: Advertise, neighbourhood: Neighbourhood
) -> tuple[Directory, bytes]:
    """The directory and context that one client of a sparse graph accepts."""
    # SA-105: enough clients in the whole directory.
    params.require_cohort(neighbourhood.size, "SA-105")
    if neighbourhood.size > len(params.roster):
        raise RuleBrokenError("SA-105", "directory is larger than the roster")
    # SA-011, SA-101, SA-102, SA-103, SA-104.
    entries = [listing.entry for listing in neighbourhood.listings]
    directory = _verified(params, own, neighbourhood.session, entries)
    # SA-107: each entry stands in the directory whose root makes the graph, and
    # is that of a neighbour in this graph.
    for listing in neighbourhood.listings:
        try:
            merkle.verify_inclusion(
                listing.entry.to_bytes(),
                listing.position,
                neighbourhood.size,
                listing.proof,
                neighbourhood.root,
            )
        except MessageError as error:
            raise RuleBrokenError("SA-107", str(error)) from error
    context = bind(own.session, neighbourhood.size, neighbourhood.root)
    if not directory.keys() <= params.graph(context).closed(own.sender):
        raise RuleBrokenError("SA-107", "entry of a client that is no neighbour")
    params.require_threshold(len(directory), "SA-107")
    return directory, context


def _verified(
    params: SessionParams, own: Advertise, session: bytes, entries: Iterable[Advertise]
) -> Directory:
    # SA-011: of this session.
    verify_session(own.session, session)
    # SA-101, SA-102, SA-103: members only, signed, usable and distinct keys.
    directory: dict[int, Advertise] = {}
    taken = frozenset[bytes]()
    for entry in entries:
        verify_entry(params, own.session, entry)
        taken = joined(taken, keys_of(entry))
        directory[entry.sender] = entry
    # SA-104: our own entry, exactly as we sent it.
    if directory.get(own.sender) != own:
        raise RuleBrokenError("SA-104", "our own keys are missing or altered")
    return directory


def directory_root(directory: Directory) -> bytes:
    """Merkle root over all entries, in roster order (RFC 9162, section 2.1)."""
    return merkle.root([entry.to_bytes() for entry in directory.values()])


def bind(session: bytes, size: int, root: bytes) -> bytes:
    """The context of all later phases: session id and directory digest (SA-106).

    It salts every derivation and joins every box header and signature from
    phase 1 on, so clients with different directories share nothing.
    """
    return session + kdf.digest(labels.DIRECTORY, session, wire.u16(size), root)
