"""Wrong shares: the sum is right or withheld, and nobody honest is named alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols import shamir
from protocols.errors import FaultySharesError, TooFewSurvivorsError
from protocols.prg import Stream
from protocols.secagg.reconstruction import reconstruct
from protocols.secagg.unmasking import rebuild_secrets
from tests.protocols.tampering import (
    BAD,
    blames_client,
    corrupted,
    malicious,
    only,
    opened_until,
    wrong_share,
)
from tests.session import healthy, make_params


@pytest.mark.parametrize("late", [True, False])
def test_a_bad_share_without_spare_ones_names_everybody_concerned(late):
    session = malicious(
        "unmask",
        lambda m: replace(m, reveals=(*m.reveals[:3], wrong_share(m.reveals[3]))),
        num_clients=4,
    )
    session.leaves = {"site-3": "confirm-survivors" if late else "masked-input"}
    with pytest.raises(FaultySharesError) as caught:
        session.play()
    assert caught.value.dealer == "site-3"
    assert BAD in caught.value.holders


@pytest.mark.parametrize("field", ["self_secret", "recovery"])
def test_a_dealer_that_shares_another_secret_is_blamed(field):
    """SA-505: what was published decides, not that the shares agree."""
    params = make_params(6, threshold=4)
    leaves = {BAD: "masked-input"} if field == "recovery" else {}
    session = healthy(params=params, leaves=leaves)

    def cheat(message):
        session.states[BAD] = replace(session.states[BAD], **{field: bytes(32)})
        return message

    session.tamper = only("advertise-keys", "up", cheat)
    with blames_client(BAD, "SA-506"):
        session.play()


def test_a_dealer_that_seals_few_good_boxes_and_leaves_is_named_with_the_others():
    # One honest client masked with it, three could not: its R cannot be rebuilt.
    def seal_badly(message):
        bad = {2, 3, 4}
        boxes = tuple(corrupted(b) if b.peer in bad else b for b in message.boxes)
        return replace(message, boxes=boxes)

    params = make_params(6, threshold=4)
    session = malicious("share-keys", seal_badly, params=params)
    session.leaves = {BAD: "masked-input"}
    with pytest.raises(FaultySharesError) as caught:
        session.play()
    assert caught.value.dealer == BAD
    assert caught.value.holders == ("site-2", "site-3", "site-4")


def test_too_few_reveals_name_nobody():
    session = healthy(params=make_params(6, threshold=4))
    state, down = opened_until(session, "unmask")
    for name, message in down.items():
        state = session.exchange("unmask", name, message, state)
    few = {index: state.received[index] for index in range(3)}
    with pytest.raises(
        TooFewSurvivorsError, match="3 clients are left in phase unmask"
    ):
        rebuild_secrets(replace(state, received=few))


def dealt_shares(secret, params):
    points = range(1, len(params.roster) + 1)
    dealt = shamir.split([secret], params.threshold, points, Stream(b"k" * 32))
    return {holder: share for holder, (share,) in enumerate(dealt)}


def test_bad_holders_cannot_get_an_honest_dealer_blamed_alone():
    params, secret = make_params(6, threshold=4), b"s" * 32
    good = dealt_shares(secret, params)
    bad = {h: Stream(bytes([h]) * 32).read(36) for h in (0, 2, 5)}
    bad = {h: shamir.interpolate([1], [_small(share)], 1) for h, share in bad.items()}
    with pytest.raises(FaultySharesError) as caught:  # three good ones are too few
        reconstruct(params, 1, {**good, **bad}, secret.__eq__)
    assert caught.value.dealer == "site-1"
    shares = {**good, 2: bad[2], 5: bad[5]}  # four good ones: found, the others named
    assert reconstruct(params, 1, shares, secret.__eq__) == (secret, ((1, 2), (1, 5)))


def _small(share):
    """Random bytes as a canonical share: every limb below 2^22."""
    return b"".join(
        share[i : i + 2] + bytes([share[i + 2] & 0x3F]) for i in range(0, 36, 3)
    )


def test_colluding_holders_cannot_frame_honest_ones():
    # Errors of holders 2 and 3 that cancel at zero for the subset 2..7: it gives the
    # right secret, and the honest holders 0 and 1 do not fit its polynomial.
    params, secret = make_params(8, threshold=6, max_colluders=2), b"s" * 32
    shares = dealt_shares(secret, params)

    def weight(own, points):
        value = 1
        for other in points:
            if other != own:
                value = (
                    value * other * pow(other - own, -1, shamir.PRIME) % shamir.PRIME
                )
        return value

    points = range(3, 9)
    ratio = weight(3, points) * pow(-weight(4, points), -1, shamir.PRIME)
    for holder, error in ((2, 1), (3, ratio)):
        limb = (int.from_bytes(shares[holder][:3], "little") + error) % shamir.PRIME
        shares[holder] = limb.to_bytes(3, "little") + shares[holder][3:]
    found, groups = reconstruct(params, 1, shares, secret.__eq__)
    assert found == secret
    assert groups == ((1, 0, 2, 3, 4, 5, 6, 7),)
