"""An evaluation between real sites and a real coordinator, with what can fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import make_budgets, make_plan, small_policy, study_values

from protocols.keys import generate_identity
from secfed.client import EvaluationGuard, NoGuard, Site, SiteRound
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RoundAbortedError,
    TrainingError,
)
from secfed.models import Features
from secfed.policy import SitePolicy
from secfed.privacy import accounting
from secfed.privacy.held_back import GRID, EvaluationPlan, evaluation_run
from secfed.privacy.noise import simulation_stream
from secfed.runtime.evaluations import EvaluationResult, play_evaluation
from secfed.runtime.progress import NoProgress
from secfed.runtime.sessions import evaluation_terms
from secfed.study import Study, load_study_dict
from secfed.training import HeldBack, PrivateRecords
from secfed.types import Adapter

SEED = 9
ARM = "ffa-lora"
PLAN = EvaluationPlan(("accuracy", "loss"), 4.0, 20, 5, 4.0)
EVENT = PLAN.event()


def make_study(seed: int | None = SEED) -> Study:
    values = study_values()
    values["evaluation"] = {
        "fraction": 0.25,
        "metrics": ["accuracy", "loss"],
        "loss_cap": 4.0,
        "noise_multiplier": 4.0,
    }
    values["simulation"] = {} if seed is None else {"seed": seed}
    return load_study_dict(values, "small")


NAMES = make_study().sites
A, B, C, D = NAMES


def allowing(**changes: Any) -> SitePolicy:
    update = {"allowed_metrics": ("accuracy", "loss"), **changes}
    return small_policy().model_copy(update=update)


def make_sites(policy: SitePolicy | None = None) -> dict[str, Site]:
    empty = Features(torch.zeros(0, 8), np.zeros(1, np.int64))
    nothing = np.zeros(0, np.int64)
    return {
        name: Site(
            name=name,
            identity=generate_identity(simulation_stream(3, "id", name).bytes(32)),
            records=PrivateRecords(empty, nothing, nothing, num_units=100),
            plan=make_plan(80, 10),
            policy=policy or allowing(),
            held_back=HeldBack((), nothing, nothing),
            evaluation=PLAN,
        )
        for name in NAMES
    }


@dataclass
class Game:
    """An evaluation of invented outcomes; a test changes what is special about it."""

    study: Study = field(default_factory=make_study)
    counted: list[str] = field(default_factory=list)
    received: list[tuple[str, bytes]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fail: Mapping[str, Exception] = field(default_factory=dict)
    before_counting: Any = None

    def units(self, site: str) -> NDArray[np.int64]:
        """19 to 22 units: the declared 20 are not the true number."""
        rng = np.random.default_rng(NAMES.index(site))
        right = rng.integers(0, GRID + 1, size=(19 + NAMES.index(site), 2))
        pairs = [right[:, :1], GRID - right[:, :1], right[:, 1:], GRID - right[:, 1:]]
        return np.concatenate(pairs, axis=1)

    def count(self, site: Site) -> NDArray[np.int64]:
        self.counted.append(site.name)
        if self.before_counting is not None:
            self.before_counting(site.name)
        if site.name in self.fail:
            raise self.fail[site.name]
        return self.units(site.name)

    def play(
        self, guards: Mapping[str, Any], sites: Mapping[str, Site] | None = None
    ) -> EvaluationResult:
        progress = NoProgress()
        progress.note = self.notes.append  # type: ignore[method-assign]
        return play_evaluation(
            self.study,
            sites or make_sites(),
            guards,
            Adapter({"m.lora_B": np.ones((2, 2), np.float32)}, 2.0),
            self.count,
            1,
            "ab" * 32,
            ARM,
            progress,
            lambda site, message: self.received.append((site, message)),
        )

    def plain(self, names: tuple[str, ...]) -> dict[str, float]:
        """The sums without noise, counted in one place."""
        total = sum(self.units(name).sum(axis=0) for name in names)
        return dict(zip(PLAN.cells, (total / GRID).tolist(), strict=True))


def guards_of(budgets: Mapping[str, Any]) -> dict[str, EvaluationGuard]:
    run = evaluation_run("run")
    return {name: EvaluationGuard(budget, run) for name, budget in budgets.items()}


@pytest.fixture
def budgets(tmp_path: Path) -> dict[str, Any]:
    return make_budgets(tmp_path, make_study(), {})


# The sums


def test_without_noise_the_sums_are_the_plain_sums(
    budgets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = np.zeros(len(PLAN.cells), dtype=np.int64)
    monkeypatch.setattr(EvaluationPlan, "_noise", lambda _plan, _stream: quiet)
    game = Game()
    result = game.play(guards_of(budgets))
    assert result.sums_equal
    assert dict(result.result.metrics) == game.plain(NAMES)


def test_the_sums_are_those_of_what_every_site_noised(
    budgets: dict[str, Any],
) -> None:
    game = Game()
    result = game.play(guards_of(budgets))
    assert result.sums_equal
    released = [
        PLAN.released(
            game.units(name),
            simulation_stream(SEED, ARM, "1", name, "evaluation-noise"),
        )
        for name in NAMES
    ]
    total = {cell: sum(one[cell] for one in released) for cell in PLAN.cells}
    assert dict(result.result.metrics) == total
    # Four sites' noise of 4 sqrt(2) each; ten standard deviations are never passed.
    distance = [total[cell] - game.plain(NAMES)[cell] for cell in PLAN.cells]
    assert 0.1 < max(map(abs, distance)) < 10 * 2 * 4 * 2**0.5


def test_without_a_seed_the_noise_is_fresh(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        study = make_study(seed=None)
        own = make_budgets(folder, study, {})
        found.append(Game(study).play(guards_of(own)).result.metrics)
    assert found[0]["accuracy.right"] != found[1]["accuracy.right"]


def test_the_coordinator_receives_no_release_of_a_single_site(
    budgets: dict[str, Any],
) -> None:
    game = Game()
    game.play(guards_of(budgets))
    everything = b"\0".join(message for _, message in game.received)
    for name in NAMES:
        stream = simulation_stream(SEED, ARM, "1", name, "evaluation-noise")
        for value in PLAN.released(game.units(name), stream).values():
            word = round(value * 2**32) % (1 << 64)
            assert word.to_bytes(8, "little") not in everything
            assert word.to_bytes(8, "big") not in everything


def test_a_site_that_cannot_count_is_left_out(budgets: dict[str, Any]) -> None:
    game = Game(fail={C: TrainingError("the model is broken")})
    result = game.play(guards_of(budgets))
    assert result.sums_equal
    assert result.result.dropouts == {C: "shares"}
    assert len(result.result.survivors) == 3
    # It had reserved, so it has spent.
    assert [charge.state for charge in budgets[C].history()] == ["reserved"]
    assert [charge.state for charge in budgets[A].history()] == ["spent"]


# Budget


def test_an_evaluation_is_charged_before_it_is_computed(
    budgets: dict[str, Any],
) -> None:
    seen = {}

    def look(name: str) -> None:
        seen[name] = [(c.run_id, c.round, c.state) for c in budgets[name].history()]

    Game(before_counting=look).play(guards_of(budgets))
    asked = ("run+evaluation", 1, "reserved")
    assert seen == {name: [asked] for name in NAMES}
    for budget in budgets.values():
        (charge,) = budget.history()
        assert (charge.event, charge.state) == (EVENT, "spent")
        assert budget.spent_epsilon() == accounting.epsilon([EVENT], 1e-5)


def test_an_evaluation_that_broke_stays_charged_and_is_not_repeated(
    budgets: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Game(fail={B: KeyboardInterrupt()}).play(guards_of(budgets))  # type: ignore[dict-item]
    again = make_budgets(tmp_path, make_study(), {})  # the files, opened anew
    for budget in again.values():
        assert [charge.event for charge in budget.history()] == [EVENT]
    game = Game()
    with pytest.raises(PolicyError, match="not repeated"):
        game.play(guards_of(again))
    assert game.counted == []
    assert all(len(budget.history()) == 1 for budget in again.values())


def test_a_round_and_its_evaluation_are_charged_side_by_side(
    budgets: dict[str, Any],
) -> None:
    training = make_plan(80, 10).round_event()
    for budget in budgets.values():
        budget.reserve("study", "run", 1, training)
    Game().play(guards_of(budgets))
    for budget in budgets.values():
        assert [charge.event for charge in budget.history()] == [training, EVENT]


def test_a_site_over_its_budget_refuses_before_it_counts(tmp_path: Path) -> None:
    budgets = make_budgets(tmp_path, make_study(), {C: 0.01})
    game = Game()
    result = game.play(guards_of(budgets))
    assert C not in game.counted
    assert C not in [site for site, _ in game.received]
    assert budgets[C].history() == ()
    assert result.result.dropouts == {C: ""}


# Refusals


def test_a_policy_that_does_not_allow_the_metric_refuses_before_anything(
    budgets: dict[str, Any],
) -> None:
    game = Game()
    with pytest.raises(PolicyError, match="'loss' is not in allowed_metrics"):
        game.play(
            guards_of(budgets), make_sites(allowing(allowed_metrics=("accuracy",)))
        )
    assert game.counted == []
    assert game.received == []
    assert all(budget.history() == () for budget in budgets.values())


def test_too_few_sites_give_nothing_and_have_spent(budgets: dict[str, Any]) -> None:
    broken = dict.fromkeys((A, B), TrainingError("broken"))
    with pytest.raises(RoundAbortedError):
        Game(fail=broken).play(guards_of(budgets))
    assert all(len(budget.history()) == 1 for budget in budgets.values())


def test_all_sites_over_their_budget_end_it_with_the_reason(tmp_path: Path) -> None:
    budgets = make_budgets(tmp_path, make_study(), dict.fromkeys(NAMES, 0.01))
    with pytest.raises(BudgetExceededError):
        Game().play(guards_of(budgets))


def test_nothing_is_counted_without_a_reservation(budgets: dict[str, Any]) -> None:
    """A guard that reserves nothing, or a round's, does not let an evaluation pass."""
    game, sites = Game(), make_sites()
    identities = {name: site.identity.public_bytes for name, site in sites.items()}
    plans = dict.fromkeys(NAMES, PLAN)
    terms = evaluation_terms(game.study, plans, identities, 1, ARM)
    for guard in (NoGuard(), EvaluationGuard(budgets[A], "run")):
        site = sites[A] if isinstance(guard, NoGuard) else bare(sites[A])
        held = SiteRound(site, game.study, terms.of(A), terms.codec, guard)
        stream, noise = (simulation_stream(1, name) for name in ("protocol", "noise"))
        with pytest.raises(ValueError, match="reserved before it is computed"):
            held.evaluate(game.count, stream, noise)
        with pytest.raises(ValueError, match="before masking"):
            held.mask(b"")
    assert game.counted == []


def bare(site: Site) -> Site:
    """The same site without anything held back."""
    return Site(site.name, site.identity, site.records, site.plan, site.policy)


def test_a_site_that_holds_nothing_back_does_not_evaluate(
    budgets: dict[str, Any],
) -> None:
    guard = EvaluationGuard(budgets[A], "run+evaluation")
    with pytest.raises(PolicyError, match="holds nothing back"):
        guard.before_training(bare(make_sites()[A]), make_study(), 1)
    assert budgets[A].history() == ()


def test_fewer_evaluating_sites_have_a_threshold_of_their_own() -> None:
    study = make_study()
    identities = {n: s.identity.public_bytes for n, s in make_sites().items()}
    three = dict.fromkeys(NAMES[:3], PLAN)
    terms = evaluation_terms(study, three, identities, 1, ARM)
    assert [member.name for member in terms.sessions[0].roster] == sorted(NAMES[:3])
    assert terms.sessions[0].threshold == 3
    assert terms.sessions[0].purpose == "evaluation/ffa-lora"
    assert (terms.sessions[0].body_length, terms.sessions[0].lane_length) == (0, 7)
