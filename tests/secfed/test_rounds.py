"""One round between real sites and a real coordinator, with everything that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import (
    flat,
    make_budgets,
    make_plan,
    make_sites,
    small_policy,
    small_study,
)

from protocols.errors import (
    FaultyClientError,
    FaultySharesError,
    TooFewSurvivorsError,
)
from protocols.keys import generate_identity
from protocols.ring import RingVector
from protocols.secagg.server import Suspicion
from secfed.client import BudgetGuard, Contribution, NoGuard, Site, SiteRound
from secfed.codec import Codec
from secfed.data import StudyData
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RoundAbortedError,
    TrainingError,
)
from secfed.models import Features
from secfed.policy import SitePolicy
from secfed.privacy.accounting import sampled_gaussian
from secfed.privacy.noise import simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.encoding import codec_for
from secfed.runtime.progress import NoProgress
from secfed.runtime.rounds import RoundResult, play_round
from secfed.runtime.sessions import sessions_of
from secfed.runtime.setup import Prepared, open_budget, random_stream
from secfed.server import Coordinator
from secfed.study import Study
from secfed.training import LocalUpdate, PrivateRecords, train_privately
from secfed.types import Adapter

SEED = 21
DIGEST = "ab" * 32
SHAPES = {"m.lora_A": (2, 8), "m.lora_B": (8, 2), "head.weight": (5, 8)}
TRAINS = ("m.lora_B", "head.weight")
LENGTH = 56
NAMES = small_study().sites
A, B, C, D = NAMES


class Notes(NoProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Game:
    """A round with invented updates; a test changes what is special about it."""

    study: Study = field(default_factory=lambda: small_study(seed=SEED))
    updates: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    received: list[tuple[str, bytes]] = field(default_factory=list)
    progress: Notes = field(default_factory=Notes)
    fail: Mapping[str, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(5)
        for site in NAMES:
            self.updates[site] = {
                name: rng.normal(scale=0.1, size=SHAPES[name]).astype(np.float32)
                for name in TRAINS
            }

    def train(self, site: Site) -> Contribution:
        self.trained.append(site.name)
        if site.name in self.fail:
            raise self.fail[site.name]
        change = self.updates[site.name]
        return Contribution(LocalUpdate(change, noiseless=None, steps=1), change)

    def play(
        self,
        guards: Mapping[str, BudgetGuard | NoGuard] | None = None,
        sites: Mapping[str, Site] | None = None,
        number: int = 1,
    ) -> RoundResult:
        return play_round(
            self.study,
            sites or invented_sites(),
            guards or {name: NoGuard() for name in NAMES},
            Adapter({n: np.ones(s, np.float32) for n, s in SHAPES.items()}, 2.0),
            self.train,
            number,
            DIGEST,
            "ffa-lora",
            self.progress,
            lambda site, message: self.received.append((site, message)),
        )

    def mean(self, survivors: tuple[str, ...]) -> NDArray[np.float64]:
        parts = [flat(self.updates[site]) for site in survivors]
        return np.mean(parts, axis=0)


def invented_sites(plan: PrivacyPlan | None = None) -> dict[str, Site]:
    records = PrivateRecords(
        Features(torch.zeros(0, 8), np.zeros(1, np.int64)),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        num_units=100,
    )
    return {
        name: Site(
            name=name,
            identity=generate_identity(
                simulation_stream(3, "identity", name).bytes(32)
            ),
            records=records,
            plan=plan or make_plan(100, 10),
            policy=small_policy(),
        )
        for name in NAMES
    }


def encodings(
    study: Study, changes: Mapping[str, Mapping[str, Any]], codec: Codec, arm: str
) -> dict[str, NDArray[np.uint32]]:
    """What each site encoded in round 1, drawn again from its simulated stream."""
    found = {}
    for name, change in changes.items():
        stream = random_stream(study, arm, "1", name, "protocol")
        stream.bytes(64)  # advertise keys
        stream.bytes(64)  # share keys
        found[name] = codec.encode(change, stream).vector
    return found


def codec_of(change: Mapping[str, NDArray[np.float32]]) -> Codec:
    return Codec.for_tensors(change, value_range=8.0, num_sites=4)


# The sum

PLACES = ("advertise", "shares", "masked-input", "confirm", "unmask")


@pytest.mark.parametrize("phase", PLACES)
@pytest.mark.parametrize("site", NAMES)
def test_dropout_at_every_phase_leaves_the_exact_sum(phase: str, site: str) -> None:
    game = Game(small_study(seed=SEED, dropouts=[(1, site, phase)]))
    result = game.play()
    before = phase in ("advertise", "shares")
    survivors = tuple(sorted(set(NAMES) - {site} if before else NAMES))
    assert result.result.survivors == survivors
    assert result.sums_equal
    # Exact, and computed here once more without the simulator's own check.
    codec = codec_of(game.updates[A])
    total = np.zeros(LENGTH, np.uint32)
    for vector in encodings(
        game.study, {s: game.updates[s] for s in survivors}, codec, "ffa-lora"
    ).values():
        total += vector
    assert np.array_equal(total, result.result.total)
    error = np.abs(flat(result.result.mean) - game.mean(survivors)).max()
    assert error <= codec.error_bound
    assert error < np.abs(game.mean(survivors) - game.mean(survivors[1:])).max()
    assert result.result.dropouts == ({site: phase} if before else {})
    late = phase in ("masked-input", "confirm")
    assert result.result.silent == ({site: phase} if late else {})
    assert set(result.updates) == set(survivors)


def test_a_survivor_that_falls_silent_counts_against_the_threshold() -> None:
    # Four sites tolerate one: two that confirm are too few to open the sum.
    study = small_study(seed=SEED, dropouts=[(1, B, "shares"), (1, D, "masked-input")])
    with pytest.raises(RoundAbortedError) as caught:
        Game(study).play()
    assert caught.value.phase == "confirm"
    assert caught.value.blamed == ()


def test_dropouts_of_another_round_do_not_happen_now() -> None:
    game = Game(small_study(seed=SEED, dropouts=[(2, A, "shares")]))
    assert len(game.play(number=1).result.survivors) == 4
    assert len(game.play(number=2).result.survivors) == 3


def test_saturated_numbers_are_counted_under_the_mask() -> None:
    game = Game()
    game.updates[A]["head.weight"][0, :3] = (9.0, -1e6, 8.5)
    game.updates[C]["m.lora_B"][0, 0] = 8.001
    result = game.play()
    assert result.sums_equal
    assert result.result.saturated == 4


@pytest.mark.parametrize("rotation", [None, "hadamard"])
@pytest.mark.parametrize(("bits", "width"), [(0, 16), (16, 16), (32, 32), (64, 64)])
def test_a_private_round_in_every_ring(
    tmp_path: Path, bits: int, width: int, rotation: str | None
) -> None:
    game = Game()
    chosen = {"ring_bits": bits, "rotation": rotation}
    secagg = game.study.secagg.model_copy(update=chosen)
    game.study = game.study.model_copy(update={"secagg": secagg})
    budgets = make_budgets(tmp_path, game.study, {})
    # Much noise, so that 16 bits are enough.
    sites = invented_sites(make_plan(100, 10, noise_multiplier=9.0))
    result = game.play(guards_of(budgets), sites)
    assert result.sums_equal
    assert result.result.saturated == 0
    plans = {name: site.plan for name, site in sites.items()}
    adapter = Adapter({n: np.ones(s, np.float32) for n, s in SHAPES.items()}, 2.0)
    codec = codec_for(game.study, plans, adapter, 1, private=True)
    assert codec.ring_bits == result.result.total.itemsize * 8 == width
    assert result.result.total.shape == (codec.length,)
    # The adapters' step size is 3, the head's is 60.
    assert codec.scales == (3.0, 60.0)
    scale = np.repeat(codec.scales, (16, 40))
    error = (flat(result.result.mean) - game.mean(NAMES)) / scale
    assert np.linalg.norm(error) <= codec.l2_error_bound
    assert np.abs(error).max() <= codec.error_bound


def sum_of_encodings() -> tuple[Coordinator, Any]:
    """A coordinator that was handed the sum of four encodings by the protocol."""
    game, sites = Game(), invented_sites()
    codec = codec_of(game.updates[A])
    identities = {name: site.identity.public_bytes for name, site in sites.items()}
    (params,) = sessions_of(game.study, identities, codec, 1, "ffa-lora")
    total = RingVector.zeros(codec.length, codec.lane.length)
    for vector in encodings(game.study, game.updates, codec, "x").values():
        total.add_in_place(RingVector(body=vector, lane=codec.lane.encode(0)))
    coordinator = Coordinator(params, bytes(32), codec)
    coordinator._answered = dict.fromkeys(NAMES, "unmask")
    closed = SimpleNamespace(
        total=total, survivors=NAMES, blamed=[Suspicion("SA-304", NAMES[:2])]
    )
    return coordinator, closed


def test_a_sum_that_no_sites_add_up_to_aborts_the_round() -> None:
    coordinator, closed = sum_of_encodings()
    assert coordinator._decode(closed).saturated == 0
    for array, index, message in (
        (closed.total.lane, 0, "count"),
        (closed.total.lane, 1, "saturated"),
        (closed.total.body, 5, "aborted"),
    ):
        before = array[index]
        array[index] = 2**31
        with pytest.raises(RoundAbortedError, match=message) as caught:
            coordinator._decode(closed)
        assert caught.value.phase == "unmask"
        array[index] = before


def test_who_deviated_is_said_with_the_sum_and_with_the_abort() -> None:
    coordinator, closed = sum_of_encodings()
    sentence = f"One of {NAMES[0]}, {NAMES[1]} deviated (SA-304)"
    assert coordinator._decode(closed).suspected == (sentence,)
    coordinator._state = SimpleNamespace(suspicions=closed.blamed)
    for error, blamed, text in (
        (TooFewSurvivorsError(2, 3, "masked-input"), (), sentence),
        (FaultyClientError(NAMES[2], "a vault", "SA-509"), NAMES[2:3], "SA-509"),
        (FaultySharesError(NAMES[0], NAMES[1:2]), NAMES[:2], "SA-506"),
    ):
        coordinator._end = failing(error)
        with pytest.raises(RoundAbortedError) as caught:
            coordinator.close()
        assert caught.value.blamed == blamed
        assert text in str(caught.value)


def failing(error: Exception) -> Callable[[Any], Any]:
    def end(_state: Any) -> Any:
        raise error

    return end


def test_traffic_is_what_was_sent() -> None:
    game = Game()
    result = game.play()
    assert result.bytes_up == sum(len(message) for _, message in game.received)
    assert result.bytes_up > 4 * 4 * LENGTH
    assert [site for site, _ in game.received] == list(NAMES) * 5


def test_without_a_seed_keys_and_masks_are_fresh() -> None:
    first, second = Game(small_study()), Game(small_study())
    first.play()
    second.play()
    assert not {m for _, m in first.received} & {m for _, m in second.received}
    # The hybrid suite draws its encapsulations afresh even then.
    for suite, repeats in (("hybrid", False), ("x25519", True)):
        seeded = [Game(small_study(seed=SEED, suite=suite)) for _ in range(2)]
        assert len({game.play().result.total.tobytes() for game in seeded}) == 1
        assert (seeded[0].received == seeded[1].received) == repeats


# What the coordinator receives


def windows(data: bytes) -> NDArray[np.uint64]:
    """Every eight consecutive bytes, as numbers."""
    if len(data) < 8:
        return np.zeros(0, np.uint64)
    view = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), 8)
    return np.ascontiguousarray(view).view("<u8").ravel()


def leaks(messages: list[bytes], secret: bytes) -> bool:
    """Whether any eight telling bytes of a secret stand in any message."""
    # Two neighbouring elements, aligned; runs of one byte are everywhere.
    parts = np.frombuffer(secret[: len(secret) // 8 * 8], "<u8")
    telling = [part for part in parts if len(set(int(part).to_bytes(8, "little"))) > 3]
    assert telling
    return any(np.isin(windows(message), telling).any() for message in messages)


def test_the_scanner_finds_what_is_there() -> None:
    secret = np.random.default_rng(1).bytes(64)
    noise = np.random.default_rng(2).bytes(4096)
    assert not leaks([noise], secret)
    assert leaks([noise[:1001] + secret[16:24] + noise[1001:]], secret)


@pytest.mark.slow
def test_the_coordinator_sees_no_encoding_text_or_label(
    prepared: Prepared, data: StudyData, tmp_path: Path
) -> None:
    """A round of real training: what is received holds nothing unmasked."""
    study = small_study(seed=SEED, dropouts=[(1, D, "masked-input")])
    sites = make_sites(prepared, study, small_policy())
    budgets = make_budgets(tmp_path, study, {})
    trains = tuple(n for n in prepared.start.tensors if not n.endswith(".lora_A"))
    received: list[bytes] = []
    changes: dict[str, Any] = {}

    def train(site: Site) -> Contribution:
        update = train_privately(
            prepared.model,
            prepared.start,
            trains,
            site.records,
            site.plan,
            study.training,
            1.0,
            random_stream(study, "scan", "1", site.name, "training"),
        )
        changes[site.name] = update.change
        return Contribution(update, update.change)

    result = play_round(
        study,
        sites,
        {name: BudgetGuard(budgets[name], "run") for name in sites},
        prepared.start,
        train,
        1,
        prepared.base.digest,
        "scan",
        NoProgress(),
        lambda _site, message: received.append(message),
    )
    assert result.sums_equal
    assert result.bytes_up == sum(map(len, received))
    # 1. The encodings: drawn again, and really those that were summed.
    plans = {name: site.plan for name, site in sites.items()}
    codec = codec_for(study, plans, prepared.start, 1, private=True)
    encoded = encodings(study, changes, codec, "scan")
    total = np.zeros_like(result.result.total)
    for name in result.result.survivors:
        total += encoded[name]
    assert np.array_equal(total, result.result.total)
    for name, vector in encoded.items():
        assert not leaks(received, vector.tobytes()), name
        assert not leaks(received, vector.byteswap().tobytes()), name
        # 2. The numbers themselves.
        for value in changes[name].values():
            assert not leaks(received, value.tobytes()), name
    # 3. Texts, labels and cached states of every site.
    everything = b"\0".join(received)
    for site in data.sites.values():
        for text in site.records.texts:
            if len(text) >= 6:
                assert text.encode() not in everything
        # Sixteen labels together; fewer can be met by chance.
        labels = site.records.labels[:16]
        assert len(set(labels)) > 1
        assert labels.tobytes() not in everything
        assert labels.astype(np.uint8).tobytes() not in everything
        states = prepared.records[site.site].features.states
        assert not leaks(received, states[:50].numpy().tobytes())
    for label in data.label_names:
        assert label.encode() not in everything
    # Control: the scan would have found one encoding in one message.
    planted = [*received, received[0] + encoded[A].tobytes()]
    assert leaks(planted, encoded[A].tobytes())


# Sites that fail


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_site_with_a_number_that_is_not_finite_leaves_before_masking(
    bad: float,
) -> None:
    game = Game()
    game.updates[B]["m.lora_B"][3, 1] = bad
    result = game.play()
    assert result.sums_equal
    assert result.result.dropouts == {B: "shares"}
    assert result.result.survivors == tuple(sorted((A, C, D)))
    assert np.isfinite(flat(result.result.mean)).all()
    sent = [site for site, _ in game.received]
    assert sent.count(B) == 2  # its keys and its shares, and no masked input
    assert any(B in note and "m.lora_B" in note for note in game.progress.notes)
    assert not any("nan]" in note for note in game.progress.notes)


def test_a_site_whose_self_test_fails_leaves_before_masking() -> None:
    game = Game(fail={C: TrainingError("self-test failed: records influence")})
    result = game.play()
    assert result.sums_equal
    assert result.result.dropouts == {C: "shares"}


def test_a_mistake_of_ours_is_not_a_dropout() -> None:
    with pytest.raises(ZeroDivisionError):
        Game(fail={C: ZeroDivisionError()}).play()


def guards_of(budgets: Mapping[str, Any], run: str = "run") -> dict[str, BudgetGuard]:
    return {name: BudgetGuard(budget, run) for name, budget in budgets.items()}


def test_too_few_survivors_abort_and_the_budget_stays_spent(tmp_path: Path) -> None:
    study = small_study(seed=SEED, dropouts=[(1, A, "shares"), (1, B, "shares")])
    budgets = make_budgets(tmp_path, study, {})
    game = Game(study)
    with pytest.raises(RoundAbortedError) as caught:
        game.play(guards_of(budgets))
    assert caught.value.phase == "masked-input"
    assert caught.value.blamed == ()
    assert caught.value.exit_code == 5
    for name, budget in budgets.items():
        (charge,) = budget.history()
        assert (charge.run_id, charge.round) == ("run", 1)
        assert budget.spent_epsilon() > 1
        # Who masked an input has spent; the others keep a reservation that counts.
        assert charge.state == ("reserved" if name in (A, B) else "spent")
    # The same round cannot be had again, also after the files are opened anew.
    again = make_budgets(tmp_path, study, {})
    with pytest.raises(PolicyError, match="not repeated"):
        Game(small_study(seed=SEED)).play(guards_of(again))
    assert all(len(budget.history()) == 1 for budget in again.values())


def test_a_site_over_its_budget_refuses_before_training(tmp_path: Path) -> None:
    game = Game()
    budgets = make_budgets(tmp_path, game.study, {C: 0.01})
    result = game.play(guards_of(budgets))
    assert C not in game.trained
    assert sorted(game.trained) == sorted((A, B, D))
    assert C not in [site for site, _ in game.received]
    assert budgets[C].history() == ()
    assert result.sums_equal
    assert result.result.dropouts == {C: ""}
    assert len(budgets[A].history()) == 1


def test_all_sites_over_their_budget_end_the_round_with_the_reason(
    tmp_path: Path,
) -> None:
    game = Game()
    budgets = make_budgets(tmp_path, game.study, dict.fromkeys(NAMES, 0.01))
    with pytest.raises(BudgetExceededError) as caught:
        game.play(guards_of(budgets))
    assert caught.value.exit_code == 4
    assert game.trained == []
    assert game.received == []


def test_a_policy_that_refuses_comes_before_the_budget(tmp_path: Path) -> None:
    game = Game()
    budgets = make_budgets(tmp_path, game.study, {})
    strict = small_policy().model_copy(update={"allowed_methods": ("fedavg",)})
    sites = {n: replace(s, policy=strict) for n, s in invented_sites().items()}
    with pytest.raises(PolicyError, match="ffa-lora"):
        game.play(guards_of(budgets), sites)
    assert all(budget.history() == () for budget in budgets.values())
    assert game.trained == []


def test_two_policies_that_refuse_are_named_when_too_few_are_left(
    tmp_path: Path,
) -> None:
    game = Game()
    budgets = make_budgets(tmp_path, game.study, {})
    strict = small_policy().model_copy(update={"allowed_methods": ("fedavg",)})
    sites = invented_sites()
    for name in (A, B):
        sites[name] = replace(sites[name], policy=strict)
    with pytest.raises(PolicyError, match="ffa-lora"):
        game.play(guards_of(budgets), sites)
    assert game.trained == []
    # Who had started has spent, also though the round never trained.
    assert len(budgets[C].history()) == 1


# One site's side


@pytest.fixture
def site_round() -> Callable[[], SiteRound]:
    game = Game()
    sites = invented_sites()
    codec = codec_of(game.updates[A])

    def make() -> SiteRound:
        return SiteRound(sites[A], game.study, object(), codec, NoGuard())  # type: ignore[arg-type]

    return make


def test_phases_in_the_wrong_order_are_refused(
    site_round: Callable[[], SiteRound],
) -> None:
    stream = simulation_stream(1, "order")
    for step in (
        lambda held: held.share(b"", stream),
        lambda held: held.mask(b""),
        lambda held: held.confirm(b""),
        lambda held: held.reveal(b""),
        lambda held: held.encoded_for_simulator(),
    ):
        with pytest.raises(ValueError, match=r"order|before masking|no encoded"):
            step(site_round())


def test_nothing_private_in_what_is_printed(
    site_round: Callable[[], SiteRound],
) -> None:
    held = site_round()
    held.train(Game().train, simulation_stream(1, "repr"))
    site = invented_sites()[A]
    for text in (repr(held), repr(site), str(held), f"{site}"):
        assert "<private>" in text
        assert "array" not in text
        assert site.identity.to_bytes().hex() not in text


def test_a_budget_dir_is_shared_by_two_runs(
    study: Study, policy: SitePolicy, tmp_path: Path
) -> None:
    durable = policy.model_copy(update={"budget_dir": str(tmp_path / "budgets")})
    site = study.sites[0]
    event = sampled_gaussian(0.1, 1.0, 4)
    first = open_budget(study, durable, tmp_path / "run-1" / "private", site)
    first.reserve("study", "run-1", 1, event)
    second = open_budget(study, durable, tmp_path / "run-2" / "private", site)
    assert second.spent_epsilon() == first.spent_epsilon() > 0
    other = open_budget(study, policy, tmp_path / "run-3" / "private", site)
    assert other.spent_epsilon() == 0


def test_the_policy_declares_persons_and_the_records_are_a_version(
    study: Study, policy: SitePolicy, tmp_path: Path
) -> None:
    event = sampled_gaussian(0.1, 4.0, 4)
    capped = policy.model_copy(update={"max_records_per_person": 2})
    site = study.sites[0]
    budget = open_budget(study, capped, tmp_path, site, "a" * 64)
    budget.reserve("study", "run", 1, event)
    (held,) = budget.populations()
    assert (held.unit, held.versions) == ("person", ("a" * 64,))
    assert [charge.group for charge in budget.history()] == [2]
    again = open_budget(study, capped, tmp_path, site, "b" * 64)
    assert again.spent_epsilon() == budget.spent_epsilon() > 0
    with pytest.raises(PolicyError, match="kept per person"):
        open_budget(study, policy, tmp_path, site)
    renamed = capped.model_copy(update={"population": "other-name"})
    with pytest.raises(PolicyError, match="these records belong to population"):
        open_budget(study, renamed, tmp_path, site, "b" * 64)
