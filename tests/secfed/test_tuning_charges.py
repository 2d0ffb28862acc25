"""What a tuned study costs its sites: budgets, approvals, the command, whole runs."""

from __future__ import annotations

import copy
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence
import pytest
from deployed import Cast
from governed import call
from small import EXAMPLE, planned, small_policy, small_study, study_values
from tuned import FIRST, ONCE, SECOND, read, sweep, table, two_runs

from secfed.canonical import canonical_json, file_sha256
from secfed.cli.tuning import ledgers_of
from secfed.earlier_runs import (
    EarlierRun,
    charges_at,
    tuning_ledger,
)
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
)
from secfed.governance import outlay
from secfed.ledger import Ledger
from secfed.privacy import accounting
from secfed.privacy.budget import Budget, Spent
from secfed.runtime.earlier import charge_earlier
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared
from secfed.study import load_study, load_study_dict
from secfed.verify import verify_run


@pytest.fixture
def ledgers(tmp_path: Path) -> list[Path]:
    return two_runs(tmp_path)


# What a budget knows


def opened(path: Path, limit: float = 30.0) -> Budget:
    budget = Budget(path, "north")
    return budget.open("people", "record", max_epsilon=limit, delta=evidence.DELTA)


def test_what_a_budget_does_not_hold_is_added_whole_or_not_at_all(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    runs = read(ledgers)
    budget = opened(tmp_path / "north.sqlite")
    for _ in range(2):
        charge_earlier(budget, runs, "north", [ONCE])
    assert [(c.run_id, c.round, c.state) for c in budget.history()] == [
        (run, number, "spent") for run in (FIRST, SECOND) for number in (1, 2, 3)
    ]
    both = accounting.epsilon([ONCE] * 2, evidence.DELTA)
    assert budget.spent_epsilon() == pytest.approx(both)
    # Another process was faster: nothing is charged twice.
    budget.add_spent([Spent("0" * 64, FIRST, 1, ONCE), Spent("0" * 64, FIRST, 9, ONCE)])
    assert [c.round for c in budget.history()][6:] == [9]
    # It holds the earlier runs, but not the study beside them.
    tight = opened(tmp_path / "tight.sqlite", both * 1.01)
    with pytest.raises(BudgetExceededError, match="nothing was spent"):
        charge_earlier(tight, runs, "north", [ONCE])
    assert tight.history() == ()
    charge_earlier(tight, runs, "north")
    assert len(tight.history()) == 6


def test_a_site_knows_better_than_a_ledger_what_it_spent(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    runs = read(ledgers)
    budget = opened(tmp_path / "north.sqlite")
    charge_earlier(budget, runs, "north")
    small = accounting.event_to_json(accounting.sampled_gaussian(0.01, 9.0, 2))
    forged = tuple(
        c.model_copy(update={"event": small}) for c in runs[0].spent["north"]
    )
    cut = runs[0].spent["north"][:1]
    for own, words in ((forged, "another cost of round 1"), (cut, "tell of round 2")):
        cheap = runs[0].model_copy(update={"spent": {"north": own}})
        with pytest.raises(PolicyError, match=words):
            charge_earlier(budget, [cheap], "north")
        with pytest.raises(PolicyError, match=words):
            outlay(small_policy(), "record", [ONCE], budget.path, own)
    assert len(budget.history()) == 6


# What an operator reads


def test_an_approval_shows_what_is_not_in_the_budget_yet(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    named, policy = charges_at(read(ledgers), "north"), small_policy()
    both = accounting.epsilon([ONCE] * 2, policy.delta)
    found = outlay(policy, "record", [ONCE], None, named)
    assert found.named == pytest.approx(both)
    assert found.after == pytest.approx(accounting.epsilon([ONCE] * 3, policy.delta))
    path = tmp_path / "north.sqlite"
    budget = Budget(path, "north").open(
        policy.population, "record", max_epsilon=30.0, delta=policy.delta
    )
    for charge in named:
        event = accounting.event_from_json(charge.event)
        budget.spend(
            budget.reserve(charge.study_digest, charge.run_id, charge.round, event)
        )
    held = outlay(policy, "record", [ONCE], path, named)
    assert held.named == 0.0
    assert held.before == pytest.approx(both)
    assert held.after == pytest.approx(found.after)


def test_the_command_prints_a_table_that_is_read_back(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    study = tmp_path / "study.toml"
    text = (EXAMPLE / "study.toml").read_text("utf-8")
    study.write_text(text, "utf-8")
    told = call("tuning", study, ledgers[0].parent, ledgers[1])
    assert told.exit_code == 0, told.output
    values = tomllib.loads(told.stdout)
    assert "has a [tuning] already" in told.stderr
    assert "no sites of this study: north, south, west" in told.stderr
    start, end = text.index("[tuning]"), text.index("[secagg]")
    study.write_text(text[:start] + text[end:] + told.stdout, "utf-8")
    assert [run.sha256 for run in load_study(study).tuning_runs] == [
        file_sha256(path) for path in ledgers
    ]
    study.write_text(text[:start] + '[tuning]\ndata = "private"\n' + text[end:])
    assert call("tuning", study, *ledgers).stdout == told.stdout
    assert values["tuning"]["runs"] == [
        {"ledger": "one/ledger.jsonl", "sha256": file_sha256(ledgers[0])},
        {"ledger": "two/ledger.jsonl", "sha256": file_sha256(ledgers[1])},
    ]
    assert "of 2 runs" in told.stdout
    assert told.stdout.count("# signed by ") == 2
    as_json = json.loads(call("tuning", study, *ledgers, "--json").stdout)
    assert as_json["tuning"] == values["tuning"]
    assert as_json["sites"]["north"]["runs"] == 2


def test_copies_are_no_runs_and_folders_may_have_any_name(tmp_path: Path) -> None:
    runs = tmp_path / "tuning" / "private"
    ledger = sweep(runs / "teacher", FIRST)
    copy_of = ledger.parent / "tuning" / "001" / "ledger.jsonl"
    copy_of.parent.mkdir(parents=True)
    copy_of.write_bytes(ledger.read_bytes())
    assert list(ledgers_of(tmp_path)) == [ledger]
    assert list(ledgers_of(ledger.parent)) == [ledger]


def test_the_command_refuses_what_is_no_run_or_not_private(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    study = EXAMPLE / "study.toml"
    (tmp_path / "empty").mkdir()
    told = call("tuning", study, tmp_path / "empty")
    assert told.exit_code == 2
    assert "no ledger.jsonl is in it" in told.output
    bare = sweep(tmp_path / "bare", FIRST, private=False)
    told = call("tuning", study, bare)
    assert told.exit_code == 4
    assert "was trained without privacy" in told.output


# A whole run


@pytest.mark.slow
def test_a_tuned_run_is_charged_recorded_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = tmp_path / "budgets"
    policy = small_policy().model_copy(update={"budget_dir": str(budgets)})
    values = study_values(1)
    values.pop("tuning", None)
    run_study(
        load_study_dict(values, "sweep"),
        EXAMPLE,
        tmp_path / "sweep",
        policy,
        NoProgress(),
    )
    ledger = tmp_path / "sweep" / "ledger.jsonl"
    final = copy.deepcopy(values)
    final["tuning"] = table([ledger])
    study, out = load_study_dict(final, "final"), tmp_path / "final"
    run_study(study, EXAMPLE, out, policy, NoProgress())
    report = verify_run(out)
    assert report.passed, report
    said = json.loads((out / "statement.json").read_bytes())
    site = study.sites[0]
    (account,) = Budget.read(budgets / site / "budget.sqlite")
    assert len(account.charges) == 2  # The sweep's round is not charged again.
    composed = said["sites"][site]["with_named_runs"]["epsilon"]
    assert account.spent_epsilon == pytest.approx(composed)
    assert "the earlier runs that the study names included" in (
        out / "report.html"
    ).read_text("utf-8")
    kept = (out / tuning_ledger(0)).read_bytes()
    assert kept == ledger.read_bytes()
    # Killed between the plan and the entries of tuning, in budgets of its own.
    append, started = Ledger.append, tmp_path / "started"

    def dies(self: Ledger, kind: str, *rest: Any) -> Any:
        if kind == "tuning":
            raise KeyboardInterrupt
        return append(self, kind, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, EXAMPLE, started, small_policy(), NoProgress())
    run_study(study, EXAMPLE, started, small_policy(), NoProgress())
    assert verify_run(started).passed
    (account,) = Budget.read(started / "private/sites" / site / "budget.sqlite")
    (sweeps, own) = account.charges  # What was not held is charged, once.
    assert sweeps.run_id != own.run_id
    assert account.spent_epsilon == pytest.approx(composed)
    (out / tuning_ledger(0)).write_bytes(canonical_json({}))
    assert not verify_run(out).passed


@pytest.mark.slow
def test_a_deployed_site_charges_and_cosigns(
    prepared: Prepared, tmp_path: Path, ledgers: list[Path]
) -> None:
    sites = small_study().sites
    costs = read(ledgers)[0].model_copy(
        update={"spent": {sites[0]: read(ledgers)[0].spent["north"]}}
    )
    values = small_study(rounds=1, seed=5).canonical()
    study = load_study_dict(values | {"tuning": table(ledgers[:1])}, "deployed")
    held = replace(
        planned(prepared, study), tuning=(EarlierRun(ledgers[0].read_bytes(), costs),)
    )
    cast = Cast(held, study, small_policy(), tmp_path / "sites")
    cast.serve(tmp_path / "run")
    said = json.loads((tmp_path / "run" / "statement.json").read_bytes())
    assert "with_named_runs" in said["sites"][sites[0]]
    assert "with_named_runs" not in said["sites"][sites[1]]
    assert cast.rounds_charged(sites[0]) == [1, 2, 3, 1]
    assert cast.rounds_charged(sites[1]) == [1]
    told = {c.name: c for c in verify_run(tmp_path / "run").checks}
    assert told["witnesses"].passed
    # The costs are made up, and not those of the ledger that is kept.
    assert not told["tuning"].passed
