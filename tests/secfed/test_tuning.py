"""Settings that were chosen by a look at earlier runs: what those cost is counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import evidence
import pytest
from tuned import FIRST, ONCE, SECOND, read, sweep, table, tuned, two_runs

from secfed.earlier_runs import (
    NamedRuns,
    charges_at,
    read_tuning_run,
    tuning_ledger,
)
from secfed.entries import (
    RunCosts,
    TuningEntry,
    parse_body,
)
from secfed.errors import (
    LedgerError,
    ModelError,
    PlanError,
    PolicyError,
    StudyError,
)
from secfed.ledger import Ledger
from secfed.privacy import accounting
from secfed.privacy.held_back import evaluation_run
from secfed.runtime.compare import plan_arms
from secfed.runtime.earlier import open_tuning
from secfed.runtime.witnesses import inspection
from secfed.statement import (
    UNKNOWN,
    StatementContext,
    build_statement,
    promised,
)
from secfed.statement.form import check_form
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run


@pytest.fixture
def ledgers(tmp_path: Path) -> list[Path]:
    return two_runs(tmp_path)


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
    entries = evidence.entries_of(path)
    # It has no release either: who looked has seen it.
    evidence.write_entries(path, [*entries[:-1], evidence.scored(entries)])
    (costs,) = read([path])
    told = [(c.run_id, c.round) for c in costs.spent["south"]]
    assert told == [(FIRST, 1), (FIRST, 2), (FIRST, 3), (evaluation_run(FIRST), 3)]


def test_what_those_runs_depend_on_counts_too(ledgers: list[Path]) -> None:
    """A run that was tuned by another brings what that one spent."""
    costs, both = read(ledgers[:1]), charges_at(read(ledgers), "north")
    entries = evidence.entries_of(ledgers[1])
    entries.insert(2, ("tuning", TuningEntry(costs=costs[0]).to_body()))
    evidence.write_entries(ledgers[1], entries)
    assert charges_at(read(ledgers[1:]), "north") == both


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
    entries = evidence.entries_of(run / "ledger.jsonl")
    late = [*entries[:3], entries[4], entries[3], *entries[5:]]
    for order in (entries[:3] + entries[4:], late):
        evidence.write_entries(run / "ledger.jsonl", order)
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
    evidence.write_comparison(tmp_path / "same")
    assert verify_run(tmp_path / "same").passed
    evidence.write_comparison(tmp_path / "other", study=tuned(table(ledgers)))
    assert "arms/ffa-lora/study.json: another [tuning]" in failed(tmp_path / "other")
    study = tuned(table(ledgers)).canonical()
    study["compare"] = {"methods": ["ffa-lora"], "epsilons": [1.0, 2.0]}
    with pytest.raises(StudyError, match="a grid is a search itself"):
        load_study_dict(study, "grid")
    named = load_study_dict(study | {"compare": {"baselines": []}}, "arms")
    arms = plan_arms(named, ["ffa-lora", "fedavg"], [0, 1])
    assert {arm.study.tuning_runs for arm in arms} == {named.tuning_runs}
