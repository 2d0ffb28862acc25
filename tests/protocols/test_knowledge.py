"""The measure of the attacks bites: on weaker clients it finds the inputs.

Each test here weakens one thing that the protocol does, repeats an attack, and
shows that ``Knowledge`` then computes an honest client's input from the bytes.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols import shamir
from protocols.agreement import AgreementKey
from protocols.secagg import messages
from protocols.secagg.boxes import Channels
from protocols.secagg.params import SessionParams
from tests.protocols.adversary import Adversary
from tests.protocols.elimination import independent, is_inside, kernel
from tests.protocols.knowledge import Knowledge
from tests.session import make_inputs, make_params

VICTIM, COLLUDER = "site-0", "site-5"


def attacked(num_clients=6, threshold=4, colluder=COLLUDER, *, suite=1, **changes):
    params = make_params(num_clients, threshold, suite=suite, **changes)
    return Adversary(params, Knowledge((colluder,) if colluder else ()))


@pytest.mark.parametrize("suite", [1, 2, 3])
@pytest.mark.parametrize("dropped", [(), ("site-2",), ("site-0", "site-4")])
def test_an_honest_run_tells_the_sum_and_the_colluders_input(suite, dropped):
    attack = attacked(suite=suite)
    attack.all_mask()
    attack.knowledge.assert_nothing()
    listed = [name for name in attack.everybody if name not in dropped]
    attack.finish(listed)
    attack.knowledge.assert_only_sums(1)
    (found,) = attack.knowledge.sums()
    assert {name: weight for (name, _), weight in found.items()} == dict.fromkeys(
        [name for name in listed if name != COLLUDER], 1
    )
    kinds = {key[1:] for key in attack.knowledge.secrets()}
    survivors = {(i, 1) for i in attack.indices(listed)}
    dropouts = {(i, 2) for i in attack.indices(dropped)}
    assert kinds == survivors | dropouts


@pytest.mark.parametrize("suite", [1, 2])
def test_a_client_that_reveals_both_shares(suite, monkeypatch):
    attack = attacked(suite=suite)
    attack.all_mask()
    listed = [name for name in attack.everybody if name != "site-1"]
    attack.finish(listed)  # site-1 counts as dropped: its R is known
    attack.knowledge.assert_only_sums(1)
    assert attack.knowledge.recovered() == set()
    again = attacked(suite=suite)
    again.all_mask()
    saved = {name: again.save(name) for name in listed}
    again.finish(listed)
    # The same clients answer for a list with site-1 too, against SA-006 and SA-008.
    for name in listed:
        again.restore(name, saved[name])
    again.finish(again.everybody)
    assert again.knowledge.recovered() == {"site-1"}
    with pytest.raises(AssertionError):
        again.knowledge.assert_never_both()
    with pytest.raises(AssertionError):
        again.knowledge.assert_only_sums(2)


@pytest.mark.parametrize("suite", [1, 2])
def test_a_client_that_masks_only_with_the_colluders(suite, monkeypatch):
    attack = attacked(suite=suite)
    attack.all_share()
    with monkeypatch.context() as weak:  # without SA-206
        weak.setattr(SessionParams, "min_cohort", 1)
        attack.mask(VICTIM, attack.delivery(VICTIM, [COLLUDER]))
    attack.knowledge.assert_nothing()  # its own mask is still there
    others = attack.everybody[1:]
    for name in others:
        attack.mask(name, attack.delivery(name, attack.everybody))
        attack.confirm(name, attack.survivors(attack.everybody))
    for name in others:
        attack.unmask(name, attack.confirmations(name, attack.everybody))
    assert attack.knowledge.recovered() == {VICTIM}
    assert attack.knowledge.smallest_sum() == 1


def test_a_client_that_checks_no_signature_of_a_key(monkeypatch):
    attack = attacked()
    for name in attack.everybody:
        attack.advertise(name)
    entries, keys = dict(attack.entries), {}
    for index in range(1, 5):
        keys[index] = [
            AgreementKey.derive(
                label, bytes([index]) * 32, attack.session, attack.suite
            )
            for label in (b"channel", b"mask")
        ]
        for key in keys[index]:
            attack.knowledge.keys[key.public_bytes] = key
        channel, mask = (key.public_bytes for key in keys[index])
        entries[index] = replace(entries[index], channel_key=channel, mask_key=mask)
    with monkeypatch.context() as weak:  # without SA-014
        weak.setattr(messages.Advertise, "verify", lambda *_: None)
        attack.share(VICTIM, attack.roster_of(entries.values()))
    state = attack.states[VICTIM]
    boxes = [
        Channels(index, channel, state.directory, state.context, attack.suite).seal(
            {0: (bytes(shamir.SHARE_BYTES), bytes(shamir.SHARE_BYTES))}, {}, bytes(32)
        )[0]
        for index, (channel, _) in keys.items()
    ]
    delivered = tuple(
        replace(box, peer=index) for index, box in zip(keys, boxes, strict=True)
    )
    delivery = messages.Delivery(attack.suite, attack.session, delivered)
    attack.mask(VICTIM, delivery.to_bytes())
    assert attack.knowledge.recovered() == {VICTIM}


def test_a_rolled_back_confirmation_is_as_good_as_one_more_colluder():
    # Four clients, one colluder, threshold 3: safe. A second one that signs two
    # lists makes 2 t > n + |C| false. The caller's store must not go back.
    attack = attacked(4, 3, "site-3")
    attack.all_mask()
    target, signer, other = "site-0", "site-1", "site-2"
    everybody, without = attack.everybody, [signer, other, "site-3"]
    saved = attack.save(signer)
    attack.confirm(signer, attack.survivors(everybody))
    attack.confirm(target, attack.survivors(everybody))
    for name in (signer, target):
        attack.unmask(name, attack.confirmations(name, everybody))
    attack.knowledge.assert_only_sums(1)
    attack.restore(signer, saved)
    for name in (signer, other):
        attack.confirm(name, attack.survivors(without))
    for name in (signer, other):
        attack.unmask(name, attack.confirmations(name, without))
    assert target in attack.knowledge.recovered()


def test_an_input_masked_anew_after_a_rollback_tells_the_difference():
    # The masks of one context are one-time pads: what was masked once is spent.
    attack = attacked()
    attack.all_share()
    saved = attack.save(VICTIM)
    delivery = attack.delivery(VICTIM, attack.everybody)
    attack.mask(VICTIM, delivery)
    attack.restore(VICTIM, saved)
    attack.mask(VICTIM, delivery)
    attack.knowledge.assert_nothing()  # the same bytes again say nothing new
    attack.restore(VICTIM, saved)
    attack.mask(VICTIM, delivery, make_inputs(attack.params, seed=7)[VICTIM])
    assert attack.knowledge.recovered() == {VICTIM}


def test_the_same_input_in_two_sums_is_their_difference():
    attack = attacked()
    attack.all_mask()
    attack.finish(attack.everybody)
    members = attack.params.roster[1:]
    retry = Adversary(
        replace(attack.params, roster=members, attempt=1), attack.knowledge
    )
    retry.inputs = attack.inputs  # against the rule that a masked input is spent
    retry.all_mask()
    retry.finish(retry.everybody)
    attack.knowledge.assert_never_both()
    assert attack.knowledge.recovered() == {VICTIM}


@pytest.mark.parametrize("answers", [0, 1, 2, 3, 4])
def test_secrets_are_rebuilt_from_the_threshold_of_shares_on(answers):
    attack = attacked(4, 3, colluder=None)
    attack.all_mask()
    for name in attack.everybody:
        attack.confirm(name, attack.survivors(attack.everybody))
    for name in attack.everybody[:answers]:
        attack.unmask(name, attack.confirmations(name, attack.everybody))
    if answers < 3:
        assert attack.knowledge.secrets() == {}
        attack.knowledge.assert_nothing()
    else:
        assert len(attack.knowledge.secrets()) == 4
        attack.knowledge.assert_only_sums(1)


def test_elimination():
    rows = [{"a": 1, "b": 1}, {"a": 1}, {"b": 2}, {"c": 1}]
    for weights in kernel(rows):
        total = {
            name: sum(
                w * row.get(name, 0) for w, row in zip(weights, rows, strict=True)
            )
            for name in "abc"
        }
        assert set(total.values()) == {0}
    assert len(kernel(rows)) == 1
    sums = [{"x": 1, "y": 1}, {"y": 1, "z": 1}, {"x": 1, "z": -1}]
    assert len(independent(sums)) == 2
    assert is_inside(sums[:2], {"x", "z"})  # their difference
    assert not is_inside(sums[:2], {"x"})
    assert not is_inside([], {"x"})
