from __future__ import annotations

import subprocess
import sys

import evidence
import pytest

from secfed.canonical import canonical_json, digest
from secfed.entries import RoundEntry
from secfed.errors import PlanError
from secfed.privacy import accounting
from secfed.statement import (
    UNKNOWN,
    StatementContext,
    build_statement,
    round_event_json,
)

NOTHING = StatementContext()


def build(private=True, seed=None, rounds=None, context=NOTHING):
    return build_statement(
        evidence.make_study(seed).canonical(),
        evidence.plan_entry(private),
        evidence.round_entries(private) if rounds is None else rounds,
        context,
    )


def test_numbers_are_the_accountants() -> None:
    statement = build()
    event = accounting.sampled_gaussian(0.05, 1.0, 6)
    cost = accounting.guarantee([event], evidence.DELTA)
    north = statement["sites"]["north"]
    assert north["epsilon"] == pytest.approx(cost.epsilon)
    assert north["epsilon_rdp"] == pytest.approx(cost.epsilon_rdp)
    assert north["epsilon_replace_one"] == pytest.approx(cost.epsilon_replace_one)
    assert north["mu"] == pytest.approx(cost.mu)
    rates = north["attack_rates"]
    assert rates["tpr_at_fpr_0.01"] == pytest.approx(cost.tpr_at_fpr_1_percent)
    assert rates["tpr_at_fpr_0.001"] == pytest.approx(cost.tpr_at_fpr_01_percent)
    assert north["epsilon"] < north["epsilon_rdp"]
    assert f"({north['epsilon']:.4g}, 1e-05)" in statement["headline"]
    assert statement["private"] is True


def test_steps_as_executed_count_interrupted_rounds_and_dropouts() -> None:
    south = build()["sites"]["south"]
    assert south["rounds"] == {
        "planned": 3,
        "completed": 2,
        "interrupted": 1,
        "dropped_out": 1,
        "spent": 3,
    }
    assert south["steps"] == {"planned": 6, "spent": 6, "as_planned": True}
    shorter = build(rounds=evidence.round_entries()[:1])["sites"]["south"]
    assert shorter["steps"]["spent"] == 2
    assert shorter["epsilon"] < south["epsilon"]


def test_a_site_that_sat_out_spent_less() -> None:
    rounds = evidence.round_entries()
    first = rounds[0]
    assert isinstance(first, RoundEntry)
    two = ("north", "west")
    rounds[0] = first.model_copy(
        update={
            "participants": two,
            "survivors": two,
            "spent": {site: first.spent[site] for site in two},
            "epsilon": {site: first.epsilon[site] for site in two},
        }
    )
    sites = build(rounds=rounds)["sites"]
    assert sites["south"]["steps"]["spent"] == 4
    assert sites["south"]["epsilon"] < sites["north"]["epsilon"]


def test_events_other_than_planned_are_said() -> None:
    rounds = evidence.round_entries()
    other = accounting.event_to_json(accounting.sampled_gaussian(0.05, 0.9, 2))
    rounds[0] = rounds[0].model_copy(
        update={"spent": rounds[0].spent | {"north": other}}
    )
    sites = build(rounds=rounds)["sites"]
    assert sites["north"]["steps"]["spent"] == UNKNOWN
    assert sites["north"]["steps"]["as_planned"] is False
    assert sites["north"]["epsilon"] > sites["south"]["epsilon"]


def test_unknown_event_is_refused() -> None:
    rounds = evidence.round_entries()
    rounds[0] = rounds[0].model_copy(
        update={"spent": rounds[0].spent | {"north": {"event": "laplace"}}}
    )
    with pytest.raises(PlanError):
        build(rounds=rounds)


def test_someone_at_every_site_is_composed() -> None:
    statement = build()
    events = [accounting.sampled_gaussian(0.05, 1.0, 18)]
    across = statement["across_sites"]["epsilon"]
    assert across == pytest.approx(accounting.epsilon(events, evidence.DELTA))
    one = statement["sites"]["north"]["epsilon"]
    assert one < across < 3 * one


