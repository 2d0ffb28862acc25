"""The attacks that a secure sum is for: who is blamed, and that nothing is revealed.

A malicious server and one colluding client, ``COLLUDER``, against five honest
clients with a threshold of four. Unless a test says otherwise they know nothing
but the one sum that is theirs anyway: no honest client's two secrets, and no
combination of fewer honest inputs than ``min_cohort`` less the colluders.
``test_knowledge.py`` shows that the same attacks succeed on weaker clients.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.agreement import AgreementKey
from protocols.errors import (
    FaultyServerError,
    MessageError,
    MisuseError,
    TooFewSurvivorsError,
)
from protocols.secagg import client, messages, server, stored
from protocols.secagg.params import PHASES
from tests.protocols.adversary import Adversary, watched
from tests.protocols.knowledge import Knowledge
from tests.protocols.tampering import (
    BAD,
    blames_boxes_of,
    blames_client,
    blames_server,
    finished,
    malicious,
    opened_until,
    wrong_share,
)
from tests.session import (
    MODEL,
    RECEIVE,
    SUITE,
    assert_sum,
    healthy,
    identity_of,
    make_inputs,
    make_params,
)

VICTIM, COLLUDER = "site-0", "site-5"
SUITES = pytest.mark.parametrize("suite", [1, 2])


def attacked(suite=1, knowledge=None, *, seed=0, model=MODEL, **changes):
    """An adversary; with the ``knowledge`` of an earlier session it adds to that."""
    params = make_params(6, threshold=4, suite=suite, **changes)
    known = knowledge or Knowledge((COLLUDER,))
    return Adversary(params, known, seed=seed, model=model)


# ------------------------------------------------------------- key substitution

SUBSTITUTES = {
    "under the old signature": lambda entry, name, session: entry,
    "signed by the server": lambda entry, name, session: entry.signed(
        identity_of("server"), session
    ),
    "signed by the colluder": lambda entry, name, session: entry.signed(
        identity_of(COLLUDER), session
    ),
}


@SUITES
@pytest.mark.parametrize("part", ["channel_key", "mask_key"])
@pytest.mark.parametrize("how", SUBSTITUTES)
def test_key_substitution(how, part, suite):
    attack = attacked(suite)
    for name in attack.everybody:
        attack.advertise(name)
    entries = dict(attack.entries)
    for index, name in enumerate(attack.honest[1:], start=1):
        label = name.encode()
        key = AgreementKey.derive(label, bytes(32), attack.session, attack.suite)
        attack.knowledge.keys[key.public_bytes] = key
        changed = replace(entries[index], **{part: key.public_bytes})
        entries[index] = SUBSTITUTES[how](changed, name, attack.session)
    with blames_server("SA-014"):
        attack.share(VICTIM, attack.roster_of(entries.values()))
    attack.knowledge.assert_nothing()


@SUITES
def test_a_clients_own_keys_substituted(suite):
    attack = attacked(suite)
    for name in attack.everybody:
        attack.advertise(name)
    # Even an entry that is the victim's own, from another session of its key.
    entries = dict(attack.entries)
    for changed in (
        replace(entries[0], nonce=bytes(32)).signed(
            identity_of(VICTIM), attack.session
        ),
        None,
    ):
        listed = [changed, *list(entries.values())[1:]] if changed else []
        with blames_server("SA-104"):
            attack.share(VICTIM, attack.roster_of(listed))
    attack.knowledge.assert_nothing()


# ---------------------------------------------------------------- cohort of one


@SUITES
@pytest.mark.parametrize("others", [[], [COLLUDER], ["site-1", COLLUDER]])
def test_cohort_of_one(others, suite):
    attack = attacked(suite)
    for name in attack.everybody:
        attack.advertise(name)
    with blames_server("SA-105"):
        attack.share(VICTIM, attack.roster([VICTIM, *others]))
    for name in attack.everybody:
        attack.share(name, attack.roster(attack.everybody))
    with blames_server("SA-206"):
        attack.mask(VICTIM, attack.delivery(VICTIM, others))
    for name in attack.everybody:
        attack.mask(name, attack.delivery(name, attack.everybody))
    with blames_server("SA-403"):
        attack.confirm(VICTIM, attack.survivors([VICTIM, *others]))
    attack.knowledge.assert_nothing()


# ------------------------------------------------------------ threshold lowered


def test_threshold_lowered_in_the_parameters():
    # Too low a threshold is refused wherever the parameters come from.
    with pytest.raises(MisuseError, match="threshold 3 must be in 4"):
        make_params(6, threshold=3)
    # A lower one than the study's is another session: nothing in it verifies.
    attack = attacked()
    lower = Adversary(make_params(6, threshold=5), attack.knowledge)
    for name in attack.everybody:
        attack.advertise(name)
    lower.advertise(VICTIM)
    for session, rule in [(attack.session, "SA-011"), (lower.session, "SA-014")]:
        entries = [replace(e, session=lower.session) for e in attack.entries.values()]
        roster = messages.Roster(SUITE, session, tuple(entries)).to_bytes()
        with blames_server(rule):
            lower.share(VICTIM, roster)
    attack.knowledge.assert_nothing()


@SUITES
def test_threshold_lowered_where_confirmations_are_counted(suite):
    attack = attacked(suite)
    attack.all_mask()
    for name in attack.honest[:2]:
        attack.confirm(name, attack.survivors(attack.everybody))
    with blames_server("SA-501"):  # these two and the colluder are three
        attack.unmask(VICTIM, attack.confirmations(VICTIM, attack.everybody))
    attack.knowledge.assert_nothing()


# ------------------------------------------------------ modulus or width changed


@pytest.mark.parametrize(
    "change",
    [
        {"ring_bits": 16},
        {"ring_bits": 64},
        {"body_length": 8},
        {"body_length": 10},
        {"lane_length": 1},
        {"suite": 2},
        {"suite": 3},
    ],
)
def test_modulus_or_width_changed(change):
    attack = attacked()
    other = replace(attack.params, **change)
    for name in attack.everybody:
        attack.advertise(name)
    shown = other.session_id(MODEL)
    # 1. What the server shows in the session of the changed parameters.
    roster = messages.Roster(other.primitives, shown, tuple(attack.entries.values()))
    with blames_server("SA-010" if "suite" in change else "SA-011"):
        attack.share(VICTIM, roster.to_bytes())
    # 2. Such a server cannot use what the victim sends.
    opened = server.open_session(other, MODEL)
    sent = attack.entries[0].to_bytes()
    if "suite" in change:
        with pytest.raises(MessageError):
            server.receive_keys(opened, VICTIM, sent)
    else:
        with blames_client(VICTIM, "SA-011"):
            server.receive_keys(opened, VICTIM, sent)
    # 3. And nobody can make the victim mask an input of the changed shape.
    for name in attack.everybody:
        attack.share(name, attack.roster(attack.everybody))
    delivery = attack.delivery(VICTIM, attack.everybody)
    if "suite" not in change:
        with pytest.raises(MisuseError, match="SA-301"):
            attack.mask(VICTIM, delivery, other.zeros())
    attack.knowledge.assert_nothing()


# --------------------------------------------------- same site alive and dropped


@SUITES
def test_same_site_alive_and_dropped(suite):
    attack = attacked(suite)
    attack.all_mask()
    target = "site-1"
    alive, dropped = attack.everybody, [n for n in attack.everybody if n != target]
    believers, others = [VICTIM, target, "site-2"], ["site-3", "site-4"]
    for name in believers:
        attack.confirm(name, attack.survivors(alive))
    for name in others:
        attack.confirm(name, attack.survivors(dropped))
    # With the colluder, who signs both lists, four confirm one and three the other.
    for name in others:
        with blames_server("SA-501"):
            attack.unmask(name, attack.confirmations(name, dropped))
    for name in believers:
        attack.unmask(name, attack.confirmations(name, alive))
    attack.knowledge.assert_only_sums(1)


@SUITES
def test_both_shares_asked_of_one_client(suite):
    attack = attacked(suite)
    attack.all_mask()
    for name in attack.honest:
        attack.confirm(name, attack.survivors(attack.everybody))
    # A second list for a client that has signed one; the type of a state forbids it.
    with pytest.raises(MisuseError, match="SA-006"):
        attack.confirm(VICTIM, attack.survivors(attack.honest))
    for name in attack.honest:
        attack.unmask(name, attack.confirmations(name, attack.everybody))
    reveals = attack.knowledge.reveals
    for unmask in reveals:
        # SA-502: one kind per dealer; SA-503: never a share of one's own R; SA-201:
        # of b a share of one's own is there.
        assert [one.peer for one in unmask.reveals] == list(range(6))
        assert {one.kind for one in unmask.reveals} == {messages.REVEAL_SELF}
    attack.knowledge.assert_only_sums(1)


def test_no_client_ever_reveals_both_shares_or_one_of_its_own_recovery_key():
    session = healthy(6, leaves={"site-5": "masked-input"})
    knowledge = watched(session)
    session.play()
    reveals = knowledge.reveals
    assert len(reveals) == 5
    for unmask in reveals:
        kinds = {one.peer: one.kind for one in unmask.reveals}
        assert len(kinds) == len(unmask.reveals)
        assert kinds[unmask.sender] == messages.REVEAL_SELF
        assert kinds[5] == messages.REVEAL_RECOVERY
    knowledge.assert_only_sums(1)


@SUITES
def test_a_late_input_of_a_client_that_counts_as_dropped(suite):
    # Everybody's R of the victim is revealed, and then its input arrives: its own
    # mask still covers it.
    attack = attacked(suite)
    attack.all_mask()
    attack.finish([name for name in attack.everybody if name != VICTIM])
    known = attack.knowledge.secrets()
    assert (attack.session, 0, messages.REVEAL_RECOVERY) in known
    attack.knowledge.assert_only_sums(1)
    assert VICTIM not in {n for one in attack.knowledge.sums() for n, _ in one}


# --------------------------------------------------- boxes delivered selectively


@SUITES
def test_boxes_delivered_selectively(suite):
    attack = attacked(suite)
    attack.all_share()
    # 1. Only the colluder's box: masks that it knows would be all there are.
    with blames_server("SA-206"):
        attack.mask(VICTIM, attack.delivery(VICTIM, [COLLUDER]))
    # 2. As few as pass; the others are to confirm a wider list with the victim.
    attack.mask(VICTIM, attack.delivery(VICTIM, ["site-1", "site-2", COLLUDER]))
    others = attack.everybody[1:]
    for name in others:
        attack.mask(name, attack.delivery(name, attack.everybody))
        attack.confirm(name, attack.survivors(attack.everybody))
    with blames_server("SA-402"):
        attack.confirm(VICTIM, attack.survivors(attack.everybody))
    for name in others:
        attack.unmask(name, attack.confirmations(name, attack.everybody))
    # The victim's b is known, and still no sum: those it shares no mask with
    # hide the ones it does.
    assert (attack.session, 0, messages.REVEAL_SELF) in attack.knowledge.secrets()
    attack.knowledge.assert_nothing()


def test_selective_delivery_cannot_put_a_victim_in_a_wider_sum():
    # Through a server that is honest otherwise: the victim gets boxes of t - 1
    # others only; the list names all five.
    def attack(phase, way, name, message):
        if way == "down" and name == BAD and phase == "masked-input":
            parsed = messages.Delivery.from_bytes(message, SUITE)
            return replace(parsed, boxes=parsed.boxes[:3]).to_bytes()
        if way == "down" and phase == "confirm-survivors":
            parsed = messages.Survivors.from_bytes(message, SUITE)
            return replace(parsed, survivors=(0, 1, 2, 3, 4)).to_bytes()
        return message

    session = healthy(5, tamper=attack)
    knowledge = watched(session)
    with pytest.raises(TooFewSurvivorsError):
        session.play()
    error = session.client_errors[BAD]
    assert isinstance(error, FaultyServerError)
    assert error.rule == "SA-402"
    knowledge.assert_nothing()


# ------------------------------------- client state rolled back, phase 1 asked again


@SUITES
def test_client_state_rolled_back_and_phase_1_asked_again(suite):
    attack = attacked(suite)
    for name in attack.everybody:
        attack.advertise(name)
    saved = attack.save(VICTIM)
    everybody = attack.roster(attack.everybody)
    attack.share(VICTIM, everybody)
    first = attack.shared[VICTIM]
    attack.restore(VICTIM, saved)
    attack.share(VICTIM, everybody, salt="again")
    second = attack.shared[VICTIM]
    # The same keys seal other shares, under other nonces.
    nonces = {box.sealed[-100:-88] for m in (first, second) for box in m.boxes}
    assert len(nonces) == 10
    for name in attack.everybody[1:]:
        attack.share(name, everybody)
    # Some clients get shares of the one polynomial, some of the other.
    for name in attack.everybody:
        attack.shared[VICTIM] = first if name in {"site-1", "site-2"} else second
        attack.mask(name, attack.delivery(name, attack.everybody))
    attack.knowledge.assert_nothing()
    attack.finish(attack.everybody)
    # In the hybrid suite the victim forgot what it offered first: masks with the
    # first two do not cancel, and even the sum stays hidden.
    attack.knowledge.assert_only_sums(1 if suite == 1 else 0)
    # Then once more, with a directory that leaves somebody out.
    attack.restore(VICTIM, saved)
    attack.share(VICTIM, attack.roster(attack.everybody[:5]), salt="third")
    # Nobody else sealed a box in this directory.
    with blames_boxes_of(*attack.everybody[1:5]):
        attack.mask(VICTIM, attack.delivery(VICTIM, attack.everybody[:5]))
    attack.knowledge.assert_only_sums(1 if suite == 1 else 0)


# ------------------------------------------- survivor lists that differ between sites


@SUITES
def test_survivor_lists_that_differ_between_sites(suite):
    attack = attacked(suite)
    attack.all_mask()
    lists = {}
    for number, name in enumerate(attack.honest):
        left_out = attack.honest[number - 1]
        lists[name] = [other for other in attack.everybody if other != left_out]
        attack.confirm(name, attack.survivors(lists[name]))
    for name, listed in lists.items():
        with blames_server("SA-501"):
            attack.unmask(name, attack.confirmations(name, listed))
        # Nor does a confirmation of one list pass for one of another.
        found = [
            (index, signature)
            for (_, index), signature in sorted(
                attack.signatures.items(), key=lambda item: item[0][1]
            )
            if index in attack.indices(listed)
        ]
        assert len(found) >= attack.params.threshold
        with blames_server("SA-014"):
            attack.unmask(name, attack.confirmations_of(found))
    attack.knowledge.assert_nothing()


def test_different_survivor_lists_never_get_enough_confirmations():
    # The honest server code notices too, when lists are changed on their way.
    def equivocate(phase, way, name, message):
        if way == "down" and phase == "confirm-survivors":
            left_out = 5 if name in {"site-0", "site-1", "site-2"} else 0
            listed = tuple(i for i in range(6) if i != left_out)
            parsed = messages.Survivors.from_bytes(message, SUITE)
            return replace(parsed, survivors=listed).to_bytes()
        return message

    session = healthy(6, tamper=equivocate)
    knowledge = watched(session)
    with pytest.raises(TooFewSurvivorsError):
        session.play()
    assert not any(isinstance(s, client.Finished) for s in session.states.values())
    knowledge.assert_nothing()


# ------------------------------------- replay from another round, session or site


@pytest.fixture(scope="module")
def earlier():
    """All that went up and down in a session that came to its end."""
    params = make_params(6, threshold=4)
    ups, downs = {}, {}

    def record(phase, way, name, message):
        (ups if way == "up" else downs)[phase, name] = message
        return message

    session = healthy(params=params, tamper=record)
    knowledge = watched(session, (COLLUDER,))
    session.play()
    return ups, downs, knowledge


OTHERS = {
    "another round": {"round": 2},
    "another attempt": {"attempt": 1},
    "another sum of the round": {"purpose": "norms"},
    "another study": {"study_digest": bytes(32)},
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("phase", PHASES)
def test_replay_from_another_session(phase, other, earlier):
    ups, downs, known = earlier
    knowledge = Knowledge((COLLUDER,))
    for name in ("params", "directories", "keys", "recoveries"):
        getattr(knowledge, name).update(getattr(known, name))
    for name in ("shared", "reveals", "inputs"):
        getattr(knowledge, name).extend(getattr(known, name))
    params = make_params(6, threshold=4, **OTHERS[other])
    session = healthy(params=params, inputs=make_inputs(params, seed=9), seed=9)
    watched(session, (COLLUDER,), knowledge)
    state, down = opened_until(session, phase)
    new = params.session_id(MODEL)
    old = ups[phase, VICTIM]
    # 1. To the server: as it was, and with the new session's id.
    with blames_client(VICTIM, "SA-011"):
        RECEIVE[phase](state, VICTIM, old)
    with blames_client(VICTIM, "SA-014"):
        RECEIVE[phase](state, VICTIM, old[:3] + new + old[35:])
    # 2. To the client.
    if phase != "advertise-keys":
        message = downs[phase, VICTIM]
        with blames_server("SA-011"):
            session._client_step(phase, VICTIM, message)
        blames = {
            "share-keys": blames_server("SA-011"),
            "masked-input": blames_boxes_of(*(f"site-{i}" for i in range(1, 6))),
            "unmask": blames_server("SA-014"),
        }
        if phase in blames:  # a list of survivors is the same in every session
            with blames[phase]:
                session._client_step(phase, VICTIM, message[:3] + new + message[35:])
    # 3. The new session ends as if nothing had been tried.
    assert_sum(session, finished(session, phase, state, down), session.inputs)
    knowledge.assert_only_sums(2)


@pytest.mark.parametrize("phase", PHASES)
def test_replay_from_another_site(phase):
    session = healthy(6)
    knowledge = watched(session)
    state, down = opened_until(session, phase)
    session.states[BAD], sent = session._client_step(phase, BAD, down[BAD])
    with blames_client(VICTIM, "SA-012"):
        RECEIVE[phase](state, VICTIM, sent)
    with blames_client(VICTIM, "SA-014"):
        RECEIVE[phase](state, VICTIM, sent[:35] + bytes(2) + sent[37:])
    knowledge.assert_nothing()


@SUITES
def test_boxes_for_another_site_or_from_another_sender(suite):
    attack = attacked(suite)
    attack.all_share()
    parsed = messages.Delivery.from_bytes(
        attack.delivery("site-1", attack.everybody), attack.suite
    )
    # The boxes for site-1, as if they were the victim's, each under its sender.
    boxes = tuple(box for box in parsed.boxes if box.peer != 0)
    for delivered in (boxes, [replace(b, peer=b.peer % 5 + 1) for b in boxes]):
        listed = tuple(sorted(delivered, key=lambda box: box.peer))
        message = messages.Delivery(attack.suite, attack.session, listed)
        with blames_boxes_of(*(f"site-{box.peer}" for box in listed)):
            attack.mask(VICTIM, message.to_bytes())
    attack.knowledge.assert_nothing()


# ------------------------------------------------------------ retry with n-1 sites


@SUITES
def test_retry_with_fewer_sites(suite):
    attack = attacked(suite)
    attack.all_mask()
    without_one = [name for name in attack.everybody if name != VICTIM]
    # 1. In the same session nobody masks a second time, whatever the server says.
    for name in without_one:
        for message in (
            attack.roster(without_one),
            attack.delivery(name, without_one),
        ):
            with blames_server("SA-010"):
                attack.confirm(name, message)
    attack.finish(attack.everybody)
    # 2. A retry is a new session over a new input (what was masked once is spent,
    # and whoever runs the client sees to that): two sums of unrelated inputs.
    members = attack.params.roster[1:]
    retry = Adversary(
        replace(attack.params, roster=members, attempt=1), attack.knowledge, seed=1
    )
    retry.all_mask()
    retry.finish(retry.everybody)
    attack.knowledge.assert_only_sums(2)


# ------------------------------------------------- model shown differently to one site


def test_a_client_with_another_model_is_in_another_session():
    session = healthy(5, models={BAD: bytes(32)})
    knowledge = watched(session)
    result = session.play()
    assert_sum(session, result, ["site-0", "site-2", "site-3", "site-4"])
    error = session.server_errors[BAD]
    assert (error.client, error.rule) == (BAD, "SA-011")
    knowledge.assert_only_sums(1)


@SUITES
def test_model_shown_differently_to_one_site(suite):
    attack = attacked(suite)
    alone = attacked(suite, attack.knowledge, model=bytes(32))
    for name in attack.everybody[1:]:
        attack.advertise(name)
    alone.advertise(VICTIM)
    entries = [*alone.entries.values(), *attack.entries.values()]
    for side, name in [(alone, VICTIM), (attack, "site-1")]:
        # Even when the server rewrites the session id of every foreign entry.
        rewritten = [replace(entry, session=side.session) for entry in entries]
        for listed, rule in [(entries, "SA-011"), (rewritten, "SA-014")]:
            with blames_server(rule):
                side.share(name, side.roster_of(listed))
    attack.knowledge.assert_nothing()


# -------------------------------------------------------------- wrong Shamir shares


@pytest.mark.parametrize("victim", range(5))
def test_wrong_shamir_shares_among_enough_good_ones_name_dealer_and_holder(victim):
    session = malicious(
        "unmask",
        lambda m: replace(
            m,
            reveals=tuple(wrong_share(r) if r.peer == victim else r for r in m.reveals),
        ),
    )
    knowledge = watched(session, (BAD,))
    result = session.play()
    assert_sum(session, result, [f"site-{i}" for i in range(5)])
    pair = server.Suspicion("SA-506", (f"site-{victim}", BAD))
    assert result.blamed == (pair,)
    knowledge.assert_only_sums(1)


# ------------------------------------------------------------------- duplicate ids


@SUITES
def test_duplicate_ids_in_the_roster(suite):
    attack = attacked(suite)
    for name in attack.everybody:
        attack.advertise(name)
    entries = list(attack.entries.values())
    twice = [*entries[:2], entries[1], *entries[2:]]
    renamed = [*entries[:5], replace(entries[4], sender=5)]
    resigned = [
        *entries[:5],
        replace(entries[4], sender=5).signed(identity_of(COLLUDER), attack.session),
    ]
    for listed, rule in [(twice, "SA-010"), (renamed, "SA-014"), (resigned, "SA-102")]:
        with blames_server(rule):
            attack.share(VICTIM, attack.roster_of(listed))
    attack.knowledge.assert_nothing()


@SUITES
def test_duplicate_ids_in_later_messages(suite):
    attack = attacked(suite)
    attack.all_share()
    parsed = messages.Delivery.from_bytes(
        attack.delivery(VICTIM, attack.everybody), attack.suite
    )
    twice = replace(parsed, boxes=(parsed.boxes[0], *parsed.boxes))
    with blames_server("SA-010"):
        attack.mask(VICTIM, twice.to_bytes())
    for name in attack.everybody:
        attack.mask(name, attack.delivery(name, attack.everybody))
    listed = messages.Survivors(attack.suite, attack.session, (0, 1, 1, 2, 3))
    with blames_server("SA-010"):
        attack.confirm(VICTIM, listed.to_bytes())
    attack.confirm(VICTIM, attack.survivors(attack.everybody))
    own = next(iter(attack.signatures.values()))
    with blames_server("SA-010"):  # one signature is not four
        attack.unmask(VICTIM, attack.confirmations_of([(0, own)] * 4))
    renumbered = [(index, own) for index in range(4)]
    with blames_server("SA-014"):
        attack.unmask(VICTIM, attack.confirmations_of(renumbered))
    attack.knowledge.assert_nothing()


def test_duplicate_ids_in_the_parameters():
    roster = make_params(4).roster
    for twice in (
        (*roster, roster[3]),
        (*roster, replace(roster[3], name="site-9")),
        (*roster, replace(roster[3], identity=bytes(32))),
    ):
        with pytest.raises(MisuseError):
            make_params(4, roster=twice)


# ------------------------------------------------------------ messages out of order


@SUITES
def test_messages_out_of_order(suite):
    attack = attacked(suite)
    attack.all_mask()
    attack.confirm(VICTIM, attack.survivors(attack.everybody))
    downs = {
        "share-keys": attack.roster(attack.everybody),
        "masked-input": attack.delivery(VICTIM, attack.everybody),
        "confirm-survivors": attack.survivors(attack.everybody),
        "unmask": attack.confirmations(VICTIM, attack.everybody),
    }
    again = attacked(suite, attack.knowledge, seed=1)
    for name in again.everybody:
        again.advertise(name)
    assert_only_one_step_goes(again, "share-keys", downs)
    for name in again.everybody:
        again.share(name, again.roster(again.everybody))
    assert_only_one_step_goes(again, "masked-input", downs)
    again.mask(VICTIM, again.delivery(VICTIM, again.everybody))
    assert_only_one_step_goes(again, "confirm-survivors", downs)
    again.confirm(VICTIM, again.survivors(again.everybody))
    assert_only_one_step_goes(again, "unmask", downs)
    attack.knowledge.assert_nothing()


def assert_only_one_step_goes(attack, phase, downs):
    """In one phase the victim takes no message and no step of another one."""
    steps = {
        "share-keys": attack.share,
        "masked-input": attack.mask,
        "confirm-survivors": attack.confirm,
        "unmask": attack.unmask,
    }
    kept = attack.save(VICTIM)
    for other in downs.keys() - {phase}:
        with blames_server("SA-010"):
            steps[phase](VICTIM, downs[other])
        with pytest.raises(MisuseError, match="SA-006"):
            steps[other](VICTIM, downs[other])
    assert attack.save(VICTIM) == kept


@pytest.mark.parametrize("phase", PHASES)
def test_messages_out_of_order_at_the_server(phase, earlier):
    ups, _, _ = earlier
    session = healthy(6)
    state, _ = opened_until(session, phase)
    for other in PHASES:
        if other != phase:
            with pytest.raises(MessageError):
                RECEIVE[phase](state, VICTIM, ups[other, VICTIM])
            with pytest.raises(MisuseError, match="SA-006"):
                RECEIVE[other](state, VICTIM, ups[other, VICTIM])


# ------------------------ a second unmask request after a crash and restart


def test_a_second_unmask_request_after_a_crash_and_restart():
    attack = attacked()
    attack.all_mask()
    for name in attack.honest[1:]:
        attack.confirm(name, attack.survivors(attack.everybody))

    # The victim keeps nothing in memory: its record is bytes between two messages.
    def process(data, message):
        record = stored.Record.from_bytes(
            attack.params, identity_of(VICTIM), MODEL, data
        )
        return stored.answer(record, message).to_bytes()

    def outbound(data):
        return stored.Record.from_bytes(
            attack.params, identity_of(VICTIM), MODEL, data
        ).outbound

    masked = stored.Record(attack.states[VICTIM], bytes(32), b"").to_bytes()
    confirmed = process(masked, attack.survivors(attack.everybody))
    # A list without site-1, after the crash: the first answer bound the client.
    for listed in (attack.everybody[:1] + attack.everybody[2:], attack.honest):
        with blames_server("SA-010"):
            process(confirmed, attack.survivors(listed))
    assert process(confirmed, attack.survivors(attack.everybody)) == confirmed
    request = attack.confirmations("site-1", attack.everybody)
    ended = process(confirmed, request)
    revealed = outbound(ended)
    attack.knowledge.hears(revealed)
    # The same request again gets the same bytes; any other gets none.
    assert outbound(process(ended, request)) == revealed
    parsed = messages.Confirmations.from_bytes(request, SUITE)
    fewer = replace(parsed, confirmations=parsed.confirmations[:4])
    for other in (fewer.to_bytes(), attack.survivors(attack.honest), b""):
        with blames_server("SA-009"):
            process(ended, other)
    for name in attack.honest[1:]:
        attack.unmask(name, request)
    attack.knowledge.assert_only_sums(1)
