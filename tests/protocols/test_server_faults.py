"""A server that breaks a rule is named by the client that sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.errors import FaultyBoxesError, FaultyServerError
from protocols.secagg import messages, server
from tests.protocols.tampering import (
    BAD,
    parsed_down,
    victims_error,
    with_item,
    without,
)
from tests.session import SUITE, assert_sum, healthy

SERVER_FAULTS = [
    ("share-keys", lambda m: replace(m, entries=without(m.entries, 1)), "SA-104"),
    ("share-keys", lambda m: replace(m, entries=without(m.entries, 0, 2)), "SA-105"),
    ("share-keys", lambda m: replace(m, entries=()), "SA-104"),
    ("share-keys", lambda m: replace(m, session=bytes(32)), "SA-011"),
    *(
        (
            "share-keys",
            lambda m, f=field: replace(
                m,
                entries=with_item(
                    m.entries, 2, replace(m.entries[2], **{f: b"\x11" * 32})
                ),
            ),
            rule,
        )
        for field, rule in [
            ("session", "SA-011"),
            ("channel_key", "SA-014"),
            ("mask_key", "SA-014"),
            ("commitment", "SA-014"),
            ("nonce", "SA-014"),
        ]
    ),
    (
        "share-keys",
        lambda m: replace(
            m, entries=with_item(m.entries, 4, replace(m.entries[3], sender=4))
        ),
        "SA-014",
    ),
    (
        "share-keys",
        lambda m: replace(m, entries=(*m.entries, replace(m.entries[4], sender=5))),
        "SA-103",
    ),
    ("masked-input", lambda m: replace(m, boxes=m.boxes[2:]), "SA-206"),
    ("masked-input", lambda m: replace(m, boxes=()), "SA-206"),
    ("masked-input", lambda m: replace(m, session=bytes(32)), "SA-011"),
    (
        "masked-input",
        lambda m: replace(
            m, boxes=(m.boxes[0], replace(m.boxes[1], peer=1), *m.boxes[2:])
        ),
        "SA-204",
    ),
    (
        "masked-input",
        lambda m: replace(m, boxes=(*m.boxes, replace(m.boxes[0], peer=9))),
        "SA-204",
    ),
    ("confirm-survivors", lambda m: replace(m, survivors=(0, 2, 3, 4)), "SA-401"),
    ("confirm-survivors", lambda m: replace(m, survivors=(0, 1, 2, 3, 9)), "SA-402"),
    ("confirm-survivors", lambda m: replace(m, survivors=(0, 1, 2)), "SA-403"),
    ("confirm-survivors", lambda m: replace(m, survivors=(1,)), "SA-403"),
    ("confirm-survivors", lambda m: replace(m, session=bytes(32)), "SA-011"),
    ("unmask", lambda m: replace(m, confirmations=m.confirmations[2:]), "SA-501"),
    ("unmask", lambda m: replace(m, confirmations=()), "SA-501"),
    ("unmask", lambda m: replace(m, session=bytes(32)), "SA-011"),
    (
        "unmask",
        lambda m: replace(
            m,
            confirmations=with_item(
                m.confirmations,
                0,
                replace(m.confirmations[0], signature=m.confirmations[2].signature),
            ),
        ),
        "SA-014",
    ),
    (
        "unmask",
        lambda m: replace(
            m,
            confirmations=with_item(
                m.confirmations, 3, replace(m.confirmations[3], signer=99)
            ),
        ),
        "SA-501",
    ),
]


@pytest.mark.parametrize(("phase", "change", "rule"), SERVER_FAULTS)
def test_a_server_that_breaks_a_rule_is_blamed(phase, change, rule):
    session = healthy(5)
    session.tamper = parsed_down(session, phase, change)
    error = victims_error(session)
    assert isinstance(error, FaultyServerError)
    assert error.rule == rule
    assert set(session.client_errors) == {BAD}


def test_a_server_that_loses_one_box_sees_it_in_the_signed_cohort():
    session = healthy(7)  # t = 5; site-1 shares no mask with site-6
    session.tamper = parsed_down(
        session, "masked-input", lambda m: replace(m, boxes=m.boxes[:-1])
    )
    result = session.play()
    assert_sum(session, result, [f"site-{i}" for i in range(6)])
    assert result.dropouts == {"site-6": "masked-input"}
    assert result.blamed == (server.Suspicion("SA-304", ("site-6", BAD)),)


def test_a_box_sent_back_to_its_sender_does_not_open():
    """SA-202: one key per direction."""
    sent = {}

    def reflect(phase, way, name, message):
        if (phase, way, name) == ("share-keys", "up", BAD):
            parsed = messages.ShareKeys.from_bytes(message, SUITE)
            sent.update({box.peer: box.sealed for box in parsed.boxes})
        if (phase, way, name) == ("masked-input", "down", BAD):
            parsed = messages.Delivery.from_bytes(message, SUITE)
            boxes = tuple(replace(b, sealed=sent[b.peer]) for b in parsed.boxes)
            return replace(parsed, boxes=boxes).to_bytes()
        return message

    error = victims_error(healthy(5, tamper=reflect))
    assert isinstance(error, FaultyBoxesError)
    assert error.dealers == ("site-0", "site-2", "site-3", "site-4")


def test_boxes_under_each_others_names_do_not_open():
    session = healthy(5)
    session.tamper = parsed_down(
        session,
        "masked-input",
        lambda m: replace(
            m,
            boxes=tuple(
                replace(box, sealed=other.sealed)
                for box, other in zip(m.boxes, m.boxes[::-1], strict=True)
            ),
        ),
    )
    error = victims_error(session)
    assert isinstance(error, FaultyBoxesError)
    assert error.dealers == ("site-0", "site-2", "site-3", "site-4")
