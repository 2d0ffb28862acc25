"""The pooled baseline: its plan, who may run it, and what is said of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evidence import STUDY
from small import EXAMPLE, UNITS, make_plan, small_policy, study_values

from secfed.errors import PlanError, PolicyError, StudyError
from secfed.models import TokenFeatures
from secfed.privacy.asked import plan_for
from secfed.report.grid_reading import CellRecord
from secfed.report.html import render_report
from secfed.report.reading import read_run
from secfed.report.results import POOLED
from secfed.report.tables import comparison_rows, csv_text
from secfed.runtime import pooled
from secfed.runtime.compare import plan_arms, run_comparison
from secfed.runtime.pooled import pooled_plan
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared
from secfed.study import Study, load_study_dict
from secfed.training import TokenRecords, pooled_records
from secfed.verify import verify_run

ROUNDS = 2


def study_of(**compare: Any) -> Study:
    values = study_values(ROUNDS)
    values["compare"] = {"methods": ["fedavg"], "baselines": [POOLED]} | compare
    values["secagg"]["suite"] = "x25519"
    return load_study_dict(values, "small")


def changed(study: Study, table: str, **values: Any) -> Study:
    own = getattr(study, table).model_copy(update=values)
    return study.model_copy(update={table: own})


# ------------------------------------------------------------------------ the plan


def test_the_plan_is_that_of_all_units_at_the_same_epsilon() -> None:
    study = study_of()
    plans = {site: plan_for(study, UNITS) for site in study.sites}
    plan, own = pooled_plan(study, plans), plans[study.sites[0]]
    assert plan.nominal_units == UNITS * len(study.sites)
    assert plan.expected_batch == own.expected_batch * len(study.sites)
    assert plan.sampling_probability == own.sampling_probability
    steps = (plan.steps_per_round, plan.rounds)
    assert steps == (own.steps_per_round, own.rounds)
    assert plan.noise_multiplier == own.noise_multiplier
    assert plan.epsilon() <= study.privacy.epsilon
    # The noise of a mean step: 1 / K of the federation's variance.
    alone = own.noise_std / own.expected_batch
    together = plan.noise_std / plan.expected_batch
    sites = len(study.sites)
    assert together**2 == pytest.approx(alone**2 / sites / sites)


def test_a_plan_that_cannot_be_is_refused() -> None:
    study = study_of()
    with pytest.raises(PolicyError, match="no sites that could be the privacy unit"):
        pooled_plan(changed(study, "privacy", unit="site"), {})
    # A delta that each site may have is too large for all their units together.
    plans = {site: make_plan(UNITS, 16) for site in study.sites}
    with pytest.raises(PlanError, match="'pooled' baseline"):
        pooled_plan(changed(study, "privacy", delta=0.9 / UNITS), plans)


def test_records_are_put_in_one_place_with_units_of_their_own(
    prepared: Prepared,
) -> None:
    sites = list(prepared.records.values())
    found = pooled_records(sites)
    assert found.num_units == sum(held.num_units for held in sites)
    assert len(found.labels) == len(found.features) == len(found.units)
    first = len(sites[0].labels)
    np.testing.assert_array_equal(found.labels[:first], sites[0].labels)
    np.testing.assert_array_equal(found.units[:first], sites[0].units)
    assert set(found.units[first:]).isdisjoint(sites[0].units)
    assert np.array_equal(np.unique(found.units), np.arange(found.num_units))
    rows = np.arange(5)
    for own, same in zip(found.batch(first + rows), sites[1].batch(rows), strict=True):
        np.testing.assert_array_equal(own.numpy(), same.numpy())


def test_tokens_stay_with_their_states() -> None:
    pooled_blocks = pooled_records([_blocks(0, [3, 1]), _blocks(10, [2])])
    assert isinstance(pooled_blocks, TokenRecords)
    states, mask, tokens = pooled_blocks.batch(np.array([2, 0]))
    np.testing.assert_array_equal(tokens.numpy()[mask.numpy()], [10, 11, 0, 1, 2])
    np.testing.assert_array_equal(states[..., 0].numpy(), np.where(mask, tokens, 0))


def _blocks(first: int, lengths: list[int]) -> TokenRecords:
    """Blocks whose tokens are numbered, and whose states are their tokens."""
    tokens = torch.arange(first, first + sum(lengths))
    features = TokenFeatures(
        states=tokens[:, None].float(),
        offsets=np.cumsum([0, *lengths]),
        tokens=tokens,
    )
    rows = np.arange(len(lengths))
    return TokenRecords(features, np.zeros(len(rows), np.int64), rows, len(rows))


# --------------------------------------------------------------------- who may run it


def test_it_stands_among_the_baselines_and_nobody_is_charged() -> None:
    study = study_of(baselines=["head-only", "pooled", "non-private"])
    arms = plan_arms(study, ("fedavg",), (0, 1))
    names = ["fedavg", "head-only", "pooled", "non-private"]
    assert [arm.name for arm in arms] == [f"{n}-s{s}" for s in (0, 1) for n in names]
    (one, _) = (arm for arm in arms if arm.kind == POOLED)
    assert not one.private
    assert one.study.training.method == pooled.RULE


def test_it_needs_public_records_or_a_simulation_seed() -> None:
    values = copy.deepcopy(STUDY)
    values["compare"] = {"methods": ["fedavg"], "baselines": [POOLED]}
    with pytest.raises(PolicyError, match="records in one place") as caught:
        plan_arms(load_study_dict(values, "tiny"), ("fedavg",), (0,))
    assert "'pooled'" in str(caught.value)
    values["simulation"] = {"seed": 3}
    arms = plan_arms(load_study_dict(values, "tiny"), ("fedavg",), (0,))
    assert [arm.kind for arm in arms] == ["private", POOLED]
    # It is run where a study asks for it, and nowhere else.
    del values["compare"]
    arms = plan_arms(load_study_dict(values, "tiny"), ("fedavg",), (0,))
    assert [arm.kind for arm in arms] == ["private", "baseline", "non-private"]


def test_without_privacy_there_is_no_epsilon_to_share() -> None:
    study = study_of(without_privacy=True)
    assert [a.kind for a in plan_arms(study, ("fedavg",), (0,))] == ["non-private"]


def test_it_is_a_baseline_and_no_method() -> None:
    with pytest.raises(StudyError, match="pooled"):
        study_of(methods=["pooled"])
    values = study_values(ROUNDS)
    values["training"]["learning_rate"]["pooled"] = 2.0
    assert load_study_dict(values, "s").training.learning_rate["pooled"] == 2.0


def test_a_grid_does_not_compare_it() -> None:
    arms = [SimpleNamespace(kind=kind) for kind in ("private", POOLED, "non-private")]
    record: Any = SimpleNamespace(comparison=SimpleNamespace(arms=arms))
    for epsilon, kinds in ((8.0, ["private"]), (None, ["non-private"])):
        cell = CellRecord("c", epsilon, None, 4, "cells/c", "", record, {})
        assert [arm.kind for arm in cell.compared] == kinds


# ------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pooled") / "run"
    play(folder)
    return folder


def play(folder: Path) -> dict[str, Any]:
    policy = small_policy(30.0, "fedavg")
    return run_comparison(
        study_of(), EXAMPLE, folder, ("fedavg",), (0,), policy, NoProgress()
    )


@pytest.mark.slow
def test_a_comparison_with_it_is_whole_and_verifies(run: Path) -> None:
    report = verify_run(run)
    assert report.passed, report.failures()
    assert any("1 arms have no run directory" in c.reason for c in report.checks)
    found = json.loads((run / "comparison.json").read_text("utf-8"))
    fedavg, arm = found["arms"]
    assert (arm["name"], arm["kind"], arm["run"]) == (POOLED, POOLED, None)
    assert 0 < arm["epsilon_max"] <= study_of().privacy.epsilon
    assert [line["round"] for line in arm["rounds"]] == [0, 1, 2]
    assert arm["rounds"][0]["accuracy"] == fedavg["rounds"][0]["accuracy"]
    assert arm["trainable"] == fedavg["trainable"]
    # Nobody's budget paid for it.
    for site, entry in found["budget"].items():
        assert entry["spent"] == pytest.approx(fedavg["epsilon"][site])


@pytest.mark.slow
def test_wherever_it_is_shown_it_is_labelled(run: Path) -> None:
    record = read_run(run)
    comparison = record.comparison
    assert "a baseline that no federation can run" in comparison.conclusion
    (row,) = (r for r in comparison_rows(comparison) if r.arm and r.arm.kind == POOLED)
    assert row.name == "pooled (no federation)"
    assert row.epsilon_text.endswith(" POOLED")
    assert csv_text(comparison).splitlines()[-1].startswith("pooled,pooled,pooled,0,")
    page = render_report(record)
    assert "which no federation has: a simulation for comparison" in page
    assert page.count("pooled (no federation)") >= 2  # the table and a chart
    assert "There is no statement in this directory" not in page


@pytest.mark.slow
def test_a_finished_one_is_not_trained_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((run / "comparison.json").read_text("utf-8"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(pooled, "train_privately", refuse)
    again = play(run)
    assert again["arms"] == before["arms"]
    assert verify_run(run).passed
