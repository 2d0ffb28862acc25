"""Every reachable state of small sessions, and weakened clients that are caught."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from protocols.secagg import client, messages, stored
from protocols.secagg.client_states import SurvivorsConfirmed
from protocols.secagg.masks import mask_key_of, pair_mask
from protocols.secagg.params import SessionParams
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from tests.protocols.exhaustive import Found, searched, tiny
from tests.protocols.invariants import BOTH, COHORT, ONE_LIST, OPENS, Knowledge
from tests.protocols.search import Search, Violation
from tests.session import MODEL, SUITE


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((3, 2, 0, None), Found(756, 15, 59, 7, 3)),
        ((3, 3, 1, None), Found(1258, 18, 31, 2, 2)),
        ((4, 3, 1, 0), Found(44085, 177, 6177, 343, 2)),
    ],
)
def test_every_state_keeps_every_promise(size, found):
    assert searched(*size) == found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((4, 3, 0, 1), Found(28836, 128, 25559, 153, 3)),
        ((4, 3, 1, None), Found(199785, 177, 6177, 343, 2)),
    ],
)
def test_every_state_of_four_clients_keeps_every_promise(size, found):
    assert searched(*size) == found


# -------------------------------------------- weakened clients: each must be caught


def check_all_states(search, promise):
    knowledge = Knowledge(search, frozenset({promise}))
    for state in search.states():
        knowledge.groups(state)


def assert_broken(search, promise):
    """Some reachable state breaks the promise."""
    with pytest.raises(Violation) as caught:
        check_all_states(search, promise)
    assert caught.value.promise == promise


def test_without_the_check_of_confirmations_two_lists_are_opened(monkeypatch):
    monkeypatch.setattr(client, "verify_confirmations", lambda *_: None)
    assert_broken(Search(tiny(4, 3, 1), (3,), 0), ONE_LIST)


class ListsOnly(Search):
    """A server that lies about survivors only, in lists of three."""

    def _rosters(self, node):
        everybody = tuple(
            messages.Advertise.from_bytes(root.sent[0], SUITE) for root in self.roots
        )
        yield messages.Roster(SUITE, self.session, everybody).to_bytes(), 0

    def _deliveries(self, node):
        yield max(super()._deliveries(node), key=lambda found: len(found[0]))

    def _survivor_lists(self, node):
        for listed in combinations(range(len(self.honest)), 3):
            yield messages.Survivors(SUITE, self.session, listed).to_bytes(), 0


def test_without_the_check_of_confirmations_fewer_inputs_are_in_a_sum(monkeypatch):
    """(n - |C|)(1 - (n - t)/(t - |C|)) = 5/3 instead of t - |C| = 3 honest inputs."""
    monkeypatch.setattr(client, "verify_confirmations", lambda *_: None)
    assert_broken(ListsOnly(tiny(5, 3, 0), (), 0), COHORT)


def test_a_threshold_of_half_gives_both_secrets_of_one_client():
    params = tiny(4, 3, 0)
    object.__setattr__(params, "threshold", 2)  # 2 t = n + |C|
    assert_broken(ListsOnly(params, (), 0), BOTH)


def test_masks_with_everybody_in_the_roster_do_not_come_off(monkeypatch):
    opened = client._opened

    def with_everybody(state, delivery):
        shares, masks = opened(state, delivery)
        own, context = state.seat.index, state.context
        key = mask_key_of(state.recovery, state.seat.session, SUITE)
        for peer in state.directory.keys() - shares.keys() - {own}:
            public = state.directory[peer].mask_key
            masks.append(pair_mask(own, key, peer, public, context))
        return shares, masks

    monkeypatch.setattr(client, "_opened", with_everybody)
    assert_broken(Search(tiny(4, 3, 1), (3,), 0), OPENS)


def test_a_list_with_clients_not_masked_with_opens_one_input(monkeypatch):
    real = client.verify_survivors

    def without_402(params, own, near, cohort, survivors):
        real(params, own, near, near, survivors)

    monkeypatch.setattr(client, "verify_survivors", without_402)
    assert_broken(Search(tiny(4, 3, 1), (3,), 0), COHORT)


@pytest.mark.parametrize(
    ("step", "size"),
    [("mask_input", (4, 3, 1)), ("confirm_survivors", (3, 2, 0))],
)
def test_without_a_bound_too_few_inputs_are_in_a_sum(monkeypatch, step, size):
    """SA-206 and SA-403 in turn."""
    real = getattr(client, step)

    def lenient(*arguments, **more):
        with monkeypatch.context() as patch:
            patch.setattr(SessionParams, "min_cohort", 1)
            return real(*arguments, **more)

    monkeypatch.setattr(client, step, lenient)
    colluders = tuple(range(size[0] - size[2], size[0]))
    assert_broken(Search(tiny(*size), colluders, 0), COHORT)


def test_a_state_that_is_not_used_up_signs_two_lists(monkeypatch):
    real = stored.answer

    def forgetful(record, message, **arguments):
        seat, before = record.state, state_to_bytes(record.state)
        params, identity = seat.seat.params, seat.seat.identity
        found = real(record, message, **arguments)
        if not isinstance(found.state, SurvivorsConfirmed):
            return found
        state = state_from_bytes(params, identity, MODEL, before)
        return replace(found, state=state)

    monkeypatch.setattr(stored, "answer", forgetful)
    search = Search(tiny(4, 3, 1), (3,), 0)
    with pytest.raises(Violation, match="one answer per phase"):
        search.replay_everything()
