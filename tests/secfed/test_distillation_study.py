"""What a study may say of a teacher, and what a private one's own record has to say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import evidence
import pytest
from encoders import pair_values
from small import small_policy

from secfed.canonical import canonical_json, file_sha256
from secfed.entries import (
    ApprovalEntry,
    PlanEntry,
    RunCharge,
    RunCosts,
    parse_body,
)
from secfed.errors import (
    BudgetExceededError,
    LedgerError,
    PlanError,
    PolicyError,
    StudyError,
)
from secfed.policy import check
from secfed.privacy import accounting
from secfed.privacy.budget import Budget
from secfed.runtime.compare import plan_arms
from secfed.runtime.earlier import charge_earlier
from secfed.statement import StatementContext, build_statement, round_event_json
from secfed.study import Study, load_study_dict
from secfed.teacher_ledger import TEACHER_LEDGER, TeacherRun, read_teacher_run
from secfed.verify import verify_run

DIGEST, OTHER = "0" * 64, "1" * 64
PUBLIC = {"path": "teacher", "sha256": OTHER, "trained_on": "reviews that are public"}
RUN_ID = "00aa11bb22cc33dd/ffa-lora"
MODEL = evidence.STUDY["model"]["sha256"]


def distilled(teacher: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    return {"weight": 0.5, "temperature": 2.0, "teacher": dict(teacher), **own}


def pairs(table: Mapping[str, Any]) -> Study:
    return load_study_dict({**pair_values("bert", DIGEST), "distillation": table}, "p")


def changed(key: str, value: Any) -> dict[str, Any]:
    """The public table with one key set; None takes it out."""
    table: dict[str, Any] = distilled(PUBLIC)
    where = table["teacher"] if key.startswith("teacher.") else table
    name = key.removeprefix("teacher.")
    where.pop(name, None)
    if value is not None:
        where[name] = value
    return table


# What a study may say


def test_a_study_without_a_teacher_has_no_table_in_its_digest() -> None:
    plain = load_study_dict(pair_values("bert", DIGEST), "plain")
    assert "distillation" not in plain.canonical()
    assert plain.teacher is None
    study = pairs(distilled(PUBLIC))
    assert study.digest() != plain.digest()
    assert load_study_dict(study.canonical(), "again").digest() == study.digest()
    spelled = pairs(distilled({**PUBLIC, "quantisation": "none"}, mutual=False))
    assert spelled.digest() == study.digest()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("weight", 1.1, "distillation.weight"),
        ("weight", -0.1, "distillation.weight"),
        ("temperature", 0.0, "distillation.temperature"),
        ("temperature", 101.0, "distillation.temperature"),
        ("temprature", 2.0, "did you mean 'temperature'?"),
        ("teacher.trained_on", None, "without a plan of its own leaks them"),
        ("teacher.run", "runs/t", "public or released by a run, not both"),
        ("teacher.ledger_sha256", OTHER, "belongs to run, and is needed"),
        ("teacher.adapter", "public/adapter", "belongs to adapter, and is needed"),
        ("teacher.quantisation", "nf4", "a teacher is not quantised"),
        ("teacher.labels", ["0", "2"], "not once in it and in data.labels"),
        ("teacher.labels", ["0", "0"], "not once in it and in data.labels"),
        ("teacher.sha256", None, "teacher.sha256: this key is required"),
        ("adaptive", True, "adaptive: belongs to mutual = true only"),
        ("mentor", {"r": 4}, "mentor: belongs to mutual = true only"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: Any, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        pairs(changed(key, value))
    assert words in str(caught.value)


def mutual(**changes: Any) -> Study:
    """With a mentor; keys ``table__key`` changed, or of the distillation's table."""
    values = pair_values("bert", DIGEST)
    values["distillation"] = distilled(PUBLIC, mutual=True)
    for dotted, value in changes.items():
        table, _, key = dotted.rpartition("__")
        values.setdefault(table or "distillation", {})[key] = value
    return load_study_dict(values, "mutual")


