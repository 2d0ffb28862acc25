"""For all n, t, inputs and survivors >= t: the plain sum; below t nothing."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.errors import TooFewSurvivorsError
from protocols.secagg.params import PHASES, min_threshold
from protocols.suites import SUITES
from tests.session import assert_sum, healthy, make_inputs, make_params


@st.composite
def scenarios(draw):
    """A session in which everybody may leave before any phase."""
    num_clients = draw(st.integers(3, 12))
    colluders = draw(st.integers(0, min(3, num_clients - 2)))
    least = min_threshold(num_clients, colluders)
    params = make_params(
        num_clients,
        threshold=draw(st.integers(least, num_clients)),
        max_colluders=colluders,
        body_length=draw(st.sampled_from([0, 1, 5, 40])),
        lane_length=draw(st.integers(0, 9)),
        ring_bits=draw(st.sampled_from([16, 32, 64])),
        suite=draw(st.sampled_from(sorted(SUITES))),
    )
    names = [member.name for member in params.roster]
    leavers = draw(st.lists(st.sampled_from(names), unique=True, max_size=num_clients))
    leaves = {name: draw(st.sampled_from(PHASES)) for name in leavers}
    inputs = make_inputs(params, seed=draw(st.integers(0, 2**32)))
    return healthy(params=params, inputs=inputs, leaves=leaves)


def first_shortage(session):
    """The phase in which too few are left, how many, and how many are needed."""
    for number, phase in enumerate(PHASES):
        gone = [one for one in session.leaves.values() if one in PHASES[: number + 1]]
        have = len(session.params.roster) - len(gone)
        early = phase in PHASES[:3]
        need = session.params.min_cohort if early else session.params.threshold
        if have < need:
            return phase, have, need
    return None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_the_sum_is_the_plain_sum_or_nothing(session):
    """SA-016: too few are refused; SA-508: all masks come off."""
    shortage = first_shortage(session)
    if shortage:
        with pytest.raises(TooFewSurvivorsError) as caught:
            session.play()
        error = caught.value
        assert (error.phase, error.have, error.need) == shortage
        return
    names = [member.name for member in session.params.roster]
    late = {None, "confirm-survivors", "unmask"}
    survivors = [name for name in names if session.leaves.get(name) in late]
    result = session.play()
    assert_sum(session, result, survivors)
    assert dict(result.dropouts) == dict(session.leaves)
    assert result.blamed == ()


def test_with_a_threshold_of_two_one_of_three_may_leave_after_its_input():
    params = make_params(3, threshold=2, max_colluders=0)
    for phase in ("confirm-survivors", "unmask"):
        session = healthy(params=params, leaves={"site-1": phase})
        assert_sum(session, session.play(), ["site-0", "site-1", "site-2"])
    session = healthy(params=params, leaves={"site-1": "masked-input"})
    with pytest.raises(TooFewSurvivorsError, match="2 clients are left"):
        session.play()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_every_survivor_set_of_four(phase, count):
    names = [f"site-{i}" for i in range(4)]
    for leavers in combinations(names, count):
        session = healthy(4, leaves=dict.fromkeys(leavers, phase))
        if count > 1:  # t = 3
            with pytest.raises(TooFewSurvivorsError) as caught:
                session.play()
            assert (caught.value.have, caught.value.need) == (4 - count, 3)
            assert caught.value.phase == phase
            continue
        after_input = phase in {"confirm-survivors", "unmask"}
        survivors = [n for n in names if after_input or n not in leavers]
        assert_sum(session, session.play(), survivors)


def test_one_dropout_in_each_phase_of_one_session():
    params = make_params(12, threshold=7)
    leaves = {f"site-{i}": phase for i, phase in enumerate(PHASES)}
    session = healthy(params=params, leaves=leaves)
    result = session.play()
    expected = [m.name for m in params.roster if leaves.get(m.name) not in PHASES[:3]]
    assert_sum(session, result, expected)
    assert dict(result.dropouts) == leaves


def test_sum_over_several_chunks():
    params = make_params(3, body_length=100_003, lane_length=17_000)
    session = healthy(params=params)
    result = session.play()
    body = sum(v.body.astype(object) for v in session.inputs.values()) % 2**32
    lane = sum(v.lane.astype(object) for v in session.inputs.values()) % 2**64
    assert np.array_equal(result.total.body, body.astype(np.uint32))
    assert np.array_equal(result.total.lane, lane.astype(np.uint64))


def test_no_message_contains_an_input():
    params = make_params(4, body_length=64)
    session = healthy(params=params, leaves={"site-1": "confirm-survivors"})
    session.play()
    received = b"".join(session.seen_by_server)
    for vector in session.inputs.values():
        for start in range(0, 64, 4):
            assert vector.body[start : start + 4].tobytes() not in received
        assert vector.lane.tobytes() not in received


def test_a_sum_is_fresh_in_every_session():
    zeros = make_params(4, body_length=4096).zeros()
    bodies = []
    for seed in (0, 1):
        params = make_params(4, body_length=4096)
        inputs = {member.name: zeros for member in params.roster}
        session = healthy(params=params, inputs=inputs, seed=seed)
        result = session.play()
        assert not result.total.body.any()
        bodies.append([m for m in session.seen_by_server if m[0] == 5])
    # Masked zeros look uniform: the mean byte of 4 * 16 KiB is 127.5 with a standard
    # error of 0.29; ten of those is a false alarm rate below 1e-22.
    for body in (b for group in bodies for b in group):
        mean = np.frombuffer(body, dtype=np.uint8)[60:-64].mean()
        assert abs(mean - 127.5) < 10 * 73.9 / 16384**0.5
    assert not set(bodies[0]) & set(bodies[1])
