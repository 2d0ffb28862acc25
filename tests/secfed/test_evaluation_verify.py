"""A ledger that lies about its evaluations is found, and an honest one computed again."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import evidence
import pytest

from secfed.canonical import canonical_json, sha256_hex
from secfed.entries import (
    EvaluationEntry,
    EvaluationInterruptedEntry,
    ReleaseEntry,
    parse_body,
)
from secfed.errors import LedgerError, VerificationError
from secfed.privacy import accounting
from secfed.statement import StatementContext, build_statement
from secfed.statement.evaluated import evaluation_event_json, evaluations_of
from secfed.study import Study, load_study_dict
from secfed.verify.claims import check_epsilon, check_plan, check_statement
from secfed.verify.story import tell

TABLE: dict[str, Any] = {
    "fraction": 0.2,
    "metrics": ["accuracy", "loss"],
    "loss_cap": 4.0,
    "noise_multiplier": 4.0,
    "rounds": [1, 3],
}


def lying_study() -> Study:
    values = json.loads(canonical_json(evidence.make_study().canonical()))
    # Of 1,000 declared units a site holds back 200.
    values["evaluation"] = dict(TABLE)
    values["privacy"]["epsilon"] = 12.0
    return load_study_dict(values, "tiny")


def bodies(**changes: Any) -> list[Any]:
    """Round 1, its evaluation, the interrupted round 2, round 3 and its evaluation."""
    plan, rounds = evidence.plan_entry(), evidence.round_entries()
    own = evaluations_of(lying_study().canonical(), plan)
    event = evaluation_event_json(own["north"])
    training = evidence.make_plan().round_event()
    counts = {1: (1, 0), 2: (2, 1), 3: (3, 1)}

    def total(trained: int, evaluated: int) -> float:
        events = [training] * trained
        events += [accounting.event_from_json(event)] * evaluated
        return accounting.epsilon(events, evidence.DELTA)

    first, second, third = (
        body.model_copy(
            update={
                "epsilon": dict.fromkeys(evidence.SITES, total(*counts[body.round]))
            }
        )
        for body in rounds
    )
    found = EvaluationEntry(
        round=1,
        attempt=1,
        participants=evidence.SITES,
        survivors=evidence.SITES,
        dropouts={},
        spent=dict.fromkeys(evidence.SITES, event),
        epsilon=dict.fromkeys(evidence.SITES, total(1, 1)),
        adapter_sha256=sha256_hex(b"adapter 1"),
        sums={
            "accuracy.right": 480.0,
            "accuracy.wrong": 120.0,
            "loss.cost": 150.0,
            "loss.rest": 450.0,
        },
    )
    failed = EvaluationInterruptedEntry(
        round=3,
        attempt=1,
        participants=("north",),
        spent={"north": event},
        epsilon={"north": total(3, 2)},
        reason="too few sites agreed to evaluate",
    )
    changed = found.model_copy(update=changes)
    return [first, changed, second, third, failed]


def told(listed: list[Any]) -> Any:
    """The story of a ledger with these bodies between plan and release."""
    study = lying_study()
    head = parse_body(
        "study",
        {
            "study_digest": study.digest(),
            "name": study.name,
            "method": study.training.method,
            "model_sha256": study.model.sha256,
            "simulation_seed": None,
            "coordinator_key": evidence.KEY.public_bytes.hex(),
            "secfed_version": "0.1.0",
            "run_id": evidence.RUN_ID,
        },
    )
    end = ReleaseEntry(
        adapter_sha256="0" * 64,
        config_sha256="0" * 64,
        statement_sha256="0" * 64,
        rounds_completed=2,
        rounds_interrupted=1,
    )
    everything = [head, evidence.plan_entry(), *listed, end]
    wrapped: Any = [
        SimpleNamespace(parsed=lambda body=body: parse_body(body.kind, body.to_body()))
        for body in everything
    ]
    story, _ = tell(wrapped, evidence.KEY.public_bytes, study)  # type: ignore[arg-type]
    return story


def test_an_honest_ledger_is_told_and_its_epsilon_recomputed() -> None:
    story, study = told(bodies()), lying_study()
    assert len(story.rounds) == 3
    assert len(story.evaluations) == 2
    check_plan(story, study)
    check_epsilon(story, study)
    statement = build_statement(
        study.canonical(),
        story.plan,
        list(story.rounds.values()),
        StatementContext(),
        list(story.evaluations.values()),
    )
    done, failed = statement["evaluation"]["rounds"]
    assert done["scores"]["accuracy"]["value"] == pytest.approx(0.8)
    assert done["scores"]["mean_loss"]["value"] == pytest.approx(1.0)
    assert failed["status"] == "interrupted"
    # The site that evaluated twice has spent more than those that did once.
    sites = statement["sites"]
    assert sites["north"]["epsilon"] > sites["south"]["epsilon"]
    # More than its rounds alone, and its steps are still those of the plan.
    bare = build_statement(
        study.canonical(),
        story.plan,
        list(story.rounds.values()),
        StatementContext(),
    )
    assert bare["sites"]["south"]["epsilon"] < sites["south"]["epsilon"]
    assert sites["south"]["steps"] == bare["sites"]["south"]["steps"]
    assert bare["evaluation"]["rounds"] == []


CHEAP = {
    "event": "self-composed",
    "count": 1,
    "of": {
        "event": "poisson-sampled",
        "sampling_probability": 1.0,
        "of": {"event": "gaussian", "noise_multiplier": 40.0},
    },
}
TWO = ("north", "west")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"round": 2}, "not due here"),
        ({"round": 3}, "not due here"),
        (
            {
                "participants": TWO,
                "survivors": TWO,
                "spent": dict.fromkeys(TWO, CHEAP),
                "epsilon": dict.fromkeys(TWO, 1.0),
            },
            "fewer than 3 sites",
        ),
        ({"spent": dict.fromkeys(evidence.SITES, CHEAP)}, "not the event of the"),
        ({"spent": {}, "epsilon": {}}, "some site did not spend"),
        ({"adapter_sha256": "0" * 64}, "of another adapter"),
        ({"epsilon": dict.fromkeys(evidence.SITES, 0.5)}, "the events give"),
    ],
)
def test_a_ledger_that_lies_about_an_evaluation_is_found(changes, said) -> None:
    study = lying_study()

    def verify() -> None:
        story = told(bodies(**changes))
        check_plan(story, study)
        check_epsilon(story, study)

    with pytest.raises(LedgerError, match=said):
        verify()


def test_an_evaluation_that_nobody_asked_for_is_found() -> None:
    twice = bodies()
    with pytest.raises(LedgerError, match="not due here"):
        told([twice[0], twice[1], twice[1], *twice[2:]])


def test_a_statement_with_another_score_is_found() -> None:
    """Tampering that the signer repeats: digests agree, the numbers do not follow."""
    story, study = told(bodies()), lying_study()
    statement = build_statement(
        study.canonical(),
        story.plan,
        list(story.rounds.values()),
        StatementContext(),
        list(story.evaluations.values()),
    )
    bundle: Any = SimpleNamespace(json=lambda _name: statement, read=lambda _name: b"")
    check_statement(bundle, story, study)
    statement["evaluation"]["rounds"][0]["scores"]["accuracy"]["value"] = 0.9
    with pytest.raises(VerificationError, match=r"evaluation\.rounds"):
        check_statement(bundle, story, study)
