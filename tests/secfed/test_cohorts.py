"""Above 256 sites a round is several secure sums, closed in step and added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deployed import identity_of
from small import study_values

from protocols.keys import SigningKey
from protocols.ring import RingVector
from protocols.secagg import client, graph
from secfed.codec import Codec
from secfed.errors import RoundAbortedError, StudyError
from secfed.privacy.noise import simulation_stream
from secfed.runtime import sessions
from secfed.runtime.cohorts import Cohorts
from secfed.runtime.sessions import RoundTerms, sessions_of, smallest_sum
from secfed.study import Study, load_study_dict

DIGEST, SHAPE = b"\x05" * 32, (("head.bias", (6,)),)


def study_of(count: int, **secagg: Any) -> Study:
    values = study_values()
    names = [f"site-{number:04d}" for number in range(count)]
    values["data"]["partition"] = {"kind": "iid", "sites": names}
    values["privacy"]["nominal_units"] = dict.fromkeys(names, 80)
    values["secagg"] = {"suite": "x25519"} | secagg
    return load_study_dict(values, "many")


def terms_of(study: Study, codec: Codec) -> RoundTerms:
    identities = {site: identity_of(site).public_bytes for site in study.sites}
    return RoundTerms(codec, sessions_of(study, identities, codec, 1, "ffa-lora"))


def codec_of(study: Study) -> Codec:
    return Codec(SHAPE, value_range=1.0, num_sites=len(study.sites))


# What a study of many sites means


def test_up_to_256_sites_are_one_session_with_the_study_s_threshold() -> None:
    study = study_of(256, threshold=200)
    (session,) = terms_of(study, codec_of(study)).sessions
    assert (len(session.roster), session.threshold) == (256, 200)
    assert smallest_sum(study) == 200


def test_1000_sites_are_four_cohorts_that_the_sorted_roster_fixes() -> None:
    study = study_of(1000)
    terms = terms_of(study, codec_of(study))
    rosters = [[member.name for member in one.roster] for one in terms.sessions]
    assert [len(roster) for roster in rosters] == [250] * 4
    assert [name for roster in rosters for name in roster] == sorted(study.sites)
    assert terms.threshold == smallest_sum(study) == 4 * 167
    assert terms.of("site-0250") is terms.sessions[1]
    assert len({session.session_id(DIGEST) for session in terms.sessions}) == 4


def test_every_cohort_must_be_large_enough() -> None:
    study = study_of(300)
    terms = terms_of(study, codec_of(study))
    first = [member.name for member in terms.sessions[0].roster]
    assert terms.enough(study.sites)
    gone = set(first[: len(first) - terms.sessions[0].threshold + 1])
    here = set(study.sites) - gone
    assert len(here) >= terms.threshold
    assert not terms.enough(here)
    assert terms.enough(here | {first[0]})


def test_a_threshold_for_all_is_refused_where_there_are_cohorts() -> None:
    with pytest.raises(StudyError, match="summed in cohorts") as caught:
        study_of(257, threshold=200)
    assert caught.value.key == "secagg.threshold"


# A round of three small cohorts, with the real protocol


class Site:
    """One client of the secure sum with an encoded vector."""

    def __init__(self, name: str, key: SigningKey, terms: RoundTerms) -> None:
        self.state: Any = None
        self.params = terms.of(name)
        self.name, self.key = name, key
        number = int(name.removeprefix("site-"))
        payload = {"head.bias": np.full(6, number / 100, np.float32)}
        encoded = terms.codec.encode(payload, simulation_stream(1, name))
        self.body, lane = encoded.vector, terms.codec.lane.encode(encoded.saturated)
        self.vector = RingVector(body=self.body, lane=lane)
        self.random = number.to_bytes(64, "big")

    def answer(self, phase: str, message: bytes) -> bytes:
        if phase == "advertise":
            self.state, out = client.advertise_keys(
                self.params, self.name, self.key, DIGEST, randomness=self.random
            )
        elif phase == "shares":
            self.state, out = client.share_keys(
                self.state, message, randomness=self.random
            )
        elif phase == "masked-input":
            self.state, out = client.mask_input(self.state, message, self.vector)
        elif phase == "confirm":
            self.state, out = client.confirm_survivors(self.state, message)
        else:
            self.state, out = client.unmask(self.state, message)
        return out


@pytest.fixture
def game(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Twelve sites in cohorts of four, each with the default threshold of three."""
    monkeypatch.setattr(
        sessions, "cohorts", lambda size, _largest: graph.cohorts(size, 4)
    )
    study = study_of(12)
    codec = Codec(SHAPE, value_range=1.0, num_sites=12)
    terms = terms_of(study, codec)
    sites = {name: Site(name, identity_of(name), terms) for name in study.sites}
    return SimpleNamespace(
        terms=terms, sites=sites, sums=Cohorts(terms, DIGEST), asked=[]
    )


def play(
    game: SimpleNamespace, away: Mapping[str, Iterable[str]] = {}
) -> Mapping[str, bytes]:
    messages: Mapping[str, bytes] = dict.fromkeys(game.sites, b"")
    while game.sums.result is None:
        phase = game.sums.phase
        game.asked.append(phase)
        for name, message in messages.items():
            if name not in away.get(phase, ()):
                game.sums.receive(name, game.sites[name].answer(phase, message))
        messages = game.sums.close()
    return messages


def test_the_sum_of_the_cohorts_is_the_sum_of_all(game: SimpleNamespace) -> None:
    play(game)
    result = game.sums.result
    assert len(game.terms.sessions) == 3
    assert result.survivors == tuple(sorted(game.sites))
    total = sum(site.body for site in game.sites.values())
    np.testing.assert_array_equal(result.total, total)
    expected = np.full(6, np.mean(np.arange(12)) / 100)
    np.testing.assert_allclose(result.mean["head.bias"], expected, atol=1e-6)
    assert game.sums.bytes_up > 12 * 100 < game.sums.bytes_down


def test_each_cohort_may_lose_its_own_sites(game: SimpleNamespace) -> None:
    lost = {"masked-input": ["site-0001"], "confirm": ["site-0009"]}
    play(game, {**lost, "unmask": ["site-0009"]})
    result = game.sums.result
    assert dict(result.dropouts) == {"site-0001": "shares"}
    assert dict(result.silent) == {"site-0009": "masked-input"}
    kept = [s.body for name, s in game.sites.items() if name != "site-0001"]
    np.testing.assert_array_equal(result.total, sum(kept))


def test_one_cohort_that_falls_apart_ends_the_round(game: SimpleNamespace) -> None:
    """Nine of twelve stay, which one session would survive; nothing is opened."""
    lost = ["site-0004", "site-0005"]
    with pytest.raises(RoundAbortedError):
        play(game, {"masked-input": lost})
    assert game.sums.result is None
    assert game.asked == ["advertise", "shares", "masked-input"]
