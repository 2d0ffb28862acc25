"""Unequal ranks: hetlora against dense references, and private rounds at real sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked import (
    MODULES,
    R,
    busy,
    codec_of,
    initial,
    masked_mean,
    mean_of,
    play,
    product,
    train,
)
from safetensors.numpy import load_file
from small import EXAMPLE, make_sites, planned, small_policy, study_values

from secfed.adapters import attach_adapter
from secfed.client import Contribution, NoGuard, Site
from secfed.errors import ModelError, StudyError
from secfed.models import load_base_model
from secfed.runtime.arms import Arm
from secfed.runtime.compare import plan_arms
from secfed.runtime.encoding import codec_for, step_size
from secfed.runtime.kept import KeptTensors
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.rounds import RoundResult, play_round
from secfed.runtime.setup import Prepared
from secfed.runtime.site_training import contribute
from secfed.strategies import ServerState, SiteView, Strategy, hetlora, strategy_of
from secfed.strategies.base import moved
from secfed.strategies.hetlora import RANK, WEIGHT, HetLora
from secfed.strategies.products import PRODUCT
from secfed.study import Study, load_study_dict
from secfed.types import LORA_A, LORA_B, Adapter
from secfed.verify import verify_run

UNEQUAL = (None, 1, 3)
FLOAT32 = 2.0**-24


def started(strategy: Strategy, seed: int = 1) -> ServerState:
    return busy(strategy.init(initial(), 0), seed)


# hetlora: weights


def size(adapter: Adapter) -> float:
    """S, from the dense products."""
    whole = np.stack([product(adapter, module) for module in MODULES])
    return float(np.linalg.norm(whole) / whole.size**0.25)


@pytest.mark.parametrize("ranks", [(None, None, None), UNEQUAL])
def test_hetlora_is_the_mean_of_factors_weighted_by_their_product(ranks):
    strategy = HetLora(gamma=1.0)
    state = started(strategy)
    sent = train(strategy, state, ranks, scale=0.3)
    weights = np.array([size(one.own) for one in sent])
    assert weights.max() > 1.1 * weights.min()
    after = play(strategy, state, sent).adapter.tensors
    # Both the weighted mean and the weight are off by the codec's error.
    bound = codec_of(strategy, state, len(sent)).error_bound / weights.mean()
    for name in [n for n in after if n.endswith((LORA_A, LORA_B))]:
        own = [one.own.tensors[name].astype(float) for one in sent]
        wanted = np.average(own, axis=0, weights=weights)
        largest = np.abs(own).max()
        allowed = 2 * (1 + largest) * bound + 8 * FLOAT32 * largest
        assert np.abs(after[name] - wanted).max() <= allowed
    assert np.allclose(after["head.bias"], mean_of(sent, "head.bias"), atol=1e-6)


def test_a_site_says_no_more_about_rows_beyond_its_rank_than_that_they_are_zero():
    strategy = HetLora(gamma=1.0)
    state = strategy.init(initial(), 0)
    small = train(strategy, state, (2,))[0]
    weight = small.payload[WEIGHT]
    assert weight[0] == pytest.approx(size(small.own), rel=1e-6)
    for module in MODULES:
        # B was zero, so its change is; A's first rows are replaced by zeros.
        assert not small.payload[module + LORA_B][:, 2:].any()
        gone = state.adapter.tensors[module + LORA_A][2:]
        assert np.allclose(small.payload[module + LORA_A][2:], -weight * gone)


def test_hetlora_keeps_the_adapter_where_no_site_has_a_product():
    strategy = HetLora()
    state = strategy.init(initial(), 0)
    sent = train(strategy, state, UNEQUAL, scale=0.0)
    after = play(strategy, state, sent)
    for name, value in state.adapter.tensors.items():
        assert np.array_equal(after.adapter.tensors[name], value)


def test_permuting_the_sites_changes_no_bit():
    strategy = HetLora()
    state = started(strategy)
    sent = train(strategy, state, UNEQUAL)

    def result(order: list[int]) -> dict[str, bytes]:
        after = play(strategy, state, [sent[i] for i in order]).adapter.tensors
        return {n: v.tobytes() for n, v in after.items()}

    assert result([0, 1, 2]) == result([2, 0, 1])
    assert result([0, 1, 2]) != result([0, 0, 2])


def test_hetlora_of_one_site_without_noise_is_that_site():
    strategy = HetLora(gamma=1.0)
    state = started(strategy)
    sent = train(strategy, state, (None,))
    after = play(strategy, state, sent).adapter.tensors
    for name, value in sent[0].own.tensors.items():
        assert np.allclose(after[name], value, atol=1e-6)
    assert set(masked_mean(strategy, state, sent)) == set(after) | {WEIGHT}


# hetlora: pruning


def tail(adapter: Adapter, first: int) -> float:
    return sum(
        np.linalg.norm(adapter.tensors[m + LORA_B][:, first:])
        * np.linalg.norm(adapter.tensors[m + LORA_A][first:])
        for m in MODULES
    )


def scaled_tail(adapter: Adapter, first: int, by: float) -> dict[str, Any]:
    """A change that multiplies the factors from a rank on."""
    change = {n: np.zeros_like(v) for n, v in adapter.tensors.items()}
    for name, value in change.items():
        if name.endswith(LORA_A):
            value[first:] = (by - 1) * adapter.tensors[name][first:]
        elif name.endswith(LORA_B):
            value[:, first:] = (by - 1) * adapter.tensors[name][:, first:]
    return change


@pytest.mark.parametrize(
    ("gamma", "by", "rank"),
    [(0.99, 0.8, R - 1), (0.99, 1.2, R), (0.5, 0.8, 2), (0.1, 0.8, 1), (1.0, 0.8, R)],
)
def test_a_tail_that_became_smaller_is_cut_off_for_good(gamma, by, rank):
    strategy = HetLora(gamma=gamma)
    received = started(strategy).adapter
    change = scaled_tail(received, 1, by)
    start = strategy.start(received, SiteView())
    kept = strategy.kept(start, change, SiteView())
    assert kept[RANK].tolist() == [rank]
    later = SiteView(kept=kept, round=2)
    assert strategy.rank_at(later) == rank
    again = strategy.start(received, later)
    payload = strategy.payload(received, start, change)
    for module in MODULES:
        assert not again.tensors[module + LORA_A][rank:].any()
        assert again.tensors[module + LORA_A][:rank].any(axis=1).all()
        # It is cut off before it is sent, not a round later.
        sent = payload[module + LORA_B] / payload[WEIGHT]
        own = sent + received.tensors[module + LORA_B]
        assert np.allclose(own[:, rank:], 0.0, atol=1e-6)


def test_a_rank_falls_by_one_at_a_time_and_not_below_one():
    strategy = HetLora(pull=0.0)
    received = started(strategy).adapter
    view, seen = SiteView(rank=3), []
    for number in range(2, 6):
        start = strategy.start(received, view)
        change = scaled_tail(start, 0, 0.9)
        view = SiteView(3, strategy.kept(start, change, view), number)
        seen.append(strategy.rank_at(view))
    assert seen == [2, 1, 1, 1]


def test_the_pull_is_a_step_down_the_gradient_of_the_tails_size():
    received = started(HetLora()).adapter
    nothing = scaled_tail(received, R, 1.0)
    step = 0.01

    def after(pull: float) -> Adapter:
        payload = HetLora(pull=pull, gamma=0.5).payload(received, received, nothing)
        weight = payload.pop(WEIGHT)
        changes = {n: v / weight for n, v in payload.items() if n in received.tensors}
        return moved(received, changes | {"head.bias": payload["head.bias"]})

    # Pruned at once: without noise the pull alone makes the tail smaller.
    assert tail(after(step), 2) < 1e-6
    assert tail(after(0.0), 2) == pytest.approx(tail(received, 2), rel=1e-6)
    pulled = hetlora._pulled(received, 2, step)
    gradient = 0.0
    for module in MODULES:
        b = received.tensors[module + LORA_B].astype(float)[:, 2:]
        a = received.tensors[module + LORA_A].astype(float)[2:]
        norms = np.linalg.norm(b), np.linalg.norm(a)
        gradient += norms[0] ** 2 + norms[1] ** 2  # |grad|^2 in A and in B
        wanted = b - step * norms[1] * b / norms[0]
        found = pulled.tensors[module + LORA_B][:, 2:]
        assert np.allclose(found, wanted, atol=1e-6)
        kept = pulled.tensors[module + LORA_A][:2]
        assert np.array_equal(kept, received.tensors[module + LORA_A][:2])
    # To first order the size falls by the step times the gradient's square.
    fallen = tail(received, 2) - tail(pulled, 2)
    assert fallen == pytest.approx(step * gradient, rel=0.05)
    assert tail(hetlora._pulled(received, 2, 1e9), 2) == 0.0


# Real sites


RULES = ("flexlora", "flexlora-sketch", "hetlora", "fedex-lora", "lora-fair")
CUTTING = ("flexlora", "flexlora-sketch", "hetlora")


def study_of(method: str, rounds: int = 1, **adapter: Any) -> Study:
    values = study_values(rounds)
    values["training"]["method"] = method
    values["training"]["learning_rate"][method] = 1.0
    values["adapter"].update(adapter)
    values["simulation"] = {"seed": 5}
    return load_study_dict(values, "small")


def unequal(study: Study) -> dict[str, int]:
    return dict(zip(study.sites, (1, 2, 3), strict=False))


class Played:
    """A private round in memory, and what the sites put into it."""

    def __init__(self, prepared: Prepared, study: Study, folder: Path) -> None:
        self.study, self.prepared = study, prepared
        self.strategy = strategy_of(study)
        self.before = self.strategy.init(prepared.start, 0)
        self.arm = Arm(study.training.method, study)
        self.kept = {site: KeptTensors(folder / site) for site in study.sites}
        self.sent: dict[str, Contribution] = {}

    def train(self, site: Site) -> Contribution:
        number = self.before.round + 1
        self.sent[site.name] = contribute(
            self.arm,
            self.prepared,
            self.strategy,
            site,
            self.before,
            number,
            self.kept[site.name],
        )
        return self.sent[site.name]

    def own(self, site: str) -> Adapter:
        """What the site had after training."""
        view = SiteView(rank=(self.study.adapter.ranks or {}).get(site))
        start = self.strategy.start(self.before.adapter, view)
        return moved(start, self.sent[site].update.change)

    def play(self) -> RoundResult:
        sites = make_sites(self.prepared, self.study, small_policy())
        return play_round(
            self.study,
            sites,
            {name: NoGuard() for name in sites},
            self.before.adapter,
            self.train,
            self.before.round + 1,
            "ab" * 32,
            self.arm.name,
            NoProgress(),
        )


@pytest.mark.parametrize("method", CUTTING)
def test_unequal_sites_train_and_send_nothing_beyond_their_rank(
    prepared, method, tmp_path
):
    study = study_of(method)
    ranks = unequal(study)
    played = Played(prepared, study_of(method, ranks=ranks), tmp_path)
    result = played.play()
    assert result.sums_equal
    assert sorted(result.result.survivors) == sorted(study.sites)
    for site, sent in played.sent.items():
        rank = ranks.get(site, study.adapter.r)
        change = sent.update.change
        for module in prepared.start.modules():
            assert not change[module + LORA_A][rank:].any()
            assert not change[module + LORA_B][:, rank:].any()
            assert change[module + LORA_B][:, :rank].any(axis=0).all()
            if module + PRODUCT in sent.payload:
                # The received product is zero in round 1.
                found = np.linalg.matrix_rank(sent.payload[module + PRODUCT], tol=1e-5)
                assert found == rank
            if method == "hetlora":
                assert not sent.payload[module + LORA_B][:, rank:].any()
    after = played.strategy.apply(played.before, result.result.mean, 1)
    if method == "hetlora":
        weights = {s: float(c.payload[WEIGHT][0]) for s, c in played.sent.items()}
        assert len(set(weights.values())) == len(weights)
        kept = {s: k.before(2)[RANK].tolist() for s, k in played.kept.items()}
        # B was zero, so no tail can have become smaller.
        assert kept == {s: [ranks.get(s, study.adapter.r)] for s in study.sites}
    for module in prepared.start.modules():
        assert np.isfinite(after.adapter.tensors[module + LORA_A]).all()
        assert np.linalg.norm(after.adapter.delta(module)) > 0


@pytest.mark.parametrize("method", ["fedex-lora", "lora-fair"])
def test_rules_with_products_beside_the_factors_in_a_private_round(
    prepared, method, tmp_path
):
    played = Played(prepared, study_of(method), tmp_path)
    result = played.play()
    assert result.sums_equal
    after = played.strategy.apply(played.before, result.result.mean, 1).adapter
    for module in prepared.start.modules():
        ideal = np.mean([played.own(s).delta(module) for s in played.sent], axis=0)
        means = [
            np.mean([played.own(s).tensors[module + end] for s in played.sent], axis=0)
            for end in (LORA_B, LORA_A)
        ]
        biased = after.scaling * means[0] @ means[1]
        gap = np.linalg.norm(biased - ideal)
        error = np.linalg.norm(after.delta(module) - ideal)
        # Where noise fills all directions, the correction of B is a small one.
        assert error < (1e-4 if method == "fedex-lora" else 1.0) * gap


def arm_of(prepared: Prepared, study: Study, run: Path, progress: NoProgress) -> Any:
    method = study.training.method
    policy = small_policy().model_copy(update={"allowed_methods": (method,)})
    private = run / "private"
    private.mkdir(parents=True)
    own = planned(prepared, study)
    return run_arm(Arm(method, study), own, run, private, "run", policy, progress)


class Notes(NoProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.slow
@pytest.mark.parametrize("method", RULES)
def test_a_study_with_the_rule_runs_to_its_release(prepared, method, tmp_path):
    study = study_of(method, rounds=3)  # as the plans of the fixture
    if method in CUTTING:
        study = study_of(method, rounds=3, ranks=unequal(study))
    notes = Notes()
    summary = arm_of(prepared, study, tmp_path / "run", notes)
    report = verify_run(tmp_path / "run")
    assert report.passed, report.failures()
    assert [r["sums_equal"] for r in summary["rounds"]] == [None, True, True, True]
    assert [r["saturated"] for r in summary["rounds"]] == [0, 0, 0, 0]
    assert summary["epsilon_max"] == pytest.approx(study.privacy.epsilon, rel=0.01)
    assert not notes.notes
    own = tmp_path / "run" / "private" / "sites" / study.sites[0] / "kept" / method
    assert own.is_dir() == (method == "hetlora")
    released = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    ranks = {len(v) for n, v in released.items() if "lora_A" in n}
    assert len(ranks) == 1
    # What is folded in is released too, at the rank that it needs.
    assert (ranks.pop() > study.adapter.r) == (method == "fedex-lora")


def test_a_pruned_rank_is_that_of_the_next_training(prepared, tmp_path):
    study = study_of("hetlora", rounds=2)
    played = Played(prepared, study, tmp_path)
    first = study.sites[0]
    played.kept[first].write(1, {RANK: np.array([2], np.float32)})
    played.before = ServerState(played.before.adapter, 1)
    played.play()
    for site, sent in played.sent.items():
        change = sent.update.change
        for module in prepared.start.modules():
            rank = 2 if site == first else study.adapter.r
            assert change[module + LORA_A][:rank].any(axis=1).all()
            assert not change[module + LORA_A][rank:].any()
            assert not change[module + LORA_B][:, rank:].any()
    assert played.kept[first].before(3)[RANK].tolist() == [2]


# What is refused, and what is said, before training


def test_sketches_that_would_be_larger_are_announced_and_not_sent(prepared, tmp_path):
    # The rule is told of ranks that add up to 256; the adapter's stay at 4.
    study = study_of("flexlora-sketch", r=64)
    notes = Notes()
    summary = arm_of(prepared, study, tmp_path / "run", notes)
    (sentence,) = notes.notes
    assert "the ranks add up to 256" in sentence
    assert "2 of 2 modules" in sentence
    assert summary["rounds"][1]["bytes_up"] > 4 * 4 * 2 * 384 * 384


def test_a_rank_above_a_modules_sides_is_refused_before_training(prepared):
    study = study_of("flexlora", r=385)
    base = load_base_model(study.model, EXAMPLE, 21)
    with pytest.raises(ModelError, match=r"385 is too much for .*side of 384"):
        attach_adapter(base, study.adapter)


def test_unequal_ranks_are_refused_where_factors_are_averaged(prepared, tmp_path):
    study = study_of("fedex-lora")
    study = study_of("fedex-lora", ranks=unequal(study))
    with pytest.raises(StudyError, match="flexlora, flexlora-sketch, hetlora"):
        arm_of(prepared, study, tmp_path / "run", NoProgress())


def test_the_head_alone_is_trained_at_any_rank(prepared, tmp_path):
    study = study_of("head-only")
    played = Played(prepared, study_of("head-only", ranks=unequal(study)), tmp_path)
    result = played.play()
    assert sorted(result.result.survivors) == sorted(study.sites)
    for sent in played.sent.values():
        assert all(name.startswith("head") for name in sent.payload)
        assert any(value.any() for value in sent.payload.values())


def test_a_comparison_refuses_them_before_its_first_arm(prepared):
    study = study_of("flexlora")
    study = study_of("flexlora", ranks=unequal(study))
    with pytest.raises(StudyError, match="fedavg needs the same rank"):
        plan_arms(study, ["flexlora", "fedavg"], [0])


# The head beside products


def test_the_heads_numbers_keep_their_law_beside_products(prepared):
    study = study_of("flexlora")
    linear = study_of("fedavg")
    codecs = [
        codec_for(s, prepared.plans, prepared.start, 1, private=True)
        for s in (study, linear)
    ]
    ranges = []
    for codec in codecs:
        names = [name for name, _ in codec.names_shapes]
        scales = dict(zip(names, codec.scales, strict=True))
        ranges.append(codec.value_range * scales["head.bias"])
        assert ranges[-1] > 2 * step_size(study, "head.bias") / 16
    assert ranges[0] == pytest.approx(ranges[1])
    products = [n for n, _ in codecs[0].names_shapes if n.endswith(PRODUCT)]
    assert products
    assert codecs[0].value_range == 8.0
