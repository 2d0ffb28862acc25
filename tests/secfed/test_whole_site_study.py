"""A study whose unit is the whole site, from its file to its evidence."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evidence
import numpy as np
import pytest
from small import EXAMPLE, flat, small_policy, study_values
from test_encoding import ADAPTER, Bytes, make_study
from test_runs import play_arm
from typer.testing import CliRunner

from secfed.cli import app
from secfed.cli.outlook import noise_to_signal
from secfed.cli.runs import show_run
from secfed.cli.traffic import numbers_sent
from secfed.errors import (
    BudgetExceededError,
    PlanError,
    PolicyError,
    StudyError,
)
from secfed.policy import check, load_policy
from secfed.privacy.accounting import (
    epsilon,
    group_event,
    guarantee,
    sampled_gaussian,
)
from secfed.privacy.asked import plan_for
from secfed.privacy.budget import Budget
from secfed.privacy.plan import Unit
from secfed.report.plain import describe_protection
from secfed.report.reading import read_run
from secfed.runtime.accounts import earlier_epsilon
from secfed.runtime.arms import Arm
from secfed.runtime.encoding import codec_for, ring_bits_for
from secfed.runtime.kept import KeptTensors
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.receipts import reconcile
from secfed.runtime.setup import Prepared, plan_sites
from secfed.runtime.site_training import contribute
from secfed.statement import StatementContext, build_statement
from secfed.strategies import get_strategy
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run

DELTA = 1e-5
UPDATE = sampled_gaussian(1.0, 2.0, 1)
OF_A_PERSON = sampled_gaussian(1.0, 1.0, 1)
STEPS = sampled_gaussian(0.05, 1.0, 10)


def site_study(rounds: int = 2, **training: Any) -> Study:
    values = study_values(rounds)
    values["privacy"]["unit"] = "site"
    values["training"].update(training)
    return load_study_dict(values, "whole")


@pytest.fixture(scope="module")
def whole() -> Study:
    return site_study(steps_per_round=2)


# The study file and the plan


def test_a_study_names_the_site_and_no_persons() -> None:
    values = json.loads(json.dumps(evidence.STUDY))
    values["privacy"]["unit"] = "site"
    assert load_study_dict(values, "x").privacy.unit == "site"
    values["data"]["unit_column"] = "patient"
    with pytest.raises(StudyError, match=r"data\.group_column") as caught:
        load_study_dict(values, "x")
    assert caught.value.key == "data.unit_column"
    del values["data"]["unit_column"]
    values["privacy"]["max_records_per_unit"] = 2
    with pytest.raises(StudyError, match="is 1 where the unit is the site"):
        load_study_dict(values, "x")


def test_a_round_is_one_release_whatever_is_trained_inside(whole: Study) -> None:
    plan = plan_for(whole, 80)
    assert (plan.unit, plan.sampling_probability, plan.steps_per_round) == (
        "site",
        1.0,
        1,
    )
    assert 0.99 * 8.0 <= plan.epsilon() <= 8.0
    # Neither local steps, nor the batch, nor the size of the site moves the noise.
    for other in (site_study(steps_per_round=50), site_study(expected_batch=1)):
        assert plan_for(other, 5000).noise_multiplier == plan.noise_multiplier
    with pytest.raises(PlanError, match="above the 15 records of the site"):
        plan_for(whole, 15)
    with pytest.raises(PlanError, match="not below 1/100000"):
        plan_for(whole, 100_000)


# The encoding


def coded(study: Study, sigma: float) -> tuple[Any, dict[str, Any]]:
    plan = replace(plan_for(study, 2000), noise_multiplier=sigma)
    plans = dict.fromkeys(study.sites, plan)
    return codec_for(study, plans, ADAPTER, 1, private=True), plans


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("rotation", [None, "hadamard"])
def test_the_longest_update_is_inside_the_public_range(
    optimizer: str, rotation: str | None
) -> None:
    secagg = {} if rotation is None else {"rotation": rotation}
    values = make_study(training={"optimizer": optimizer}, secagg=secagg).canonical()
    values["privacy"] |= {"unit": "site", "clip_norm": 0.5}
    study = load_study_dict(values, "x")
    codec, plans = coded(study, sigma=0.05)
    # The update is clipped and noised as it is: no step size is in it.
    assert set(codec.scales) == {1.0}
    rng = np.random.default_rng(5)
    largest = 0.0
    for seed in range(50):
        update = {
            n: rng.normal(0, 0.05 * 0.5, shape) for n, shape in codec.names_shapes
        }
        name = codec.names_shapes[0][0]
        update[name].flat[3] += 0.5  # The whole norm in one number.
        sent = {n: value.astype(np.float32) for n, value in update.items()}
        assert codec.encode(sent, Bytes(seed)).saturated == 0
        largest = max(largest, float(np.abs(flat(sent)).max()))
    if not rotation:  # Not far too wide either.
        assert largest > 0.6 * codec.value_range
    assert ring_bits_for(study, plans, ADAPTER, private=True) == codec.ring_bits


def test_the_width_follows_the_noise_of_the_update() -> None:
    values = make_study().canonical()
    values["privacy"]["unit"] = "site"
    study = load_study_dict(values, "x")
    assert coded(study, sigma=2.0)[0].ring_bits == 16
    # A range that the study names is compared with the noise itself: were the rate
    # of 3 in it, as for steps of SGD, 16 bits would seem fine here.
    values["secagg"]["clip_range"] = 4000.0
    named = load_study_dict(values, "x")
    assert coded(named, sigma=2.0)[0].ring_bits == 32
    assert coded(named, sigma=6.0)[0].ring_bits == 16


# The budget


def opened(path: Path, unit: Unit, **changes: Any) -> Budget:
    return Budget(path, "north").open(
        "patients", unit, **({"max_epsilon": 50.0, "delta": DELTA} | changes)
    )


@pytest.mark.parametrize("kept", ["site", "person", "record"])
def test_every_population_is_charged_for_a_person(tmp_path: Path, kept: Unit) -> None:
    path = tmp_path / "budget.sqlite"
    opened(path, kept)
    budget = opened(path, "site")
    budget.reserve("digest", "run", 1, UPDATE)
    with pytest.raises(PlanError, match="drawn always, not sampled"):
        budget.reserve("digest", "run", 2, STEPS)
    with pytest.raises(PlanError, match="drawn always, not sampled"):
        budget.can_afford([UPDATE, STEPS])
    (charge,) = budget.history()
    assert charge.event == UPDATE  # The ledger says what ran.
    assert charge.cost == OF_A_PERSON == group_event(UPDATE, 2)
    assert (charge.unit, charge.group) == ("site", 2)
    assert budget.spent_epsilon() == epsilon([OF_A_PERSON], DELTA)
    (shown,) = json.loads(call("budget", path, "--json").stdout)["budgets"]
    (listed,) = shown["charges"]
    assert (listed["unit"], listed["group"]) == ("site", 2)
    assert listed["records_per_person"] is None
    assert [p.unit for p in budget.populations()] == [kept]
    # All rounds were asked for at that price too.
    limit = 1.001 * epsilon([OF_A_PERSON] * 2, DELTA)
    budget = opened(path, "site", max_epsilon=limit)
    assert budget.can_afford([UPDATE])
    assert not budget.can_afford([UPDATE] * 2)
    assert epsilon([UPDATE] * 3, DELTA) < limit
    budget.reserve("digest", "run", 2, UPDATE)
    with pytest.raises(BudgetExceededError):
        budget.reserve("digest", "run", 3, UPDATE)


def test_a_cap_of_records_does_not_make_it_cheaper_or_dearer(tmp_path: Path) -> None:
    budget = opened(tmp_path / "budget.sqlite", "site", records_per_person=7)
    budget.reserve("digest", "run", 1, UPDATE)
    assert [p.unit for p in budget.populations()] == ["person"]
    assert budget.history()[0].cost == OF_A_PERSON


def test_earlier_studies_are_stated_at_the_price_that_was_charged(
    tmp_path: Path, whole: Study
) -> None:
    budget = opened(tmp_path / "budget.sqlite", "site")
    budget.reserve("digest", "earlier", 1, UPDATE)
    said = earlier_epsilon(budget, "mine", whole.privacy.delta)
    assert said == budget.spent_epsilon() > epsilon([UPDATE], DELTA)


@pytest.mark.parametrize("asked", ["record", "person"])
def test_a_population_kept_per_site_takes_such_studies_only(
    tmp_path: Path, asked: Unit
) -> None:
    path = tmp_path / "budget.sqlite"
    opened(path, "site")
    with pytest.raises(PolicyError, match="is kept per site"):
        opened(path, asked)


def named(run_id: str, first: int = 1) -> evidence.Change:
    def change(index: int, body: evidence.Body) -> evidence.Body:
        if index == 0:
            return body | {"run_id": run_id}
        if "spent" in body:
            head = f"{first + body['round']:064d}"
            return body | {"budget_heads": dict.fromkeys(body["spent"], head)}
        return body

    return change


@pytest.mark.parametrize("kept", ["site", "person"])
def test_a_ledger_of_a_whole_site_is_reconciled_at_a_persons_price(
    tmp_path: Path, kept: Unit
) -> None:
    evidence.write_run(tmp_path / "run", unit="site", change=named("run/ffa-lora"))
    path = tmp_path / "budget.sqlite"
    opened(path, kept)
    reconcile(path, [tmp_path / "run"])
    history = opened(path, "site").history()
    assert [(c.group, c.unit) for c in history] == [(2, "site")] * 3
    event = evidence.make_plan("site").round_event()
    assert opened(path, "site").spent_epsilon() == epsilon(
        [group_event(event, 2)] * 3, DELTA
    )


def test_a_site_charged_twice_is_no_cap_for_a_ledger_of_records(
    tmp_path: Path,
) -> None:
    evidence.write_run(tmp_path / "run", change=named("run/ffa-lora"))
    path = tmp_path / "budget.sqlite"
    opened(path, "person")
    opened(path, "site").reserve("digest", "earlier", 1, UPDATE)
    with pytest.raises(PolicyError, match="protects each record"):
        reconcile(path, [tmp_path / "run"])
    # Once a study of records was charged by its cap, that cap is the one.
    capped = opened(path, "record", records_per_person=5, max_epsilon=1e3)
    capped.reserve("digest", "records", 1, STEPS)
    reconcile(path, [tmp_path / "run"])
    assert [c.group for c in capped.history()] == [2, 5, 5, 5, 5]


def test_units_are_known_after_a_salvage_of_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "budget.sqlite"
    budget = opened(path, "site")
    budget.reserve("digest", "run", 1, UPDATE)
    before = budget.history()
    path.unlink()
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    reconcile(path, [])
    assert opened(path, "site").history() == before


# The policy


def test_a_policy_allows_the_site_by_name_only(whole: Study, tmp_path: Path) -> None:
    policy = small_policy()
    with pytest.raises(PolicyError, match="'site' is not in allowed_units"):
        check(policy, whole, 100)
    check(policy.model_copy(update={"allowed_units": ("site",)}), whole, 100)
    text = (EXAMPLE / "site.toml").read_text("utf-8")
    path = tmp_path / "site.toml"
    path.write_text(text + 'allowed_units = ["person"]\n', "utf-8")
    with pytest.raises(PolicyError, match="'record' is not in allowed_units"):
        check(load_policy(path), load_study_dict(study_values(), "x"), 100)
    path.write_text(text + 'allowed_units = ["sites"]\n', "utf-8")
    with pytest.raises(StudyError, match="allowed_units"):
        load_policy(path)


# What is planned


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    text = (EXAMPLE / "study.toml").read_text("utf-8")
    text = re.sub(r"(?m)^unit = .*$", 'unit = "site"', text)
    text = re.sub(r"(?m)^max_records = .*$", "max_records = 1600", text)
    text = re.sub(r"(?m)^expected_batch = .*$", "expected_batch = 64", text)
    # One size, so that the accountant has one plan to compute and not four.
    sites = load_study_dict(study_values(), "x").sites
    sizes = "\n".join(f"{site} = 300" for site in sites)
    text = text.replace("[secagg]", f"[privacy.nominal_units]\n{sizes}\n\n[secagg]")
    (tmp_path / "study.toml").write_text(text, "utf-8")
    shutil.copy(EXAMPLE / "site.toml", tmp_path / "site.toml")
    return tmp_path / "study.toml"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def allow(study_file: Path, max_epsilon: float) -> None:
    policy = study_file.with_name("site.toml")
    text = policy.read_text("utf-8") + 'allowed_units = ["site"]\n'
    text = re.sub(r"(?m)^max_epsilon = .*$", f"max_epsilon = {max_epsilon}", text)
    policy.write_text(text, "utf-8")


def test_plan_prints_both_epsilons_and_warns_of_the_noise(
    packages: None, study_file: Path
) -> None:
    refused = call("plan", study_file)
    assert refused.exit_code == 4
    assert "not in allowed_units" in refused.stdout
    allow(study_file, 30.0)
    shown = call("plan", study_file)
    assert shown.exit_code == 0, shown.stderr
    planned = json.loads(call("plan", study_file, "--json").stdout)
    plan = evidence.make_plan("site")
    for site in planned["sites"]:
        sigma = site["noise_multiplier"]
        plan = replace(plan, noise_multiplier=sigma, rounds=5)
        assert site["epsilon_total"] == plan.epsilon() <= 8.0
        assert site["epsilon_of_a_person"] == plan.epsilon_of_a_person() > 16.0
        assert site["epsilon_replace_one"] == pytest.approx(plan.epsilon_of_a_person())
        # Five Gaussian releases are one: mu = sqrt(5) / sigma exactly.
        assert site["mu"] == pytest.approx(math.sqrt(5) / sigma, rel=5e-3)
        assert (site["sampling_probability"], site["steps"]) == (1.0, 5)
    assert planned["unit"] == "site"
    # 21 chapters x 385 of the head, 4 modules x 8 x 384 of B, over four sites.
    numbers = 21 * 385 + 4 * 8 * 384
    expected = planned["sites"][0]["noise_multiplier"] * math.sqrt(numbers / 4)
    assert planned["noise_to_signal"] == pytest.approx(expected)
    words = " ".join(shown.stdout.split())
    for said in (
        "delta 1e-05 per whole site",
        "one site replaced",
        "a person's records changed",
        "the site's whole update, trained in 4 steps on 64 expected records",
        f"{expected:.3g} times its longest possible length",
        "the noise is above the signal",
    ):
        assert said in words, said


def test_plan_refuses_where_a_person_costs_more_than_the_budget(
    packages: None, study_file: Path
) -> None:
    allow(study_file, 12.0)  # Enough for epsilon 8, the site's own.
    planned = json.loads(call("plan", study_file, "--json").stdout)
    for site in planned["sites"]:
        assert site["verdict"] == "refused"
        assert "a person would be charged epsilon 19" in site["refusal"]


def test_plan_of_records_shows_clip_batch_replacement_and_mu(
    packages: None, study_file: Path
) -> None:
    text = study_file.read_text("utf-8").replace('unit = "site"', 'unit = "record"')
    text = text.replace('clip_rule = "flat"', 'clip_rule = "per-tensor"')
    study_file.write_text(text, "utf-8")
    planned = json.loads(call("plan", study_file, "--json").stdout)
    assert (planned["clip_rule"], planned["clip_norm"]) == ("per-tensor", 1.0)
    assert planned["noise_to_signal"] is None
    site = planned["sites"][0]
    q = site["sampling_probability"]
    event = sampled_gaussian(q, site["noise_multiplier"], 20)
    cost = guarantee([event], DELTA)
    assert site["expected_batch"] == 64
    assert q == 64 / site["nominal_units"] == 64 / 300
    assert site["epsilon_replace_one"] == pytest.approx(cost.epsilon_replace_one)
    assert site["epsilon_replace_one"] > site["epsilon_total"]
    assert site["mu"] == pytest.approx(cost.mu)
    assert site["epsilon_of_a_person"] is None
    words = " ".join(call("plan", study_file).stdout.split())
    for said in (
        "one record replaced",
        "GDP mu",
        "64 expected records; clipped at 1, rule per-tensor",
    ):
        assert said in words, said
    assert "person" not in words


def test_enough_sites_bring_the_noise_below_the_signal(whole: Study) -> None:
    def ratio(sites: int) -> float | None:
        outlooks = [SimpleNamespace(noise_multiplier=2.0)] * sites
        return noise_to_signal(whole, outlooks, 400)  # type: ignore[arg-type]

    assert ratio(4) == 20.0
    assert ratio(1600) == 1.0
    unknown = [SimpleNamespace(noise_multiplier=None)]
    assert noise_to_signal(whole, unknown, 400) is None  # type: ignore[arg-type]
    missing = whole.model_copy(
        update={"model": whole.model.model_copy(update={"package": "no_such_package"})}
    )
    assert numbers_sent(missing, EXAMPLE) is None


# What is stated, verified and reported


def state() -> Any:
    return build_statement(
        evidence.make_study(unit="site").canonical(),
        evidence.plan_entry(unit="site"),
        evidence.round_entries(unit="site"),
        StatementContext(),
    )


def test_the_statement_says_both_and_composes_persons() -> None:
    said = state()
    event = evidence.make_plan("site").round_event()
    north = said["sites"]["north"]
    assert north["epsilon"] == pytest.approx(epsilon([event] * 3, DELTA))
    person = guarantee([group_event(event, 2)] * 3, DELTA)
    assert north["of_a_person"]["epsilon"] == pytest.approx(person.epsilon)
    assert north["of_a_person"]["mu"] == pytest.approx(person.mu)
    assert north["epsilon_replace_one"] == pytest.approx(person.epsilon)
    assert north["steps"] == {"planned": 3, "spent": 3, "as_planned": True}
    assert "whole clipped update" in north["mechanism"]["name"]
    everywhere = epsilon([group_event(event, 2)] * 9, DELTA)
    assert said["across_sites"]["epsilon"] == pytest.approx(everywhere)
    for number in (north["epsilon"], person.epsilon):
        assert f"({number:.4g}, 1e-05)" in said["headline"]
    assert said["headline"].index(f"{person.epsilon:.4g}") < said["headline"].index(
        f"{north['epsilon']:.4g}"
    )
    assert "a person is protected less" in said["guarantee"]["whose"]
    assert any("each site and each person alone" in limit for limit in said["limits"])
    assert "padding and micro-batch splits" in " ".join(said["hazards"])


def test_the_statement_of_records_has_no_such_section() -> None:
    said = build_statement(
        evidence.make_study().canonical(),
        evidence.plan_entry(),
        evidence.round_entries(),
        StatementContext(),
    )
    assert "of_a_person" not in said["sites"]["north"]


def failures(run: Path) -> dict[str, str]:
    return {check.name: check.reason for check in verify_run(run).failures()}


def test_a_sound_run_verifies_and_names_both(tmp_path: Path) -> None:
    evidence.write_run(tmp_path / "run", unit="site")
    report = verify_run(tmp_path / "run")
    assert report.passed, report.failures()
    (reason,) = (c.reason for c in report.checks if c.name == "epsilon")
    person = state()["sites"]["north"]["of_a_person"]["epsilon"]
    assert f"for a person at most {person:.4g}" in reason


def test_embellished_persons_are_found(tmp_path: Path) -> None:
    def fewer(_: int, said: evidence.Body) -> evidence.Body:
        said["sites"]["west"]["of_a_person"]["epsilon"] /= 2
        return said

    def silent(_: int, said: evidence.Body) -> evidence.Body:
        del said["sites"]["west"]["of_a_person"]
        return said

    for number, change in enumerate((fewer, silent)):
        run = tmp_path / str(number)
        evidence.write_run(run, unit="site", statement=change)
        assert "of_a_person" in failures(run)["statement"]


def test_a_plan_of_records_does_not_keep_the_promise_of_a_site(tmp_path: Path) -> None:
    other = evidence.make_plan().to_json()

    def change(index: int, body: evidence.Body) -> evidence.Body:
        if index == 1:
            return body | {"sites": dict.fromkeys(evidence.SITES, other)}
        return body

    evidence.write_run(tmp_path / "run", unit="site", change=change)
    assert "unit is not the study's" in failures(tmp_path / "run")["plan and steps"]


def test_the_report_puts_the_person_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence.write_run(tmp_path / "run", unit="site")
    record = read_run(tmp_path / "run")
    told = describe_protection(record)
    shown = f"{math.ceil(100 * state()['sites']['north']['of_a_person']['epsilon']) / 100:.2f}"
    assert told.headline.startswith("Each single person")
    for text in (told.headline, told.whom, told.strength):
        assert f"epsilon at most {shown}" in text or shown in text
    assert "a weak guarantee" in told.strength
    assert "one person's records were used" in told.meaning
    rate = state()["sites"]["north"]["of_a_person"]["attack_rates"]["tpr_at_fpr_0.01"]
    assert f"finds at most {100 * rate:.1f} %" in told.meaning
    show_run(tmp_path / "run", as_json=False)
    assert f"one person's records it is {shown}" in capsys.readouterr().out
    (tmp_path / "run" / "statement.json").unlink()
    unknown = describe_protection(read_run(tmp_path / "run"))
    assert "epsilon UNKNOWN" in unknown.whom
    assert "at most UNKNOWN in each private arm" in unknown.headline
    assert "UNKNOWN" in unknown.meaning


# A run


@pytest.fixture(scope="module")
def prepared_whole(prepared: Prepared, whole: Study) -> Prepared:
    return replace(prepared, plans=plan_sites(whole, dict.fromkeys(whole.sites, 80)))


@pytest.mark.slow
def test_a_run_clips_and_noises_the_whole_update_and_charges_a_person(
    prepared_whole: Prepared, whole: Study, tmp_path: Path
) -> None:
    policy = small_policy(20.0).model_copy(update={"allowed_units": ("site",)})
    run = tmp_path / "run"
    play_arm(prepared_whole, whole, run, policy=policy)
    report = verify_run(run)
    assert report.passed, report.failures()
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    (plan,) = set(prepared_whole.plans.values())
    for number, line in enumerate(lines[1:], start=1):
        assert (line["sums_equal"], line["saturated"]) == (True, 0)
        expected = epsilon([plan.round_event()] * number, DELTA)
        assert line["epsilon"] == dict.fromkeys(whole.sites, pytest.approx(expected))
        # FFA-LoRA: noise in B alone, so its energy is a chi-square around the closed
        # form; 3072 numbers, seven deviations.
        noise = line["noise"]
        assert noise["measured"] == pytest.approx(noise["closed_form"], rel=0.2)
    said = json.loads((run / "statement.json").read_text("utf-8"))
    assert said["private"]
    assert said["self_test"]["independence"].startswith("not needed")
    for site in whole.sites:
        path = run / "private" / "sites" / site / "budget.sqlite"
        (account,) = Budget.read(path)
        assert account.population.unit == "site"
        assert account.spent_epsilon == plan.epsilon_of_a_person() > 16.0
    # The same budgets do not hold a second run, whose epsilon of 8 would still fit.
    with pytest.raises(BudgetExceededError, match="the study's 2 rounds do not fit"):
        run_arm(
            Arm(name="again", study=whole),
            prepared_whole,
            tmp_path / "again",
            run / "private",
            "again",
            policy,
            NoProgress(),
        )


@pytest.mark.parametrize("kind", ["private", "non-private"])
def test_every_arm_trains_with_the_studys_steps(
    prepared_whole: Prepared, kind: str, tmp_path: Path
) -> None:
    """A plan of one sum a round must not become a baseline of one step."""

    def change(steps: int) -> Any:
        study = site_study(steps_per_round=steps)
        values = study.canonical()
        values["simulation"] = {"seed": 3}
        values["privacy"]["clip_norm"] = 1e3  # What is trained is not cut.
        study = load_study_dict(values, "x")
        name = study.sites[0]
        site = SimpleNamespace(
            name=name,
            records=prepared_whole.records[name],
            plan=replace(
                prepared_whole.plans[name], clip_norm=1e3, noise_multiplier=0.011
            ),
        )
        strategy = get_strategy(study.training.method)
        start = strategy.init(prepared_whole.start, 0)
        arm = Arm(name="x", study=study, kind=kind)
        kept = KeptTensors(tmp_path / str(steps))
        return contribute(arm, prepared_whole, strategy, site, start, 1, kept).update

    one, three = change(1), change(3)
    assert one.noiseless is not None
    assert np.linalg.norm(flat(three.noiseless)) > 1.3 * np.linalg.norm(
        flat(one.noiseless)
    )
