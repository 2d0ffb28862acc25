"""A budget restored from a backup is noticed by the run, and reconciled with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from evidence import SITES, make_plan, write_comparison, write_run
from small import planned, small_policy, small_study
from test_runs import METHOD, ROUNDS, Interrupt, entries, kinds, play_arm
from typer.testing import CliRunner

from secfed.cli import app
from secfed.errors import LedgerError, RunDirectoryError
from secfed.policy import SitePolicy
from secfed.privacy.accounting import epsilon, event_to_json, group_event
from secfed.privacy.budget import Budget, BudgetFileError
from secfed.privacy.chain import Receipt
from secfed.runtime.receipts import keep_receipt, read_receipts, reconcile
from secfed.runtime.setup import Prepared
from secfed.verify import verify_run

EVENT = make_plan().round_event()
ARM_ROUNDS = (1, 2, 3)  # Of the evidence that ``write_run`` makes.


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# Receipts


def receipt(number: int) -> Receipt:
    return Receipt(
        head=f"{number:064d}",
        population="patients",
        study_digest="digest",
        run_id="run",
        round=number,
        event=event_to_json(EVENT),
        group=1,
        unit=None,
    )


def test_receipts_are_kept_in_order_and_survive_a_torn_write(tmp_path: Path) -> None:
    path = tmp_path / "sites" / "north" / "receipts.jsonl"
    assert read_receipts(tmp_path, "north") == ()
    keep_receipt(tmp_path, "north", receipt(1))
    with path.open("ab") as file:
        file.write(b'{"head":"cut')
    keep_receipt(tmp_path, "north", receipt(2))
    assert read_receipts(tmp_path, "north") == (receipt(1), receipt(2))
    assert read_receipts(tmp_path, "south") == ()
    path.write_bytes(b'{"head":1}\n')
    with pytest.raises(RunDirectoryError, match="not a file of receipts"):
        read_receipts(tmp_path, "north")


# A ledger alone


def named(run_id: str, first: int = 1) -> Any:
    """Rewrites evidence so that it names budgets, as a run of today does."""

    def change(index: int, body: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            return body | {"run_id": run_id}
        if "spent" in body:
            head = f"{first + body['round']:064d}"
            return body | {"budget_heads": dict.fromkeys(body["spent"], head)}
        return body

    return change


def site_budget(tmp_path: Path, unit: Any = "record", cap: int | None = None) -> Budget:
    return Budget(tmp_path / "budget.sqlite", "north").open(
        "patients", unit, 100.0, 1e-5, records_per_person=cap
    )


def test_a_ledger_alone_is_enough(tmp_path: Path) -> None:
    write_run(tmp_path / "run", change=named("run/ffa-lora"))
    budget = site_budget(tmp_path)
    heads = [f"{1 + number:064d}" for number in ARM_ROUNDS]
    with pytest.raises(BudgetFileError, match="knows 3 reservation"):
        budget.require_known(heads)
    before = (tmp_path / "budget.sqlite").read_bytes()
    result = call(
        "budget", "reconcile", budget.path, "--ledger", tmp_path / "run", "--json"
    )
    assert result.exit_code == 0, result.output
    (done,) = json.loads(result.stdout)["reconciled"]
    assert [c["round"] for c in done["added"]] == [1, 2, 3]
    assert Path(done["set_aside"][0]).read_bytes() == before
    budget = site_budget(tmp_path)
    budget.require_known(heads)
    assert [(c.run_id, c.round, c.state) for c in budget.history()] == [
        ("run/ffa-lora", number, "spent") for number in ARM_ROUNDS
    ]
    assert budget.spent_epsilon() == epsilon([EVENT] * 3, 1e-5)
    # Again, and for people: nothing is counted twice.
    shown = call("budget", "reconcile", budget.path, "--ledger", tmp_path / "run")
    assert "nothing was missing" in shown.stdout
    assert site_budget(tmp_path).spent_epsilon() == epsilon([EVENT] * 3, 1e-5)


def test_what_is_spent_is_added_also_above_the_limit(tmp_path: Path) -> None:
    write_run(tmp_path / "run", change=named("run/ffa-lora"))
    budget = site_budget(tmp_path).open("patients", "record", 0.01, 1e-5)
    reconcile(budget.path, [tmp_path / "run"])
    (account,) = Budget.read(budget.path)
    assert account.alarm == 100
    assert account.percent > 1000


def test_a_ledger_of_records_against_persons_is_charged_by_the_cap(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "run", change=named("run/ffa-lora"))
    budget = site_budget(tmp_path, cap=4)
    budget.reserve("digest", "earlier", 1, EVENT)
    reconcile(budget.path, [tmp_path / "run"])
    assert site_budget(tmp_path, cap=4).spent_epsilon() == epsilon(
        [group_event(EVENT, 4)] * 4, 1e-5
    )


def test_every_arm_of_a_comparison_counts(tmp_path: Path) -> None:
    write_comparison(tmp_path / "run")
    for place, method in enumerate(("ffa-lora", "fedavg")):
        arm = tmp_path / "run" / "arms" / method
        shutil.rmtree(arm)
        change = named(f"run/{method}", first=100 * (1 + place))
        write_run(arm, method=method, change=change)
    budget = site_budget(tmp_path)
    result = call("budget", "reconcile", tmp_path, "--ledger", tmp_path / "run")
    assert "6 reservation(s) added, all of them spent" in result.stdout
    assert {c.run_id for c in site_budget(tmp_path).history()} == {
        "run/ffa-lora",
        "run/fedavg",
    }
    assert budget.site in SITES


def test_evidence_that_does_not_hold_changes_nothing(tmp_path: Path) -> None:
    budget = site_budget(tmp_path)
    before = budget.path.read_bytes()
    with pytest.raises(RunDirectoryError, match=r"no ledger\.jsonl"):
        reconcile(budget.path, [tmp_path / "absent"])
    write_run(tmp_path / "old")
    with pytest.raises(RunDirectoryError, match="does not name its sites' budgets"):
        reconcile(budget.path, [tmp_path / "old"])
    write_run(tmp_path / "run", change=named("run/ffa-lora"))
    ledger = tmp_path / "run" / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-20] + b"A" + whole[-19:])
    with pytest.raises(LedgerError):
        reconcile(budget.path, [tmp_path / "run"])
    ledger.write_bytes(b"{}\n")
    with pytest.raises(RunDirectoryError, match="not a ledger"):
        reconcile(budget.path, [tmp_path / "run"])
    assert budget.path.read_bytes() == before
    assert call("budget", "reconcile", budget.path).exit_code == 2  # Which ledger?


# A run that goes on after a restore


class InRound(Interrupt):
    """Presses Ctrl-C at a moment of another round than the second."""

    def __init__(self, moment: str, target: int) -> None:
        super().__init__(moment)
        self.target = target

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        super().round(arm, 2 if round == self.target else 0, rounds)


def restored_during(
    prepared: Prepared, tmp_path: Path, policy: SitePolicy, moment: str, target: int
) -> Path:
    """A run whose budgets' folder is put back to how it was after round 1."""
    run, budgets = tmp_path / "run", tmp_path / "budgets"
    with pytest.raises(KeyboardInterrupt):
        play_arm(prepared, small_study(), run, InRound("round", 2), policy)
    shutil.copytree(budgets, tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        play_arm(prepared, small_study(), run, InRound(moment, target), policy)
    shutil.rmtree(budgets)
    shutil.copytree(tmp_path / "backup", budgets)
    return run


def charged(tmp_path: Path) -> Mapping[str, list[int]]:
    accounts = [
        account
        for path in sorted((tmp_path / "budgets").rglob("budget.sqlite"))
        for account in Budget.read(path)
    ]
    return {a.site: [charge.round for charge in a.charges] for a in accounts}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "target", "evidence", "lost", "interrupted"),
    [
        # In the middle of round 2: only the sites' own receipts know of it.
        ("local training", 2, "receipts", [2], {2}),
        # Between rounds 2 and 3: the ledger knows, also in a copy without private/.
        ("round", 3, "ledger", [2], set()),
    ],
)
def test_a_run_refuses_to_go_on_with_restored_budgets_until_they_are_reconciled(
    prepared: Prepared,
    tmp_path: Path,
    moment: str,
    target: int,
    evidence: str,
    lost: list[int],
    interrupted: set[int],
) -> None:
    budgets = tmp_path / "budgets"
    policy = small_policy().model_copy(update={"budget_dir": str(budgets)})
    run = restored_during(prepared, tmp_path, policy, moment, target)
    assert set(map(tuple, charged(tmp_path).values())) == {(1,)}
    known = run
    if evidence == "ledger":
        for path in run.rglob("receipts.jsonl"):
            path.unlink()
        known = tmp_path / "copy"
        shutil.copytree(run, known, ignore=shutil.ignore_patterns("private"))
    before = (run / "ledger.jsonl").read_bytes()
    with pytest.raises(BudgetFileError, match="knows 1 reservation") as caught:
        play_arm(prepared, small_study(), run, policy=policy)
    assert caught.value.exit_code == 4
    assert (run / "ledger.jsonl").read_bytes() == before
    assert set(map(tuple, charged(tmp_path).values())) == {(1,)}
    result = call("budget", "reconcile", budgets, "--ledger", known)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("1 reservation(s) added") == 4
    play_arm(prepared, small_study(), run, policy=policy)
    assert set(map(tuple, charged(tmp_path).values())) == {(1, *lost, 3)}
    expected = [
        "round-interrupted" if n in interrupted else "round"
        for n in range(1, ROUNDS + 1)
    ]
    assert kinds(run) == ["study", "plan", *expected, "release"]
    assert verify_run(run).passed, verify_run(run).failures()
    ends = [e.body["epsilon"] for e in entries(run) if "epsilon" in e.body]
    assert max(ends[-1].values()) <= 8
    for path in budgets.rglob("budget.sqlite"):
        assert Budget.read(path)[0].spent_epsilon <= 8


@pytest.mark.slow
def test_the_ledger_names_every_budget_and_the_data_is_a_version(
    prepared: Prepared, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    study = small_study(rounds=1)
    play_arm(planned(prepared, study), study, run)
    (played,) = (e for e in entries(run) if e.kind == "round")
    assert entries(run)[0].body["run_id"] == f"run/{METHOD}"
    for site, head in played.body["budget_heads"].items():
        folder = run / "private" / "sites" / site
        (account,) = Budget.read(folder / "budget.sqlite")
        assert [charge.head for charge in account.charges] == [head]
        assert [known.head for known in read_receipts(run / "private", site)] == [head]
        assert account.population.versions == (prepared.fingerprints[site],)
    assert played.body["budget_heads"].keys() == played.body["spent"].keys()
    assert len(set(prepared.fingerprints.values())) == 4
