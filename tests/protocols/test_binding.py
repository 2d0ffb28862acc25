"""What parties share that took the same parameters, model and directory: all or nothing."""

from __future__ import annotations

from dataclasses import replace

from protocols.secagg import client, messages
from tests.protocols.tampering import blames_boxes_of, with_item
from tests.session import (
    MODEL,
    SUITE,
    identity_of,
    make_inputs,
    make_params,
    randomness,
)


def test_the_session_id_covers_every_parameter():
    """SA-007."""
    base = make_params(6, threshold=4)
    roster = base.roster
    changes = [
        {"study_digest": bytes(32)},
        {"round": 2},
        {"attempt": 1},
        {"purpose": "other"},
        {"roster": roster[1:]},
        {"roster": with_item(roster, 0, replace(roster[0], name="aaa"))},
        {"roster": with_item(roster, 0, replace(roster[0], identity=b"\1" * 32))},
        {"threshold": 5},
        {"max_colluders": 0},
        {"body_length": 10},
        {"lane_length": 3},
        {"ring_bits": 16},
        {"mode": "semi-honest"},
        {"suite": 2},
        {"suite": 3},
    ]
    ids = {replace(base, **change).session_id(MODEL) for change in changes}
    ids |= {base.session_id(MODEL), base.session_id(bytes(32))}
    assert len(ids) == len(changes) + 2


def test_different_directories_give_nothing_in_common():
    """SA-106."""
    # Honest rosters that differ in one member: contexts differ, no box opens.
    params = make_params(5)
    states, entries = {}, {}
    for member in params.roster:
        states[member.name], sent = client.advertise_keys(
            params,
            member.name,
            identity_of(member.name),
            MODEL,
            randomness=randomness(member.name),
        )
        entries[member.name] = messages.Advertise.from_bytes(sent, SUITE)
    session = params.session_id(MODEL)
    boxes = {}
    for name in ["site-0", "site-1", "site-2", "site-3"]:
        listed = [e for n, e in entries.items() if n != "site-4" or name != "site-0"]
        roster = messages.Roster(SUITE, session, tuple(listed)).to_bytes()
        states[name], sent = client.share_keys(
            states[name], roster, randomness=randomness(name)
        )
        boxes[name] = {
            b.peer: b.sealed for b in messages.ShareKeys.from_bytes(sent, SUITE).boxes
        }
    delivered = [messages.Box(i, boxes[f"site-{i}"][0]) for i in (1, 2, 3)]
    delivery = messages.Delivery(SUITE, session, tuple(delivered)).to_bytes()
    with blames_boxes_of("site-1", "site-2", "site-3"):
        client.mask_input(states["site-0"], delivery, make_inputs(params)["site-0"])
