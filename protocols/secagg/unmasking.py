"""From revealed shares to the masks that are left in the sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hmac import compare_digest

from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import (
    FaultySharesError,
    MessageError,
    ProtocolError,
    RuleBrokenError,
    TooFewSurvivorsError,
    blame_client,
)
from protocols.keys import Secret
from protocols.secagg.hybrid import accept_offer, open_vault
from protocols.secagg.masks import (
    Mask,
    commitment_of,
    mask_key_of,
    pair_mask,
    self_mask,
)
from protocols.secagg.reconstruction import reconstruct
from protocols.secagg.server_states import CollectingReveals

__all__ = ["Rebuilt", "leftover_masks", "rebuild_secrets"]


@dataclass(frozen=True, eq=False, repr=False)
class Rebuilt(Secret):
    """One secret per client, and groups in which at least one client deviated."""

    secrets: Mapping[int, bytes]  # b of each survivor, R of each dropout
    suspects: tuple[tuple[int, ...], ...]


def rebuild_secrets(state: CollectingReveals) -> Rebuilt:
    """Rebuild b of each survivor, and R of each dropout that somebody masked with.

    Raises:
        TooFewSurvivorsError: Fewer shares of one client than the threshold.
        FaultyClientError, FaultySharesError: See ``reconstruct``.
    """
    # Every client's own masks must go, and those of dropouts that others added.
    shares: dict[int, dict[int, bytes]] = {
        dealer: {} for cohort in state.cohorts.values() for dealer in cohort
    }
    for holder, unmask in state.received.items():
        for one in unmask.reveals:
            shares[one.peer][holder] = one.share
    secrets: dict[int, bytes] = {}
    suspects: list[tuple[int, ...]] = []
    for dealer in sorted(shares):
        secrets[dealer], groups = _rebuilt(state, dealer, shares[dealer])
        suspects.extend(groups)
    return Rebuilt(secrets, tuple(suspects))


def _rebuilt(
    state: CollectingReveals, dealer: int, shares: Mapping[int, bytes]
) -> tuple[bytes, tuple[tuple[int, ...], ...]]:
    """SA-505: a secret counts only if it matches what its dealer published."""
    params, entry = state.params, state.directory[dealer]
    if len(shares) < params.threshold:
        raise _shortage(state, dealer, shares)

    def is_right(secret: bytes) -> bool:
        if dealer in state.cohorts:
            found = commitment_of(secret, state.session)
            return compare_digest(found, entry.commitment)
        key = mask_key_of(secret, state.session, params.primitives)
        return compare_digest(key.public_bytes, entry.mask_key)

    return reconstruct(params, dealer, shares, is_right)


def _shortage(
    state: CollectingReveals, dealer: int, shares: Mapping[int, bytes]
) -> ProtocolError:
    """SA-506: a neighbour without a share got a box from the dealer, like all others.

    It signed that the box did not open: the dealer deviated, or these neighbours.
    """
    params = state.params
    near = params.graph(state.context).neighbours(dealer)
    without = sorted(near & state.received.keys() - shares.keys())
    if len(shares) + len(without) < params.threshold:
        return TooFewSurvivorsError(len(shares), params.threshold, "unmask")
    return FaultySharesError(
        params.name_of(dealer), [params.name_of(holder) for holder in without]
    )


def leftover_masks(
    state: CollectingReveals, secrets: Mapping[int, bytes]
) -> list[Mask]:
    """SA-508: what to add to the sum to remove every mask that did not cancel.

    Raises:
        FaultyClientError: A vault or an offer is not what its owner signed (SA-509).
    """
    masks: list[Mask] = []
    for dealer, secret in secrets.items():
        if dealer in state.cohorts:
            masks.append(self_mask(secret, state.context).inverse())
        else:
            masks.extend(_masks_of_dropout(state, dealer, secret))
    return masks


def _masks_of_dropout(
    state: CollectingReveals, dealer: int, recovery: bytes
) -> list[Mask]:
    """What the dropout would have added is what cancels each survivor's side."""
    key = mask_key_of(recovery, state.session, state.params.primitives)
    peers = [peer for peer, cohort in state.cohorts.items() if dealer in cohort]
    shared = _shared_by_kem(state, dealer, recovery, key, peers)
    return [
        pair_mask(
            dealer,
            key,
            peer,
            state.directory[peer].mask_key,
            state.context,
            shared.get(peer),
        )
        for peer in peers
    ]


def _shared_by_kem(
    state: CollectingReveals,
    dealer: int,
    recovery: bytes,
    key: AgreementKey,
    peers: list[int],
) -> dict[int, KemSecret]:
    """In a hybrid suite: what the dropout offered, and what was offered to it."""
    if not state.params.primitives.hybrid:
        return {}
    name_of, context = state.params.name_of, state.context
    own = state.encapsulations[dealer]
    # SA-509: both the vault and the offers are as their owners signed them.
    with blame_client(name_of(dealer)), _dishonest():
        shared = open_vault(recovery, dealer, own.offers, own.vault, context)
    for peer in peers:
        if peer < dealer:
            offer = state.encapsulations[peer].offers[dealer]
            with blame_client(name_of(peer)), _dishonest():
                shared[peer] = accept_offer(dealer, key, peer, offer, context)
    return shared


@contextmanager
def _dishonest() -> Iterator[None]:
    try:
        yield
    except MessageError as error:
        raise RuleBrokenError("SA-509", str(error)) from error
