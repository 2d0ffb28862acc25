"""Settings that were chosen by a look at earlier runs: what those cost is counted."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence
import pytest
from deployed import Cast
from governed import call
from small import EXAMPLE, planned, small_policy, small_study, study_values

from secfed.canonical import canonical_json, file_sha256
from secfed.cli.tuning import ledgers_of
from secfed.earlier_runs import (
    EarlierRun,
    NamedRuns,
    charges_at,
    read_tuning_run,
    tuning_ledger,
)
from secfed.entries import (
    EvaluationInterruptedEntry,
    RunCosts,
    TuningEntry,
    parse_body,
)
from secfed.errors import (
    BudgetExceededError,
    LedgerError,
    ModelError,
    PlanError,
    PolicyError,
    StudyError,
)
from secfed.governance import outlay
from secfed.ledger import Ledger
from secfed.privacy import accounting
from secfed.privacy.budget import Budget, Spent
from secfed.privacy.held_back import evaluation_run
from secfed.runtime.compare import plan_arms
from secfed.runtime.earlier import charge_earlier, open_tuning
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared
from secfed.runtime.witnesses import inspection
from secfed.statement import (
    UNKNOWN,
    StatementContext,
    build_statement,
    promised,
)
from secfed.statement.form import check_form
from secfed.study import Study, load_study, load_study_dict
from secfed.verify import verify_run
from secfed.verify.comparison import _SHARED

FIRST, SECOND = "00aa11bb22cc33dd/ffa-lora", "11aa11bb22cc33dd/fedavg"
ONCE = accounting.sampled_gaussian(0.05, 1.0, 6)
"""What each of the runs here spends at each site."""


def run_named(run_id: str) -> evidence.Change:
    def named(index: int, body: evidence.Body) -> evidence.Body:
        return body | {"run_id": run_id} if index == 0 else body

    return named


def sweep(folder: Path, run_id: str, **how: Any) -> Path:
    """A finished run; its ledger."""
    evidence.write_run(folder, **{"change": run_named(run_id), **how})
    return folder / "ledger.jsonl"


@pytest.fixture
def ledgers(tmp_path: Path) -> list[Path]:
    return [sweep(tmp_path / "one", FIRST), sweep(tmp_path / "two", SECOND)]


def table(ledgers: list[Path], **own: Any) -> dict[str, Any]:
    runs = [{"ledger": str(path), "sha256": file_sha256(path)} for path in ledgers]
    return {"data": "private", "settings": "step sizes", "runs": runs, **own}


def tuned(tuning: dict[str, Any], seed: int | None = None, unit: Any = "record"):
    values = evidence.make_study(seed, unit=unit).canonical()
    return load_study_dict({**values, "tuning": tuning}, "tuned")


def read(ledgers: list[Path], study: Study | None = None) -> tuple[RunCosts, ...]:
    study = study or tuned(table(ledgers))
    return tuple(run.costs for run in open_tuning(study, Path()))


# What a study may say


def test_a_study_that_says_nothing_has_no_table_in_its_digest() -> None:
    plain = evidence.make_study()
    assert "tuning" not in plain.canonical()
    assert plain.tuning_runs == ()
    said = tuned({"data": "public"})
    assert said.digest() != plain.digest()
    assert load_study_dict(said.canonical(), "again").digest() == said.digest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "secret"}, "tuning.data"),
        ({"data": "public"}, "says that no private run was looked at"),
        ({"data": "none"}, "says that no private run was looked at"),
        ({"runs": None}, "name every run that was looked at"),
        ({"runs": []}, "tuning.runs"),
        ({"runs": [{"ledger": "l", "sha256": "0" * 63}]}, "tuning.runs[1].sha256"),
        ({"runs": [{"ledger": "l", "sha256": "0" * 64}] * 2}, "is listed twice"),
        ({"runs": [{"sha256": "0" * 64}]}, "ledger"),
        ({"run": []}, "did you mean 'runs'?"),
        ({"settings": ""}, "tuning.settings"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], words: str, ledgers: list[Path]
) -> None:
    values = {k: v for k, v in (table(ledgers) | changes).items() if v is not None}
    with pytest.raises(StudyError) as caught:
        tuned(values)
    assert words in str(caught.value)


# What a run's own ledger says


def test_every_round_of_every_run_counts_and_no_round_twice(
    ledgers: list[Path],
) -> None:
    runs = read(ledgers)
    charges = charges_at(runs, "south")
    assert [(c.run_id, c.round) for c in charges] == [
        (run, number) for run in (FIRST, SECOND) for number in (1, 2, 3)
    ]
    assert charges_at([*runs, *runs], "south") == charges
    assert charges_at(runs, "nowhere") == ()
    again = parse_body("tuning", TuningEntry(costs=runs[0]).to_body())
    assert again == TuningEntry(costs=runs[0])


def test_a_cheaper_ledger_of_the_same_run_hides_nothing(ledgers: list[Path]) -> None:
    (true, other) = read(ledgers)
    small = accounting.event_to_json(accounting.sampled_gaussian(0.01, 9.0, 2))
    cheap = {
        site: tuple(c.model_copy(update={"event": small}) for c in own)
        for site, own in true.spent.items()
    }
    forged = true.model_copy(update={"spent": cheap})
    with pytest.raises(PolicyError, match="two ledgers tell differently"):
        charges_at([forged, other, true], "north")


def test_scores_that_were_looked_at_count(tmp_path: Path) -> None:
    path = sweep(tmp_path / "one", FIRST)
    with Ledger(path, evidence.KEY) as ledger:
        entries = list(ledger.entries())
    spent = {site: dict(entries[2].body["spent"][site]) for site in evidence.SITES}
    scored = EvaluationInterruptedEntry(
        round=3,
        attempt=1,
        participants=evidence.SITES,
        spent=spent,
        epsilon=dict.fromkeys(evidence.SITES, 1.0),
        reason="too few sites agreed to evaluate",
    )
    path.unlink()
    with Ledger(path, evidence.KEY) as ledger:
        for kind, body in [
            *((entry.kind, entry.body) for entry in entries[:-1]),
            (scored.kind, scored.to_body()),
        ]:
            ledger.append(kind, body, evidence.TIME)
    (costs,) = read([path])  # It has no release either: who looked has seen it.
    told = [(c.run_id, c.round) for c in costs.spent["south"]]
    assert told == [(FIRST, 1), (FIRST, 2), (FIRST, 3), (evaluation_run(FIRST), 3)]


def test_what_those_runs_depend_on_counts_too(ledgers: list[Path]) -> None:
    """A run that was tuned by another brings what that one spent."""
    costs = read(ledgers[:1])
    path = ledgers[0].parent.parent / "three" / "ledger.jsonl"
    path.parent.mkdir()
    with Ledger(ledgers[1], evidence.KEY) as ledger:
        entries = [(entry.kind, entry.body) for entry in ledger.entries()]
    entries.insert(2, ("tuning", TuningEntry(costs=costs[0]).to_body()))
    with Ledger(path, evidence.KEY) as ledger:
        for kind, body in entries:
            ledger.append(kind, body, evidence.TIME)
    (found,) = read([path])
    assert charges_at([found], "north") == charges_at(read(ledgers), "north")


@pytest.mark.parametrize(
    ("how", "study", "words"),
    [
        ({"private": False}, {}, "was trained without privacy"),
        ({"seed": 5}, {}, "follows from the simulation seed 5"),
        ({}, {"unit": "site"}, "cannot be composed"),
    ],
)
def test_a_run_that_nothing_bounds_is_refused(
    how: Any, study: Any, words: str, tmp_path: Path
) -> None:
    path = sweep(tmp_path / "one", FIRST, **how)
    with pytest.raises(PolicyError, match=words):
        open_tuning(tuned(table([path]), **study), tmp_path)


def test_another_or_a_missing_ledger_is_refused(ledgers: list[Path]) -> None:
    study = tuned(table(ledgers))
    ledgers[1].write_bytes(ledgers[0].read_bytes())
    with pytest.raises(LedgerError, match="not the ledger that"):
        open_tuning(study, Path())
    ledgers[1].unlink()
    with pytest.raises(ModelError, match="not readable"):
        open_tuning(study, Path())
    with pytest.raises(LedgerError):
        read_tuning_run(b"", study, 0)


# What the statement says


def stated(study: Study, runs: tuple[RunCosts, ...], **how: Any) -> dict[str, Any]:
    plan = evidence.plan_entry(**how)
    rounds = evidence.round_entries(**how)
    said = build_statement(
        study.canonical(), plan, rounds, StatementContext(), tuning=runs
    )
    check_form(said)
    return said


def test_the_statement_composes_the_runs_with_this_one(ledgers: list[Path]) -> None:
    said = stated(tuned(table(ledgers)), read(ledgers))
    north, chosen = said["sites"]["north"], said["composition"]["tuning"]
    all_three = accounting.epsilon([ONCE] * 3, evidence.DELTA)
    assert north["epsilon"] == pytest.approx(accounting.epsilon([ONCE], evidence.DELTA))
    assert north["with_named_runs"]["epsilon"] == pytest.approx(all_three)
    assert chosen["sites"]["north"]["epsilon"] == pytest.approx(
        accounting.epsilon([ONCE] * 2, evidence.DELTA)
    )
    assert (chosen["runs"], chosen["settings"]) == ([FIRST, SECOND], "step sizes")
    assert said["across_sites"]["epsilon"] == pytest.approx(
        accounting.epsilon([ONCE] * 9, evidence.DELTA)
    )
    assert f"({all_three:.4g}, 1e-05)" in said["headline"]
    assert said["headline"].endswith("settings were chosen included")
    assert "elsewhere" not in said["composition"]


def test_people_of_a_sweep_only_are_counted_in_the_headline(
    ledgers: list[Path],
) -> None:
    runs = tuple(
        costs.model_copy(update={"spent": {"east": costs.spent["north"]}})
        for costs in read(ledgers)
    )
    said = stated(tuned(table(ledgers)), runs)
    east = accounting.epsilon([ONCE] * 2, evidence.DELTA)
    assert "with_named_runs" not in said["sites"]["north"]
    assert said["composition"]["elsewhere"]["east"]["epsilon"] == pytest.approx(east)
    assert promised(said)["east"]["epsilon"] == pytest.approx(east)
    assert f"({east:.4g}, 1e-05)" in said["headline"]


def test_a_declaration_is_repeated_as_one_and_silence_is_unknown() -> None:
    said = stated(tuned({"data": "public", "settings": "step sizes"}), ())
    assert said["composition"]["tuning"]["note"].endswith("by declaration")
    assert "with_named_runs" not in said["sites"]["north"]
    none = stated(tuned({"data": "none"}), ())["composition"]["tuning"]
    assert none == {"data": "none", "note": none["note"]}
    plain = stated(evidence.make_study(), ())
    assert plain["composition"]["tuning"] == UNKNOWN
    assert plain["headline"] == said["headline"]


def test_a_ledger_without_the_pinned_runs_makes_no_statement(
    ledgers: list[Path],
) -> None:
    for runs in ((), read(ledgers)[:1], read(ledgers)[::-1]):
        with pytest.raises(PlanError, match="does not tell of the runs"):
            stated(tuned(table(ledgers)), runs)


def test_rehearsed_runs_make_a_rehearsal(tmp_path: Path) -> None:
    path = sweep(tmp_path / "one", FIRST, seed=5)
    study = tuned(table([path]), seed=7)
    said = stated(study, read([path], study))
    assert said["private"] is False
    assert "settings were chosen by runs whose noise follows" in said["headline"]


# What an auditor and a site find


def tuned_run(
    folder: Path, ledgers: list[Path], runs: tuple[RunCosts, ...], **how: Any
) -> Path:
    """A run of a study that names these ledgers, as a runtime would write it."""
    for index, path in enumerate(ledgers):
        kept = folder / tuning_ledger(index)
        kept.parent.mkdir(parents=True)
        kept.write_bytes(path.read_bytes())
    evidence.write_run(folder, study=tuned(table(ledgers)), tuning=runs, **how)
    return folder


def failed(run: Path) -> str:
    report = verify_run(run)
    assert not report.passed
    return " ".join(f"{c.name}: {c.reason}" for c in report.checks if not c.passed)


def test_a_tuned_run_verifies_offline(tmp_path: Path, ledgers: list[Path]) -> None:
    run = tuned_run(tmp_path / "run", ledgers, read(ledgers))
    report = verify_run(run)
    assert report.passed, report
    told = {check.name: check.reason for check in report.checks}
    assert told["tuning"].startswith("what 2 runs spent is that of their own ledgers")
    assert told["tuning"].count("signed by") == 1  # Both by the same key.


def test_a_cheaper_claim_is_found(tmp_path: Path, ledgers: list[Path]) -> None:
    runs = read(ledgers)
    cheap = {site: own[:1] for site, own in runs[1].spent.items()}
    less = (runs[0], runs[1].model_copy(update={"spent": cheap}))
    said = failed(tuned_run(tmp_path / "run", ledgers, less))
    assert "ledger entry 3: not what the tuning run's own ledger says" in said
    assert "statement" not in said  # It follows from the ledger, which lies.


def test_a_run_that_leaves_one_out_or_tells_it_late_is_found(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    run = tuned_run(tmp_path / "run", ledgers, read(ledgers))
    with Ledger(run / "ledger.jsonl", evidence.KEY) as ledger:
        entries = [(entry.kind, entry.body) for entry in ledger.entries()]
    late = [*entries[:3], entries[4], entries[3], *entries[5:]]
    for order in (entries[:3] + entries[4:], late):
        (run / "ledger.jsonl").unlink()
        with Ledger(run / "ledger.jsonl", evidence.KEY) as ledger:
            for kind, body in order:
                ledger.append(kind, body, evidence.TIME)
        assert "ledger entry 3: the tuning run" in failed(run)


def test_a_site_does_not_cosign_a_cheaper_claim(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    runs, study = read(ledgers), tuned(table(ledgers))
    run = tuned_run(tmp_path / "run", ledgers, runs)
    with Ledger(run / "ledger.jsonl", evidence.KEY) as ledger:
        entries = ledger.entries()
    key = evidence.KEY.public_bytes

    def inspect(known: NamedRuns) -> None:
        inspection(study, key, "north", evidence.RUN_ID, list, known)(entries)

    inspect(NamedRuns(tuning=runs))
    with pytest.raises(LedgerError, match="entry 3: not what the tuning run's own"):
        inspect(NamedRuns(tuning=(runs[0], runs[0])))
    with pytest.raises(LedgerError, match="entry 1: the teacher's costs"):
        inspect(NamedRuns(runs[0], runs))


def test_words_that_hide_the_cost_are_found(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    runs = read(ledgers)

    def smaller(index: int, body: evidence.Body) -> evidence.Body:
        del index
        return body | {"headline": re.sub(r"\(\d\.\d+,", "(0.01,", body["headline"])}

    def silent(index: int, body: evidence.Body) -> evidence.Body:
        del index
        return body | {"headline": body["headline"].split(", the runs by")[0]}

    def another_note(index: int, body: evidence.Body) -> evidence.Body:
        del index
        chosen = body["composition"]["tuning"] | {"note": "no data was looked at"}
        return body | {"composition": body["composition"] | {"tuning": chosen}}

    for index, change in enumerate((smaller, silent, another_note)):
        folder = tmp_path / f"run-{index}"
        said = failed(tuned_run(folder, ledgers, runs, statement=change))
        assert "the headline contradicts the ledger" in said, change


def test_arms_do_not_drop_the_tuning_of_their_comparison(
    tmp_path: Path, ledgers: list[Path]
) -> None:
    assert "tuning" in _SHARED
    study = tuned(table(ledgers)).canonical()
    study["compare"] = {"methods": ["ffa-lora"], "epsilons": [1.0, 2.0]}
    with pytest.raises(StudyError, match="a grid is a search itself"):
        load_study_dict(study, "grid")
    named = load_study_dict(study | {"compare": {"baselines": []}}, "arms")
    arms = plan_arms(named, ["ffa-lora", "fedavg"], [0, 1])
    assert {arm.study.tuning_runs for arm in arms} == {named.tuning_runs}


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
    for own, words in ((forged, "another cost of its round 1"), (cut, "its round 2")):
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