def test_what_nobody_measured_is_unknown() -> None:
    statement = build()
    assert statement["empirical_lower_bound"] == UNKNOWN
    assert statement["self_test"] == UNKNOWN
    assert statement["provenance"] == UNKNOWN
    composition = statement["composition"]
    assert composition["tuning"] == UNKNOWN
    assert composition["earlier_studies"] == dict.fromkeys(evidence.SITES, UNKNOWN)


def test_what_is_known_is_said() -> None:
    context = StatementContext(
        self_test={"passed": True},
        earlier_epsilon={"north": 1.5},
        empirical_lower_bound={"epsilon": 0.4},
        provenance={"model": "ab" * 32},
    )
    statement = build(context=context)
    assert statement["self_test"] == {"passed": True}
    assert statement["composition"]["earlier_studies"]["north"] == 1.5
    assert statement["composition"]["earlier_studies"]["south"] == UNKNOWN
    assert statement["empirical_lower_bound"] == {"epsilon": 0.4}
    assert statement["provenance"] == {"model": "ab" * 32}


def test_simulation_seed_is_not_private() -> None:
    statement = build(seed=7)
    assert statement["private"] is False
    assert statement["headline"].startswith("NOT PRIVATE")
    assert statement["execution"]["verdict"] == "NOT PRIVATE"
    assert statement["execution"]["simulation_seed"] == 7
    assert "seed" in statement["hazards"][0]
    # Seed 0 is a seed too.
    assert build(seed=0)["private"] is False
    assert build()["execution"]["simulation_seed"] is None


def test_without_noise_nothing_is_promised() -> None:
    statement = build(private=False)
    assert statement["headline"].startswith("NOT PRIVATE: training added no noise")
    assert statement["guarantee"]["delta"] is None
    assert statement["across_sites"]["epsilon"] is None
    for section in statement["sites"].values():
        assert section["epsilon"] is None


def test_every_section_is_there_and_canonical() -> None:
    statement = build()
    for section in (
        "guarantee",
        "accountant",
        "trust",
        "unprotected",
        "hazards",
        "limits",
    ):
        assert statement[section]
    assert statement["study"]["digest"] == digest(evidence.make_study().canonical())
    assert canonical_json(statement) == canonical_json(build())
    assert {entry["party"] for entry in statement["trust"]} >= {"site", "coordinator"}
    assert "record" in statement["guarantee"]["whose"]


def trust_under(method: str) -> dict[str, dict[str, str]]:
    study = evidence.make_study().canonical()
    study["training"]["method"] = method
    rounds, plan = evidence.round_entries(), evidence.plan_entry()
    said = build_statement(study, plan, rounds, NOTHING)
    return {entry["party"]: entry for entry in said["trust"]}


@pytest.mark.parametrize(
    ("method", "seen"),
    [
        ("fedavg", "of updates, every adapter"),
        ("flexlora", "what flexlora makes of noised factors"),
        ("local", "no number that was trained"),
    ],
)
def test_trust_says_what_the_rule_shows_the_coordinator(method, seen) -> None:
    coordinator = trust_under(method)["coordinator"]
    assert seen in coordinator["sees"]
    assert ("sum" in coordinator["sees"]) == (method != "local")


@pytest.mark.parametrize("method", ["fedavg", "fedsa-lora", "local"])
def test_trust_says_what_stays_at_the_sites(method) -> None:
    trust, personal = trust_under(method), method != "fedavg"
    assert ("never leave" in trust["site"]["sees"]) == personal
    release = trust["recipient of the release"]["does_not_see"]
    assert ("what stays at the sites" in release) == personal


def test_round_event_follows_the_plan() -> None:
    plan = evidence.make_plan()
    event = accounting.event_from_json(round_event_json(plan.to_json()))
    assert event == plan.round_event()
    with pytest.raises(PlanError):
        round_event_json({"rounds": 1})


def test_no_pytorch() -> None:
    code = (
        "import sys, secfed.ledger, secfed.statement, secfed.verify;"
        "assert 'torch' not in sys.modules and 'opacus' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