def test_a_mentor_is_in_the_digest_and_has_the_students_adapter_but_for_its_own() -> (
    None
):
    study = mutual()
    assert study.digest() != pairs(distilled(PUBLIC)).digest()
    assert load_study_dict(study.canonical(), "again").digest() == study.digest()
    assert mutual(adaptive=False).digest() == study.digest()
    assert mutual(adaptive=True).digest() != study.digest()
    assert study.mentor_adapter == study.adapter
    assert pairs(distilled(PUBLIC)).mentor_adapter is None
    own = mutual(mentor={"r": 7, "layers": 2}).mentor_adapter
    assert own is not None
    assert (own.r, own.layers, own.lora_alpha) == (7, 2, study.adapter.lora_alpha)
    assert own.target_modules == study.adapter.target_modules


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight": 0.0}, "takes a part of the clip norm and teaches nobody"),
        ({"mentor": {"seed": 1}}, "distillation.mentor.seed"),
        ({"adapter__ranks": {"north": 1}}, "has none for its mentor"),
        ({"adapter__kind": "dora"}, "use 'lora' or 'rslora', not 'dora'"),
        ({"model__quantisation": "nf4"}, "a mentor takes many times"),
        ({"training__method": "head-only"}, "no step size for the mentor's factors"),
        ({"compare__methods": ["ffa-lora"]}, "'pooled' no site where it could stay"),
    ],
)
def test_what_a_mentor_cannot_learn_beside_is_refused(changes: Any, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        mutual(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "teacher",
    [
        {"run": "runs/t", "ledger_sha256": OTHER, "trained_on": None},
        {"adapter": "public/adapter", "adapter_sha256": OTHER},
        {"labels": ["1", "0"]},
    ],
)
def test_a_mentor_starts_from_public_base_weights_alone(teacher: Any) -> None:
    given = {n: v for n, v in (PUBLIC | teacher).items() if v is not None}
    values = pair_values("bert", DIGEST)
    values["distillation"] = distilled(given, mutual=True)
    with pytest.raises(StudyError, match="from public base weights") as caught:
        load_study_dict(values, "mutual")
    assert caught.value.key == f"distillation.teacher.{next(iter(teacher))}"


def test_a_comparison_asks_for_an_arm_that_a_mentor_cannot_join() -> None:
    with pytest.raises(StudyError, match="'head-only' has no step size"):
        plan_arms(mutual(simulation__seed=1), ("ffa-lora",), (0,))


def test_a_language_model_has_no_teacher() -> None:
    values = copy.deepcopy(evidence.STUDY)
    values["task"] = {"kind": "causal-lm"}
    del values["training"]["head_learning_rate"]
    values["distillation"] = distilled(PUBLIC)
    with pytest.raises(StudyError, match="'classification' only"):
        load_study_dict(values, "texts")


def test_a_site_allows_a_teacher_by_every_digest_that_pins_it() -> None:
    study = pairs(distilled({**PUBLIC, "adapter": "a", "adapter_sha256": "2" * 64}))
    allowed = {"allowed_model_sha256": (DIGEST,), "delta": 1e-4, "budget_dir": "b"}
    policy = small_policy().model_copy(update=allowed)
    assert policy.allowed_teacher_sha256 == ()
    with pytest.raises(PolicyError) as caught:
        check(policy, study, 60)
    assert str(caught.value).count("is not in allowed_teacher_sha256") == 2
    both = {"allowed_teacher_sha256": (OTHER, "2" * 64)}
    check(policy.model_copy(update=both), study, 60)


# A private teacher's own record


def named(index: int, body: evidence.Body) -> evidence.Body:
    return body | {"run_id": RUN_ID} if index == 0 else body


def teacher_run(folder: Path, **how: Any) -> Path:
    evidence.write_run(folder, **{"change": named, **how})
    return folder


def student(run: Path, unit: str = "record", seed: int | None = None) -> Study:
    values = evidence.make_study(seed, unit=unit).canonical()
    values["distillation"] = distilled(
        {
            "path": "model",
            "sha256": MODEL,
            "run": str(run),
            "ledger_sha256": file_sha256(run / "ledger.jsonl"),
        }
    )
    return load_study_dict(values, "student")


def read(run: Path, **how: Any) -> TeacherRun:
    return read_teacher_run((run / "ledger.jsonl").read_bytes(), student(run, **how))


def test_a_teachers_cost_is_every_round_that_its_ledger_records(tmp_path: Path) -> None:
    costs = read(teacher_run(tmp_path / "t")).costs
    assert set(costs.spent) == set(evidence.SITES)
    assert [c.round for c in costs.spent["south"]] == [1, 2, 3]
    assert {c.run_id for c in costs.spent["south"]} == {RUN_ID}
    assert costs.simulation_seeds == ()
    again = parse_body("plan", plan_with(costs).to_body())
    assert isinstance(again, PlanEntry)
    assert again.teacher == costs
    assert "teacher" not in evidence.plan_entry().to_body()


def test_scores_on_held_back_records_cost_the_teacher_nothing(tmp_path: Path) -> None:
    run = teacher_run(tmp_path / "t")
    entries = evidence.entries_of(run / "ledger.jsonl")
    entries.insert(-1, evidence.scored(entries))
    evidence.write_entries(run / "ledger.jsonl", entries)
    costs = read(run).costs
    assert [charge.round for charge in costs.spent["south"]] == [1, 2, 3]


def test_a_teacher_of_a_run_across_machines_may_teach(tmp_path: Path) -> None:
    """Its ledger tells of approvals, too, which spend nothing."""
    run = teacher_run(tmp_path / "t")
    before = read(run).costs
    approval = ApprovalEntry(site="north", study_digest=OTHER, commitment=OTHER)
    entries = evidence.entries_of(run / "ledger.jsonl")
    entries.insert(2, (approval.kind, approval.to_body()))
    evidence.write_entries(run / "ledger.jsonl", entries)
    assert read(run).costs.spent == before.spent


def overspent(index: int, body: evidence.Body) -> evidence.Body:
    if index != 2:
        return named(index, body)
    spent = {site: accounting.event_to_json(accounting.sampled_gaussian(0.05, 9.0, 2))
             for site in body["spent"]}  # fmt: skip
    return body | {"spent": spent}


@pytest.mark.parametrize(
    ("how", "asked", "error", "words"),
    [
        ({"private": False}, {}, PolicyError, "was trained without privacy"),
        ({"seed": 5}, {}, PolicyError, "follows from the simulation seed 5"),
        ({}, {"unit": "site"}, PolicyError, "costs cannot be composed"),
        ({"change": overspent}, {}, LedgerError, "did not spend what their plans say"),
    ],
)
def test_a_private_teacher_without_its_own_plan_is_refused(
    how: Any, asked: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    run = teacher_run(tmp_path / "t", **how)
    with pytest.raises(error, match=words):
        read(run, **asked)


def test_a_run_that_released_nothing_teaches_nobody(tmp_path: Path) -> None:
    run = teacher_run(tmp_path / "t")
    path = run / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(PolicyError, match="has not released anything"):
        read(run)


def test_another_ledger_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    run = teacher_run(tmp_path / "t")
    study = student(run)
    data = (run / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerError, match="not the teacher's ledger"):
        read_teacher_run(data[:-20] + b"A" + data[-19:], study)


def test_a_simulated_teacher_teaches_in_a_rehearsal_and_is_not_private(
    tmp_path: Path,
) -> None:
    run = teacher_run(tmp_path / "t", seed=5)
    costs = read(run, seed=1).costs
    assert costs.simulation_seeds == (5,)
    said = stated(student(run, seed=1), costs)
    assert said["private"] is False
    assert "the teacher's training follows from a public seed" in said["headline"]


# What both cost together


def plan_with(costs: RunCosts | None, unit: Any = "record") -> PlanEntry:
    return evidence.plan_entry(unit=unit).model_copy(update={"teacher": costs})


def stated(
    study: Study, costs: RunCosts | None, unit: Any = "record"
) -> dict[str, Any]:
    rounds = evidence.round_entries(unit=unit)[: 1 if unit == "site" else 3]
    plan = plan_with(costs, unit)
    return build_statement(study.canonical(), plan, rounds, StatementContext())


def test_the_statement_composes_both_runs(tmp_path: Path) -> None:
    run = teacher_run(tmp_path / "t")
    costs = read(run).costs
    said = stated(student(run), costs)
    once = accounting.sampled_gaussian(0.05, 1.0, 6)
    alone = accounting.epsilon([once], evidence.DELTA)
    both = accounting.epsilon([once, once], evidence.DELTA)
    north, teacher = said["sites"]["north"], said["teacher"]
    assert north["epsilon"] == pytest.approx(alone)
    assert north["with_named_runs"]["epsilon"] == pytest.approx(both)
    assert alone < both < 2 * alone
    assert teacher["sites"]["north"]["epsilon"] == pytest.approx(alone)
    assert teacher["runs"] == [RUN_ID]
    assert said["across_sites"]["epsilon"] == pytest.approx(
        accounting.epsilon([once] * 6, evidence.DELTA)
    )
    assert f"({both:.4g}, 1e-05)" in said["headline"]
    assert said["headline"].endswith("the training of the teacher included")
    assert "limits its own steps only" in teacher["note"]


def test_people_of_the_teacher_only_are_counted_in_the_headline(
    tmp_path: Path,
) -> None:
    run = teacher_run(tmp_path / "t")
    costs = read(run).costs
    thrice = [c.model_copy(update={"round": c.round + 3 * k})
              for k in range(3) for c in costs.spent["north"]]  # fmt: skip
    elsewhere = {"east": tuple(thrice)}
    said = stated(student(run), costs.model_copy(update={"spent": elsewhere}))
    assert "with_named_runs" not in said["sites"]["north"]
    worst = said["teacher"]["sites"]["east"]["epsilon"]
    assert worst > said["sites"]["north"]["epsilon"]
    assert f"({worst:.4g}, 1e-05)" in said["headline"]


def test_where_the_unit_is_the_site_a_person_is_composed_too(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b"not read by the statement")
    event = round_event_json(evidence.make_plan("site").to_json())
    charge = RunCharge(run_id=RUN_ID, study_digest=OTHER, round=1, event=event)
    costs = RunCosts(
        ledger_sha256=OTHER,
        study_digest=OTHER,
        unit="site",
        simulation_seeds=(),
        spent={"north": (charge,)},
    )
    said = stated(student(tmp_path, unit="site"), costs, "site")
    north = said["sites"]["north"]
    person = north["with_named_runs"]["of_a_person"]["epsilon"]
    assert person > north["of_a_person"]["epsilon"]
    assert f"({person:.4g}, 1e-05)" in said["headline"]


def test_a_public_teacher_is_named_and_its_data_are_not_covered() -> None:
    values = evidence.make_study().canonical() | {"distillation": distilled(PUBLIC)}
    study = load_study_dict(values, "public")
    said = stated(study, None)
    assert said["teacher"]["trained_on"] == PUBLIC["trained_on"]
    assert said["teacher"]["kind"] == "frozen and public, by declaration"
    assert any("public by declaration" in text for text in said["limits"])
    plain = stated(evidence.make_study(), None)
    assert said["headline"] == plain["headline"]
    assert "teacher" not in plain
    assert not any("teacher" in text for text in plain["limits"])


def test_a_mentor_is_said_to_have_stayed_and_to_be_covered() -> None:
    table = distilled(PUBLIC, mutual=True)
    values = evidence.make_study().canonical() | {"distillation": table}
    values.pop("compare", None)
    said = stated(load_study_dict(values, "mutual"), None)
    assert "stayed there; nothing of it was sent" in said["teacher"]["kind"]
    assert "a site's epsilon holds for what was sent" in said["teacher"]["note"]
    assert said["teacher"]["adaptive"] is False
    assert any("its adapter is, at every site" in text for text in said["limits"])
    assert not any(text.startswith("the teacher is") for text in said["limits"])
    plain = stated(evidence.make_study(), None)
    assert (said["headline"], said["sites"]) == (plain["headline"], plain["sites"])


def test_a_budget_holds_the_teachers_rounds_once(tmp_path: Path) -> None:
    found = read(teacher_run(tmp_path / "t"))
    budget = Budget(tmp_path / "north.sqlite", "north")
    budget.open("people", "record", max_epsilon=8.0, delta=evidence.DELTA)
    for _ in range(2):
        charge_earlier(budget, [found.costs], "north")
    events = [accounting.sampled_gaussian(0.05, 1.0, 6)]
    assert budget.spent_epsilon() == pytest.approx(
        accounting.epsilon(events, evidence.DELTA)
    )
    assert [(c.run_id, c.state) for c in budget.history()] == [(RUN_ID, "spent")] * 3
    charge_earlier(budget, [found.costs], "nobody")
    charge_earlier(budget, [], "north")
    assert len(budget.history()) == 3
    tight = Budget(tmp_path / "tight.sqlite", "north")
    tight.open("people", "record", max_epsilon=0.1, delta=evidence.DELTA)
    with pytest.raises(BudgetExceededError):
        charge_earlier(tight, [found.costs], "north")


# Verification


def student_run(folder: Path, teacher: Path, costs: RunCosts) -> Path:
    """A student's run around fake adapters, as a runtime would write it."""
    kept = folder / TEACHER_LEDGER
    kept.parent.mkdir(parents=True)
    kept.write_bytes((teacher / "ledger.jsonl").read_bytes())
    evidence.write_run(folder, study=student(teacher), plan=plan_with(costs))
    return folder


def test_a_student_and_its_teacher_verify_offline(tmp_path: Path) -> None:
    run = teacher_run(tmp_path / "t")
    costs = read(run).costs
    report = verify_run(student_run(tmp_path / "s", run, costs))
    assert report.passed, report
    assert any(c.name == "teacher" and c.passed for c in report.checks)
    with pytest.raises(PlanError, match="does not say what the private teacher cost"):
        stated(student(run), None)
    cheap = {site: own[:1] for site, own in costs.spent.items()}
    less = costs.model_copy(update={"spent": cheap})
    report = verify_run(student_run(tmp_path / "cheap", run, less))
    assert not report.passed
    told = canonical_json([str(check) for check in report.checks]).decode()
    assert "the teacher's costs are not those of its own ledger" in told
