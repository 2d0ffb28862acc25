"""Suite 2: both key agreements at once, and what its offers and vaults can break."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols import agreement, kem
from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import MessageError, MisuseError
from protocols.secagg import client, hybrid, messages, server
from protocols.secagg.boxes import Channels
from protocols.secagg.masks import mask_key_of, pair_mask
from protocols.secagg.params import PHASES
from protocols.secagg.snapshots import state_from_bytes, state_to_bytes
from protocols.suites import SUITES
from tests.protocols.adversary import Adversary, watched
from tests.protocols.knowledge import Knowledge
from tests.protocols.tampering import (
    BAD,
    blames_boxes_of,
    blames_client,
    blames_server,
    finished,
    malicious,
    only,
    opened_until,
    sum_without,
)
from tests.session import (
    MODEL,
    SUITE,
    assert_sum,
    healthy,
    identity_of,
    make_params,
    randomness,
)

HYBRID = SUITES[2]


def hybrid_session(num_clients=5, threshold=0, **changes):
    return healthy(params=make_params(num_clients, threshold, suite=2), **changes)


# ------------------------------------------------------------------------- sums


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("leavers", [(0,), (2,), (4,), (0, 1), (0, 5), (4, 5)])
def test_sums_where_the_lower_and_the_higher_end_of_a_pair_drops(phase, leavers):
    names = [f"site-{i}" for i in leavers]
    session = hybrid_session(6, 4, leaves=dict.fromkeys(names, phase))
    knowledge = watched(session)
    result = session.play()
    late = phase in {"confirm-survivors", "unmask"}
    everybody = [member.name for member in session.params.roster]
    assert_sum(session, result, [n for n in everybody if late or n not in names])
    assert result.blamed == ()
    knowledge.assert_only_sums(1)


def test_only_the_hybrid_suite_has_offers():
    for suite in SUITES.values():
        session = healthy(params=make_params(4, suite=suite.number))
        opened_until(session, "masked-input")
        sent = [m for m in session.seen_by_server if m[0] == messages.ShareKeys.tag]
        assert len(sent) == 4
        for message in sent:
            parsed = messages.ShareKeys.from_bytes(message, suite)
            higher = range(parsed.sender + 1, 4) if suite.hybrid else ()
            assert [offer.peer for offer in parsed.offers] == list(higher)
            assert bool(parsed.vault) == suite.hybrid


# ------------------------------------------------- a server that alters an offer


def swapped(parsed, field):
    first, second, *rest = parsed.offers
    return (
        replace(first, **{field: getattr(second, field)}),
        replace(second, **{field: getattr(first, field)}),
        *rest,
    )


ALTERED = {
    "dropped": (1, lambda m: m.offers[1:]),
    "ciphertexts swapped": (2, lambda m: swapped(m, "ciphertext")),
    "tags swapped": (2, lambda m: swapped(m, "tag")),
    "ciphertext changed": (
        1,
        lambda m: (replace(m.offers[0], ciphertext=bytes(1088)), *m.offers[1:]),
    ),
    "tag changed": (1, lambda m: (replace(m.offers[0], tag=bytes(32)), *m.offers[1:])),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_offer_costs_its_box_and_is_seen_in_the_cohort(how):
    # site-6 has an offer of everybody else; t = 5 of 7.
    lost, change = ALTERED[how]
    session = hybrid_session(7)

    def alter(message):
        parsed = messages.Delivery.from_bytes(message, HYBRID)
        return replace(parsed, offers=change(parsed)).to_bytes()

    session.tamper = only("masked-input", "down", alter, "site-6")
    knowledge = watched(session)
    result = session.play()
    assert_sum(session, result, [f"site-{i}" for i in range(6)])
    assert result.dropouts == {"site-6": "masked-input"}
    pairs = [("site-6", f"site-{i}") for i in range(lost)]
    assert result.blamed == tuple(server.Suspicion("SA-304", pair) for pair in pairs)
    knowledge.assert_only_sums(1)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda m: replace(m, boxes=m.boxes[1:]), "SA-204"),
        (
            lambda m: replace(m, offers=(*m.offers, replace(m.offers[0], peer=4))),
            "SA-204",
        ),
        (lambda m: replace(m, offers=(m.offers[0], *m.offers)), "SA-010"),
        (lambda m: replace(m, offers=m.offers[::-1]), "SA-010"),
    ],
)
def test_a_server_that_withholds_or_invents_offers_is_blamed(change, rule):
    session = hybrid_session(5)
    _, down = opened_until(session, "masked-input")
    parsed = messages.Delivery.from_bytes(down["site-4"], HYBRID)
    with blames_server(rule):
        session._client_step("masked-input", "site-4", change(parsed).to_bytes())


def test_without_any_offer_no_box_opens():
    session = hybrid_session(5)
    _, down = opened_until(session, "masked-input")
    parsed = messages.Delivery.from_bytes(down["site-4"], HYBRID)
    with blames_boxes_of(*(f"site-{i}" for i in range(4))):
        session._client_step(
            "masked-input", "site-4", replace(parsed, offers=()).to_bytes()
        )


# ------------------------------------------------------- a client that cheats in them


@pytest.mark.parametrize(
    ("phase", "change", "rule"),
    [
        ("share-keys", lambda m: replace(m, offers=(), vault=bytes(28)), "SA-207"),
        (
            "share-keys",
            lambda m: replace(m, offers=m.offers[1:], vault=m.vault[32:]),
            "SA-207",
        ),
        (
            "share-keys",
            lambda m: replace(m, offers=(replace(m.offers[0], peer=0), *m.offers[1:])),
            "SA-207",
        ),
        ("advertise-keys", lambda m: replace(m, mask_key=m.channel_key), "SA-102"),
        (
            "advertise-keys",  # the X25519 keys differ, the ML-KEM keys do not
            lambda m: replace(m, mask_key=m.mask_key[:32] + m.channel_key[32:]),
            "SA-102",
        ),
        (
            "advertise-keys",
            lambda m: replace(m, mask_key=m.mask_key[:32] + b"\xff" * 1184),
            "SA-101",
        ),
        (
            "advertise-keys",
            lambda m: replace(m, channel_key=bytes(32) + m.channel_key[32:]),
            "SA-101",
        ),
    ],
)
def test_a_client_that_signs_a_fault_of_the_hybrid_suite_is_blamed(phase, change, rule):
    session = malicious(phase, change, params=make_params(5, suite=2))
    sum_without(session, phase)
    error = session.server_errors[BAD]
    assert (error.client, error.rule) == (BAD, rule)


def other_secret(secret):
    return KemSecret(secret.ciphertext, randomness("another secret"))


@pytest.fixture
def cheat(monkeypatch):
    """Replace what one client offers or puts into its vault."""

    def install(*, offers=None, vault=None, own=1):
        make, seal = hybrid.make_offers, hybrid.seal_vault

        def make_offers(index, directory, context):
            made, secrets = make(index, directory, context)
            return (offers(made) if offers and index == own else made), secrets

        def seal_vault(recovery, secrets, index, context, fresh):
            cheats = vault and index == own
            return seal(
                recovery, vault(secrets) if cheats else secrets, index, context, fresh
            )

        monkeypatch.setattr(client, "make_offers", make_offers)
        monkeypatch.setattr(client, "seal_vault", seal_vault)

    return install


def wrong_tag_for(peer):
    return lambda made: {**made, peer: replace(made[peer], tag=bytes(32))}


def test_an_offer_that_is_not_what_its_tag_shows_names_its_dealer(cheat):
    # site-3 does not mask with site-1 (SA-208), which masked with it: one of the
    # two is left out, and what would remove their mask is not what was signed.
    cheat(offers=wrong_tag_for(3))
    session = hybrid_session(5)
    knowledge = watched(session, (BAD,))
    state, down = opened_until(session, "unmask")
    assert state.dropouts == {"site-3": "masked-input"}
    assert state.suspicions == (server.Suspicion("SA-304", ("site-3", BAD)),)
    with blames_client(BAD, "SA-509"):
        finished(session, "unmask", state, down)
    knowledge.assert_only_sums(1)  # the bytes are there; the sum is withheld


def test_an_offer_that_nobody_accepted_is_found_when_its_receiver_drops(cheat):
    cheat(offers=wrong_tag_for(3))
    session = hybrid_session(5, leaves={"site-3": "masked-input"})
    with blames_client(BAD, "SA-509"):
        session.play()


@pytest.mark.parametrize(
    "vault",
    [
        lambda secrets: {**secrets, 3: other_secret(secrets[3])},
        lambda secrets: {i: other_secret(one) for i, one in secrets.items()},
        # A vault for other peers: the header does not fit.
        lambda secrets: {i + 1: one for i, one in secrets.items()},
    ],
)
def test_a_vault_with_other_secrets_names_its_owner(vault, cheat):
    cheat(vault=vault)
    session = hybrid_session(5)
    assert_sum(session, session.play(), session.inputs)  # nobody needed the vault
    session = hybrid_session(5, leaves={BAD: "masked-input"})
    knowledge = watched(session)
    with blames_client(BAD, "SA-509"):
        session.play()
    knowledge.assert_never_both()


def without_last(by_peer):
    return {peer: one for peer, one in by_peer.items() if peer != max(by_peer)}


def test_a_box_whose_dealer_made_no_offer_counts_as_not_sent(cheat):
    # Dealer and server collude: the box opens, and the offer is missing.
    params = make_params(6, 4, suite=2)
    attack = Adversary(params, Knowledge(("site-0",)))
    cheat(offers=without_last, vault=without_last, own=0)
    attack.all_share()
    sent = attack.mask("site-5", attack.delivery("site-5", attack.everybody))
    masked = messages.MaskedInput.from_bytes(sent, HYBRID)
    assert masked.cohort == (1, 2, 3, 4, 5)  # SA-208
    attack.knowledge.assert_nothing()


# ------------------------------------------------- what the second agreement is for


def advertised(params):
    states = {}
    attack = Adversary(params, Knowledge())
    for name in attack.everybody:
        attack.advertise(name)
        states[name] = attack.states[name]
    return attack, {
        name: (
            state.channel.to_bytes()[:32],
            mask_key_of(state.recovery, attack.session, attack.suite).to_bytes()[:32],
        )
        for name, state in states.items()
    }


def test_who_breaks_x25519_reads_the_classical_suite():
    attack, seeds = advertised(make_params(5, 4))
    everybody = attack.roster(attack.everybody)
    for name in attack.everybody:
        attack.share(name, everybody)
    for name in attack.everybody:
        attack.mask(name, attack.delivery(name, attack.everybody))
    attack.knowledge.assert_nothing()
    for seed in (one for pair in seeds.values() for one in pair):
        key = AgreementKey(seed)
        attack.knowledge.keys[key.public_bytes] = key
    assert attack.knowledge.recovered() == set(attack.everybody)


def test_who_breaks_x25519_cannot_open_a_recorded_hybrid_session():
    attack, seeds = advertised(make_params(5, 4, suite=2))
    everybody = attack.roster(attack.everybody)
    for name in attack.everybody:
        attack.share(name, everybody)
    guess = bytes(kem.SEED_BYTES)
    directory = attack.states["site-0"].directory
    context = attack.contexts["site-0"]
    # 1. Not a box: its key needs what was encapsulated.
    for index, name in enumerate(attack.everybody):
        key = AgreementKey(seeds[name][0], guess)
        channels = Channels(index, key, directory, context, attack.suite)
        delivery = attack.delivery(name, attack.everybody)
        assert channels.open(messages.Delivery.from_bytes(delivery, HYBRID)) == {}
        assert (
            len(
                attack.states[name].channels.open(
                    messages.Delivery.from_bytes(delivery, HYBRID)
                )
            )
            == 4
        )
    # 2. Not a pairwise mask, from either end.
    offer = attack.shared["site-0"].offers[-1]
    true_secret = attack.states["site-0"].offered[4]
    low, high = (AgreementKey(seeds[n][1], guess) for n in ("site-0", "site-4"))
    guessed = high.decapsulate(offer.ciphertext)
    publics = directory[4].mask_key, directory[0].mask_key
    right = pair_mask(0, low, 4, publics[0], context, true_secret)
    assert pair_mask(0, low, 4, publics[0], context, guessed).key != right.key
    assert pair_mask(4, high, 0, publics[1], context, guessed).key != right.key
    # X25519 alone is what both ends agree on, so only the second secret is missing.
    assert pair_mask(4, high, 0, publics[1], context, true_secret).key == right.key


# ---------------------------------------------------------------------- replays


def test_recorded_ciphertexts_replay_by_decapsulation():
    # Encapsulation draws its own randomness; everything after it is a function of
    # states and messages, so recorded bytes give recorded bytes.
    params = make_params(4, suite=2)
    session = hybrid_session(4)
    _, down = opened_until(session, "masked-input")
    saved = {name: state_to_bytes(session.states[name]) for name in down}
    recorded = {}
    for _ in range(2):
        for name, delivery in down.items():
            state = state_from_bytes(params, identity_of(name), MODEL, saved[name])
            _, sent = client.mask_input(state, delivery, session.inputs[name])
            assert recorded.setdefault(name, sent) == sent


def test_the_higher_end_finds_what_the_lower_end_offered():
    session = hybrid_session(4)
    opened_until(session, "masked-input")
    offered = session.states["site-0"].offered
    for peer, one in offered.items():
        state = session.states[f"site-{peer}"]
        key = mask_key_of(state.recovery, state.seat.session, HYBRID)
        assert key.decapsulate(one.ciphertext).secret == one.secret
        stranger = AgreementKey(bytes(32), bytes(kem.SEED_BYTES))
        assert stranger.decapsulate(one.ciphertext).secret != one.secret


def test_two_phase_1_answers_of_one_state_differ_only_by_encapsulation():
    params = make_params(4, suite=2)
    attack = Adversary(params, Knowledge())
    for name in attack.everybody:
        attack.advertise(name)
    saved = attack.save("site-0")
    shared = []
    for _ in range(2):
        attack.restore("site-0", saved)
        attack.share("site-0", attack.roster(attack.everybody))
        shared.append(attack.shared["site-0"])
    first, second = shared
    assert first.boxes != second.boxes
    assert {o.ciphertext for o in first.offers}.isdisjoint(
        o.ciphertext for o in second.offers
    )
    # Same randomness, so the same nonce, under keys that differ.
    assert [box.sealed[1088:1100] for box in first.boxes] == [
        box.sealed[1088:1100] for box in second.boxes
    ]
    assert first.vault[:12] == second.vault[:12]


# --------------------------------------------------------------------- primitives


def test_sizes_and_misuse_of_key_encapsulation():
    with pytest.raises(MisuseError, match="64 bytes"):
        kem.DecapsulationKey(bytes(32))
    key = kem.DecapsulationKey(bytes(64))
    ciphertext, secret = kem.encapsulate(key.public_bytes)
    assert key.decapsulate(ciphertext) == secret
    assert key.decapsulate(bytes(1088)) != secret  # implicit rejection
    assert len(key.public_bytes) == kem.KEY_BYTES
    for wrong in (b"", ciphertext[:-1], ciphertext + b"\0"):
        with pytest.raises(MessageError):
            key.decapsulate(wrong)
    for wrong in (b"", key.public_bytes[:-1], b"\xff" * 1184):
        with pytest.raises(MessageError):
            kem.encapsulate(wrong)
        with pytest.raises(MessageError):
            kem.verify_encapsulation_key(wrong)
    assert repr(key) == "<DecapsulationKey>"


def test_an_agreement_uses_an_encapsulation_exactly_in_hybrid_suites():
    classical, both = AgreementKey(b"a" * 32), AgreementKey(b"b" * 32, bytes(64))
    secret = agreement.encapsulate(both.public_bytes)
    with pytest.raises(MisuseError):
        classical.decapsulate(secret.ciphertext)
    with pytest.raises(MisuseError):
        classical.agree(b"label", both.public_bytes, secret, b"context")
    with pytest.raises(MisuseError):
        both.agree(b"label", classical.public_bytes, None, b"context")
    for suite, wrong in ((SUITE, both), (HYBRID, classical)):
        with pytest.raises(MessageError, match="wrong size"):
            agreement.verify_public_key(wrong.public_bytes, suite)
    for suite, right in ((SUITE, classical), (HYBRID, both)):
        assert agreement.verify_public_key(right.public_bytes, suite)
