"""Beyond the complete graph: sparse graphs if the server is honest, else cohorts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols import merkle
from protocols.errors import MisuseError, TooFewSurvivorsError
from protocols.secagg import messages, server, stored
from protocols.secagg.directory import bind
from protocols.secagg.graph import cohorts, find_parameters
from protocols.secagg.params import PHASES
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from tests.protocols.adversary import watched
from tests.protocols.tampering import (
    BAD,
    blames_client,
    blames_server,
    finished,
    opened_until,
)
from tests.session import (
    CLOSE,
    MODEL,
    RECEIVE,
    SUITE,
    assert_sum,
    healthy,
    identity_of,
    make_inputs,
    make_params,
    plain_sum,
    randomness,
)


def sparse_params(num_clients=30, faults=1, **changes):
    """The smallest safe graph with this many colluders and as many dropouts."""
    fraction = faults / num_clients
    found = find_parameters(num_clients, fraction, fraction, server="curious")
    values = {
        "threshold": found.threshold,
        "degree": found.degree,
        "max_colluders": faults,
        "max_dropouts": faults,
        "mode": "semi-honest",
    }
    return make_params(num_clients, **{**values, **changes})


def names_of(params):
    return [member.name for member in params.roster]


# ------------------------------------------------------------------------- sums


def test_the_graph_of_these_tests():
    params = sparse_params(100, 5)
    assert (params.degree, params.threshold) == (12, 6)
    assert params.min_cohort == 95
    params = sparse_params()
    assert (params.degree, params.threshold, params.min_cohort) == (4, 2, 29)


def test_a_sum_of_a_hundred_with_a_dropout_in_every_phase():
    params = sparse_params(100, 5)
    leaves = dict(zip(names_of(params)[7::19], PHASES, strict=True))
    session = healthy(params=params, leaves=leaves)
    result = session.play()
    early = {name for name, phase in leaves.items() if phase in PHASES[:3]}
    assert_sum(session, result, set(names_of(params)) - early)
    assert dict(result.dropouts) == leaves
    assert result.blamed == ()
    # What a client handles does not grow with the number of clients.
    unmask = [m for m in session.seen_by_server if m[0] == messages.Unmask.tag]
    assert all(
        len(messages.Unmask.from_bytes(m, SUITE).reveals) <= params.degree + 1
        for m in unmask
    )


@pytest.mark.parametrize("phase", PHASES)
def test_the_most_dropouts_in_one_phase(phase):
    params = sparse_params(100, 5)
    leaves = dict.fromkeys(names_of(params)[::23], phase)
    assert len(leaves) == params.max_dropouts
    session = healthy(params=params, leaves=leaves)
    result = session.play()
    late = phase in {"confirm-survivors", "unmask"}
    assert_sum(
        session, result, set(names_of(params)) - (set() if late else set(leaves))
    )


@pytest.mark.parametrize("phase", PHASES)
def test_more_dropouts_than_the_bounds_allow_are_refused(phase):
    params = sparse_params(100, 5)
    leaves = dict.fromkeys(names_of(params)[::17], phase)
    assert len(leaves) == params.max_dropouts + 1
    session = healthy(params=params, leaves=leaves)
    with pytest.raises(TooFewSurvivorsError) as caught:
        session.play()
    error = caught.value
    assert (error.have, error.need, error.phase) == (94, 95, phase)
    assert session.client_errors == {}  # nobody is blamed for it


@pytest.mark.parametrize("suite", [1, 2, 3])
@pytest.mark.parametrize("phase", [None, *PHASES])
def test_sparse_sums_in_every_suite_and_what_the_server_knows(suite, phase):
    params = sparse_params(suite=suite)
    leaves = {"site-17": phase} if phase else {}
    session = healthy(params=params, leaves=leaves)
    knowledge = watched(session, ("site-3",))
    result = session.play()
    late = phase in {None, "confirm-survivors", "unmask"}
    expected = set(names_of(params)) - (set() if late else {"site-17"})
    assert_sum(session, result, expected)
    knowledge.assert_only_sums(1)
    (found,) = knowledge.sums()
    assert {name for name, _ in found} == expected - {"site-3"}


@pytest.mark.slow
def test_a_sum_of_three_hundred():
    params = sparse_params(300, 15)
    assert (params.degree, params.threshold) == (24, 14)
    leaves = dict.fromkeys(names_of(params)[5::21], "masked-input")
    session = healthy(params=params, leaves=leaves)
    assert_sum(session, session.play(), set(names_of(params)) - set(leaves))


def test_a_client_of_a_sparse_graph_survives_bytes_in_every_phase():
    params = sparse_params(20, 1)
    inputs = make_inputs(params)
    state = server.open_session(params, MODEL)
    records = {
        name: stored.start(
            params, name, identity_of(name), MODEL, randomness=randomness(name)
        )
        for name in names_of(params)
    }
    for phase in PHASES:
        for name, record in records.items():
            state = RECEIVE[phase](state, name, record.outbound)
        if phase == "unmask":
            break
        state, down = CLOSE[phase](state)
        for name, message in down.items():
            data = records[name].to_bytes()
            key = identity_of(name)
            read = stored.Record.from_bytes(params, key, MODEL, data)
            fresh = randomness(name, phase)
            records[name] = stored.answer(
                read, message, randomness=fresh, vector=inputs[name]
            )
    total = server.close_reveals(state).total
    assert total.to_bytes() == plain_sum(params, inputs, inputs).to_bytes()


# ------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mode": "malicious"}, "semi-honest"),
        ({"max_dropouts": 12}, "survivors fall apart"),
        ({"threshold": 8}, "live neighbours too few"),
        ({"max_colluders": 12}, "colluders open a client|survivors fall apart"),
        ({"threshold": 2}, "colluders open a client"),
        ({"threshold": 13}, "threshold 13 must be in"),
        ({"degree": 13}, "must be even"),
        ({"degree": 100}, "must be even"),
        ({"degree": 4, "threshold": 3}, "probability"),
        ({"max_dropouts": -1}, "max_dropouts"),
        ({"max_dropouts": 100}, "max_dropouts"),
        ({"max_colluders": 94}, "fewer than two honest"),
        ({"max_colluders": 99, "max_dropouts": 0}, "101 inputs are needed"),
    ],
)
def test_sparse_parameters_without_their_bounds_are_refused(changes, match):
    with pytest.raises(MisuseError, match=match):
        sparse_params(100, 5, **changes)


def test_the_size_of_a_graph():
    with pytest.raises(MisuseError, match="3 to 256 members"):
        make_params(257)
    assert len(make_params(256).roster) == 256


def test_the_session_id_covers_the_graph():
    base = sparse_params(100, 5)
    changes = [{"degree": 14}, {"max_dropouts": 4}, {"max_colluders": 4}]
    ids = {replace(base, **change).session_id(MODEL) for change in changes}
    assert len(ids | {base.session_id(MODEL)}) == 4


# ------------------------------------------- a server that shows a wrong neighbourhood


@pytest.fixture(scope="module")
def published():
    """One client before phase 1, its neighbourhood, and the whole directory."""
    session = healthy(params=sparse_params())
    state, down = opened_until(session, "share-keys")
    saved = state_to_bytes(session.states[BAD])
    return session, state, saved, messages.Neighbourhood.from_bytes(down[BAD], SUITE)


def test_neighbourhoods_are_made_when_asked_for():
    session = healthy(params=sparse_params())
    _, down = opened_until(session, "share-keys")
    assert len(down) == len(list(down)) == len(session.params.roster)
    assert down[BAD] == down[BAD] != down["site-2"]
    with pytest.raises(KeyError):
        down["nobody"]


def own_place(parsed):
    return next(i for i, one in enumerate(parsed.listings) if one.entry.sender == 1)


def listing_of(state, index):
    """A true entry of the directory with its true proof."""
    entries = list(state.directory.values())
    tree = merkle.Tree([entry.to_bytes() for entry in entries])
    position = list(state.directory).index(index)
    return messages.Listing(entries[position], position, tree.inclusion_proof(position))


def others_changed(parsed, **changes):
    """The first listing that is not our own, changed."""
    place = 1 if own_place(parsed) == 0 else 0
    changed = replace(parsed.listings[place], **changes)
    listings = (*parsed.listings[:place], changed, *parsed.listings[place + 1 :])
    return replace(parsed, listings=listings)


def stranger(state):
    """Some client that is not of the neighbourhood."""
    near = state.params.graph(state.context).closed(1)
    return next(index for index in state.directory if index not in near)


def with_listing(parsed, listing):
    together = sorted((*parsed.listings, listing), key=lambda one: one.entry.sender)
    return replace(parsed, listings=tuple(together))


def first_other(parsed):
    return parsed.listings[1 if own_place(parsed) == 0 else 0]


WRONG = {
    "an entry of no neighbour": (
        lambda m, s: with_listing(m, listing_of(s, stranger(s))),
        "SA-107",
    ),
    "a proof of another entry": (
        lambda m, s: others_changed(m, proof=listing_of(s, 29).proof),
        "SA-107",
    ),
    "no proof": (lambda m, s: others_changed(m, proof=()), "SA-107"),
    "a proof that is too long": (
        lambda m, s: others_changed(m, proof=(*first_other(m).proof, bytes(32))),
        "SA-107",
    ),
    "another position": (
        lambda m, s: others_changed(m, position=first_other(m).position ^ 1),
        "SA-107",
    ),
    "a position outside": (lambda m, s: others_changed(m, position=30), "SA-107"),
    "another root": (lambda m, s: replace(m, root=bytes(32)), "SA-107"),
    "too small a size": (lambda m, s: replace(m, size=28), "SA-105"),
    "a size of zero": (lambda m, s: replace(m, size=0), "SA-105"),
    "too large a size": (lambda m, s: replace(m, size=31), "SA-105"),
    "our own entry only": (
        lambda m, s: replace(m, listings=(m.listings[own_place(m)],)),
        "SA-107",
    ),
    "our own entry missing": (
        lambda m, s: replace(
            m, listings=tuple(one for one in m.listings if one.entry.sender != 1)
        ),
        "SA-104",
    ),
    "nobody": (lambda m, s: replace(m, listings=()), "SA-104"),
    "an altered key": (
        lambda m, s: others_changed(
            m, entry=replace(first_other(m).entry, mask_key=bytes(31) + b"\1")
        ),
        "SA-014",
    ),
    "an entry of a stranger": (
        lambda m, s: with_listing(
            m, replace(first_other(m), entry=replace(first_other(m).entry, sender=30))
        ),
        "SA-103",
    ),
    "an entry twice": (lambda m, s: with_listing(m, m.listings[0]), "SA-010"),
    "another session": (lambda m, s: replace(m, session=bytes(32)), "SA-011"),
    "a roster": (
        lambda m, s: messages.Roster(SUITE, s.session, tuple(s.directory.values())),
        "SA-010",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_server_that_shows_a_wrong_neighbourhood_is_blamed(how, published):
    session, state, saved, parsed = published
    change, rule = WRONG[how]
    session.states[BAD] = state_from_bytes(
        session.params, identity_of(BAD), MODEL, saved
    )
    with blames_server(rule):
        session._client_step("share-keys", BAD, change(parsed, state).to_bytes())


def test_a_size_that_the_proofs_do_not_exclude_gives_another_context(published):
    # A root does not tell the size of its tree (RFC 9162): 29 for 30 passes where
    # the paths are the same. The context covers it, so nothing is in common.
    session, state, saved, parsed = published
    for size in (29, 30):
        session.states[BAD] = state_from_bytes(
            session.params, identity_of(BAD), MODEL, saved
        )
        claimed = replace(parsed, size=size)
        graph = session.params.graph(context_of(session, claimed))
        kept = [one for one in parsed.listings if one.entry.sender in graph.closed(1)]
        shown = replace(claimed, listings=tuple(kept)).to_bytes()
        following, sent = session._client_step("share-keys", BAD, shown)
        assert (following.context == state.context) == (size == 30)
        if size == 29:
            with blames_client(BAD, "SA-014"):
                server.receive_shares(state, BAD, sent)


def context_of(session, parsed):
    return bind(parsed.session, parsed.size, parsed.root)


# ------------------------------------------------------- who is blamed in later phases


def test_a_client_that_treats_a_non_neighbour_as_one_is_blamed():
    session = healthy(params=sparse_params())
    state, down = opened_until(session, "share-keys")
    far = stranger(state)
    session.states[BAD], sent = session._client_step("share-keys", BAD, down[BAD])
    parsed = messages.ShareKeys.from_bytes(sent, SUITE)
    moved = replace(parsed.boxes[0], peer=far)
    boxes = tuple(sorted((*parsed.boxes, moved), key=lambda box: box.peer))
    signed = replace(parsed, boxes=boxes).signed(identity_of(BAD), state.context)
    with blames_client(BAD, "SA-203"):
        server.receive_shares(state, BAD, signed.to_bytes())


@pytest.mark.parametrize(
    ("phase", "change", "rule"),
    [
        (
            "masked-input",
            lambda m, far: replace(m, boxes=(replace(m.boxes[0], peer=far),)),
            "SA-204",
        ),
        ("masked-input", lambda m, far: replace(m, boxes=()), "SA-206"),
        (
            "confirm-survivors",
            lambda m, far: replace(m, survivors=m.survivors[2:]),
            "SA-401",
        ),
        (
            "confirm-survivors",
            lambda m, far: replace(m, survivors=m.survivors[:-2]),
            "SA-403",
        ),
        (
            "confirm-survivors",
            lambda m, far: replace(m, survivors=(*m.survivors, 30)),
            "SA-402",
        ),
        (
            "unmask",
            lambda m, far: replace(
                m,
                confirmations=tuple(
                    sorted(
                        (replace(m.confirmations[0], signer=far), *m.confirmations[1:]),
                        key=lambda one: one.signer,
                    )
                ),
            ),
            "SA-501",
        ),
        (
            "unmask",
            lambda m, far: replace(m, confirmations=m.confirmations[1:]),
            "SA-501",
        ),
    ],
)
def test_a_server_that_breaks_a_rule_of_the_sparse_graph_is_blamed(phase, change, rule):
    kinds = {
        "masked-input": messages.Delivery,
        "confirm-survivors": messages.Survivors,
        "unmask": messages.Confirmations,
    }
    session = healthy(params=sparse_params())
    state, down = opened_until(session, phase)
    parsed = kinds[phase].from_bytes(down[BAD], SUITE)
    with blames_server(rule):
        session._client_step(phase, BAD, change(parsed, stranger(state)).to_bytes())
    # Silence of this one client is all that comes of it.
    result = finished(session, phase, state, down, silent={BAD})
    late = phase in {"confirm-survivors", "unmask"}
    everybody = set(names_of(session.params))
    assert_sum(session, result, everybody if late else everybody - {BAD})


# ---------------------------------------------------------------------- cohorts


def cohort_params(number, members, **changes):
    """A complete graph of its own; the purpose names the cohort."""
    roster = make_params(12).roster
    return make_params(
        len(members),
        roster=tuple(roster[place] for place in members),
        purpose=f"update, cohort {number}",
        **changes,
    )


def test_sub_sums_of_cohorts_add_up_to_the_whole():
    whole = make_params(12)
    inputs = make_inputs(whole)
    total, summed = whole.zeros(), set()
    split = cohorts(12, 5)
    assert [len(members) for members in split] == [4, 4, 4]
    for number, members in enumerate(split):
        params = cohort_params(number, members)
        assert (params.mode, params.degree) == ("malicious", 0)
        own = {name: inputs[name] for name in names_of(params)}
        leaver = names_of(params)[number]
        session = healthy(
            params=params, inputs=own, leaves={leaver: PHASES[number + 2]}
        )
        result = session.play()
        total.add_in_place(result.total)
        summed |= set(result.survivors)
    assert len(summed) == 11  # one left before its input
    assert total.to_bytes() == plain_sum(whole, inputs, summed).to_bytes()


def test_six_hundred_clients_are_three_complete_graphs():
    split = cohorts(600)
    assert [len(members) for members in split] == [200, 200, 200]
    roster = make_params(250).roster  # any names
    assert make_params(200, roster=roster[:200]).threshold == 134


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_of_one_cohort_is_refused_in_another(phase):
    first, second = (
        healthy(params=cohort_params(number, members), seed=number)
        for number, members in enumerate(cohorts(12, 5)[:2])
    )
    sessions = [s.params.session_id(MODEL) for s in (first, second)]
    assert sessions[0] != sessions[1]
    state, down = opened_until(first, phase)
    _, other_down = opened_until(second, phase)
    mine, theirs = names_of(first.params)[0], names_of(second.params)[0]
    second.states[theirs], sent = second._client_step(phase, theirs, other_down[theirs])
    # A member of the other cohort is nobody here, and its message is of no use.
    for name in (theirs, mine):
        with blames_client(name, "SA-011"):
            RECEIVE[phase](state, name, sent)
    with blames_client(mine, "SA-014"):
        RECEIVE[phase](state, mine, sent[:3] + sessions[0] + sent[35:])
    if phase != "advertise-keys":
        with blames_server("SA-011"):
            first._client_step(phase, mine, other_down[theirs])
    assert_sum(first, finished(first, phase, state, down), first.inputs)


def test_the_same_members_in_another_cohort_are_another_session():
    ids = {cohort_params(n, range(4)).session_id(MODEL) for n in range(3)}
    assert len(ids) == 3
