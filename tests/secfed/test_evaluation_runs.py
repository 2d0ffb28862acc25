"""Whole runs with evaluations: evidence, interruptions, and what is verified."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small import EVALUATION, EXAMPLE, evaluating_policy, randomised, study_values

from secfed.cli.outlook import evaluation_outlook
from secfed.cli.planning import _evaluated
from secfed.evaluation import outcomes, predict, score_logits
from secfed.ledger import split_lines, verify_entries
from secfed.privacy import accounting
from secfed.privacy.budget import Budget
from secfed.report.html import render_report
from secfed.report.reading import read_run
from secfed.runtime.arms import Arm
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.receipts import receipts_of_run
from secfed.runtime.setup import Prepared, prepare
from secfed.signing import load_or_create
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run

ARM = "ffa-lora"
ROUNDS = 2


@pytest.fixture(scope="module")
def asked() -> Study:
    values = study_values(ROUNDS)
    values["evaluation"] = EVALUATION
    values["simulation"]["seed"] = 5
    return load_study_dict(values, "evaluated")


@pytest.fixture(scope="module")
def ready(packages: None, asked: Study) -> Prepared:
    return prepare(asked, EXAMPLE, evaluating_policy(), NoProgress())


def play(
    ready: Prepared, asked: Study, run: Path, progress: NoProgress | None = None
) -> dict[str, Any]:
    (run / "private").mkdir(parents=True, exist_ok=True)
    return run_arm(
        Arm(ARM, asked),
        ready,
        run,
        run / "private",
        "run",
        evaluating_policy(),
        progress or NoProgress(),
    )


@pytest.fixture(scope="module")
def finished(
    ready: Prepared, asked: Study, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("evaluated") / "run"
    return run, play(ready, asked, run)


def entries(run: Path) -> list[Any]:
    key = load_or_create(run / "private" / "coordinator.key")
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    return list(verify_entries(lines, key.public_bytes))


def budget_of(run: Path, site: str) -> Budget:
    path, rules = (
        run / "private" / "sites" / site / "budget.sqlite",
        evaluating_policy(),
    )
    return Budget(path, site, create=False).open(
        rules.population, "record", rules.max_epsilon, rules.delta
    )


@pytest.mark.slow
def test_a_run_is_evaluated_stated_and_verified(
    finished: tuple[Path, dict[str, Any]], asked: Study
) -> None:
    run, summary = finished
    assert [entry.kind for entry in entries(run)] == [
        "study",
        "plan",
        "round",
        "evaluation",
        "round",
        "evaluation",
        "release",
    ]
    report = verify_run(run)
    assert report.passed, report.failures()
    statement = json.loads((run / "statement.json").read_bytes())
    for site in asked.sites:
        total = statement["sites"][site]["epsilon"]
        held = budget_of(run, site)
        assert len(held.history()) == 2 * ROUNDS
        assert total == pytest.approx(held.spent_epsilon(), rel=1e-9)
        assert total == pytest.approx(summary["epsilon"][site], rel=1e-9)
        assert 0.98 * asked.privacy.epsilon <= total <= asked.privacy.epsilon
    told = statement["evaluation"]
    assert [one["status"] for one in told["rounds"]] == ["completed"] * 2
    assert set(told["nominal_units"].values()) == {20}
    assert told["composition"].startswith("sequential")
    for one in told["rounds"]:
        low, high = one["scores"]["mean_loss"]["interval"]
        assert 0 <= low < high <= 4


@pytest.mark.slow
def test_the_report_shows_scores_with_their_intervals_and_the_whole_epsilon(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    run, summary = finished
    record = read_run(run)
    assert record.comparison.arms[0].epsilon_max == pytest.approx(
        summary["epsilon_max"]
    )
    page = render_report(record)
    assert "Scores on records that the sites hold back" in page
    told = record.statements[ARM]["evaluation"]["rounds"][-1]["scores"]["accuracy"]
    low, high = told["noise_interval"]
    assert f"{low:.3f} to {high:.3f}" in page
    # Control: without the statement's section nothing speaks of it.
    assert "hold back" not in render_report(replace(record, statements={}))


@pytest.mark.slow
def test_a_finished_run_is_read_back_and_nothing_is_charged_twice(
    ready: Prepared, asked: Study, finished: tuple[Path, Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    before = (run / "ledger.jsonl").read_bytes()
    play(ready, asked, run)
    assert (run / "ledger.jsonl").read_bytes() == before
    assert len(budget_of(run, asked.sites[0]).history()) == 2 * ROUNDS
    # Ledger and receipts name the evaluations, so a budget that lost them is known.
    heads = {one.head for one in receipts_of_run(run, asked.sites[0])}
    assert heads == {c.head for c in budget_of(run, asked.sites[0]).history()}
    runs = {one.run_id for one in receipts_of_run(run, asked.sites[0])}
    assert runs == {f"run/{ARM}", f"run/{ARM}+evaluation"}


class Pressed(NoProgress):
    """Presses Ctrl-C when sites count for the first time."""

    pressed = False

    def phase(self, text: str) -> None:
        if text == "evaluation on held-back records" and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_evaluation_is_spent_and_not_repeated(
    ready: Prepared, asked: Study, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        play(ready, asked, run, Pressed())
    for site in asked.sites:  # reserved, though nothing was counted
        charges = budget_of(run, site).history()
        assert [charge.run_id for charge in charges] == [
            f"run/{ARM}",
            f"run/{ARM}+evaluation",
        ]
    play(ready, asked, run)
    kinds = [entry.kind for entry in entries(run)]
    assert kinds[3] == "evaluation-interrupted"
    assert kinds.count("evaluation") == 1
    report = verify_run(run)
    assert report.passed, report.failures()
    for site in asked.sites:
        assert len(budget_of(run, site).history()) == 2 * ROUNDS
    told = json.loads((run / "statement.json").read_bytes())["evaluation"]["rounds"]
    assert [one["status"] for one in told] == ["interrupted", "completed"]


# What the model does to one record


@pytest.mark.slow
def test_a_record_is_never_trained_on_and_answers_by_itself(
    ready: Prepared, asked: Study
) -> None:
    """Another record more or less does not move an outcome by a bit."""
    busy = randomised(ready.start)
    site = asked.sites[0]
    held = ready.held_back[site]
    assert 8 < len(held.texts) < 40
    trained = ready.records[site]
    assert len(trained.labels) + len(held.texts) > 70
    whole = outcomes(ready.model, busy, held.texts, held.labels, held.units)
    less = outcomes(
        ready.model,
        busy,
        held.texts[1:],
        held.labels[1:],
        np.arange(len(held.texts) - 1),
    )
    assert np.array_equal(whole.loss[1:], less.loss)
    assert np.array_equal(whole.answers[1:], less.answers)
    assert np.isfinite(whole.loss).all()
    # The same scores as in a batch, up to rounding.
    plan = ready.evaluations[site]
    cells = plan.contributions(whole).sum(axis=0)
    together = type(held.texts[0]).joined(list(held.texts))
    scores = score_logits(predict(ready.model, busy, together), held.labels)
    assert cells[0] / cells[:2].sum() == pytest.approx(scores.accuracy)


def test_plan_says_what_an_evaluation_costs(asked: Study) -> None:
    outlooks: Any = [SimpleNamespace(site=s, nominal_units=80) for s in asked.sites]
    told = evaluation_outlook(asked, outlooks)
    assert told is not None
    event = [accounting.sampled_gaussian(1.0, 4.0, 1)]
    assert told["epsilon_of_one"] == accounting.epsilon(event, asked.privacy.delta)
    assert told["margin"] == pytest.approx(1.96 * 4 * 2**0.5 * 2 / 80, rel=1e-3)
    said = _evaluated(told)
    assert "on about 80 units that 4 sites hold back" in said
    assert "27.7 points" in said
    none: Any = [SimpleNamespace(site=s, nominal_units=30) for s in asked.sites]
    assert "no site is large enough" in _evaluated(evaluation_outlook(asked, none))
    plain = asked.model_copy(update={"evaluation": None})
    assert evaluation_outlook(plain, outlooks) is None
