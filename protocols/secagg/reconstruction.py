"""From revealed shares back to secrets, with checks that name bad shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice

from protocols import shamir
from protocols.errors import FaultyClientError, FaultySharesError, MessageError
from protocols.secagg.params import SessionParams

__all__ = ["reconstruct"]

# Subsets tried before a dealer and its holders are named together; each costs
# about a millisecond at a threshold of 67.
_MAX_SUBSETS = 500


def reconstruct(
    params: SessionParams,
    dealer: int,
    shares: Mapping[int, bytes],
    is_right: Callable[[bytes], bool],
) -> tuple[bytes, tuple[tuple[int, ...], ...]]:
    """One dealer's secret, and groups in which at least one client deviated.

    A holder is named (with the dealer) only if that is certain. Two bad holders
    can choose errors that cancel at zero: their subset then gives the right
    secret on a wrong polynomial, off which the *honest* holders lie. If a shares
    agree, at least a - |C| of them and the checked secret itself are points of
    what the dealer dealt; t points determine it, so a >= t + |C| - 1 is needed.
    Otherwise the dealer and all holders form one group.

    Args:
        params: For the threshold and the names.
        dealer: Whose secret it is.
        shares: By holder; at least ``params.threshold``.
        is_right: Compares a candidate with what the dealer published (SA-505).

    Raises:
        FaultyClientError: All shares agree, more than the colluders' worth of
            them, on a secret that is not the published one: the dealer's doing.
        FaultySharesError: No subset that was tried gives the secret (SA-506).
    """
    for number, subset in enumerate(_subsets(sorted(shares), params.threshold)):
        secret = _candidate(subset, shares)
        if secret is not None and is_right(secret):
            # A good first subset needs no search; others' shares are not judged.
            return secret, _suspects(params, dealer, subset, shares) if number else ()
    first = tuple(sorted(shares))[: params.threshold]
    agree = not _misfits(first, shares)
    if agree and len(shares) - params.max_colluders >= params.threshold:
        raise FaultyClientError(
            params.name_of(dealer), "dealt shares of another secret", "SA-506"
        )
    raise FaultySharesError(
        params.name_of(dealer), [params.name_of(holder) for holder in sorted(shares)]
    )


def _suspects(
    params: SessionParams,
    dealer: int,
    subset: tuple[int, ...],
    shares: Mapping[int, bytes],
) -> tuple[tuple[int, ...], ...]:
    misfits = _misfits(subset, shares)
    agreeing = len(shares) - len(misfits)
    if agreeing >= params.threshold + params.max_colluders - 1:
        return tuple((dealer, holder) for holder in misfits)
    return ((dealer, *(holder for holder in sorted(shares) if holder != dealer)),)


def _subsets(holders: list[int], size: int) -> Iterator[tuple[int, ...]]:
    """Windows first: some window leaves out any single holder; then any subset."""
    doubled = holders + holders
    for start in range(len(holders) if len(holders) > size else 1):
        yield tuple(sorted(doubled[start : start + size]))
    if len(holders) > size:
        yield from islice(combinations(holders, size), _MAX_SUBSETS)


def _points(subset: tuple[int, ...]) -> list[int]:
    return [holder + 1 for holder in subset]


def _candidate(subset: tuple[int, ...], shares: Mapping[int, bytes]) -> bytes | None:
    try:
        return shamir.reconstruct(_points(subset), [shares[one] for one in subset])
    except MessageError:
        return None


def _misfits(subset: tuple[int, ...], shares: Mapping[int, bytes]) -> tuple[int, ...]:
    """Holders off the polynomial through the shares of ``subset``."""
    values = [shares[one] for one in subset]
    return tuple(
        holder
        for holder in sorted(shares)
        if shamir.interpolate(_points(subset), values, holder + 1) != shares[holder]
    )
