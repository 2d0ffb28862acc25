"""A budget survives everything but is never given back."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import dp_accounting
import pytest

from secfed.canonical import canonical_json
from secfed.errors import BudgetExceededError, PlanError, PolicyError
from secfed.privacy.accounting import epsilon, group_event, sampled_gaussian
from secfed.privacy.budget import Budget, BudgetFileError
from secfed.privacy.chain import Link, extended

DELTA = 1e-5
ROUND = sampled_gaussian(0.05, 1.0, 10)
ONE, TWO, THREE = (epsilon([ROUND] * rounds, DELTA) for rounds in (1, 2, 3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "budget.sqlite"


def opened(path, limit=TWO, population="patients", unit="record", site="north"):
    return Budget(path, site).open(population, unit, limit, DELTA)


def test_reserve_then_spend(path):
    budget = opened(path)
    assert budget.spent_epsilon() == 0
    assert budget.remaining() == TWO
    ticket = budget.reserve("digest", "run", 1, ROUND)
    assert budget.spent_epsilon() == ONE
    budget.spend(ticket)
    (charge,) = budget.history()
    assert (charge.state, charge.reservation) == ("spent", ticket)
    assert (charge.study_digest, charge.run_id, charge.round) == ("digest", "run", 1)
    assert charge.event == ROUND
    assert budget.spent_epsilon() == ONE
    assert budget.remaining() == TWO - ONE
    budget.spend(ticket)  # A repeated confirmation changes nothing.
    assert budget.history() == (charge,)


def test_events_compose_and_epsilons_are_not_added(path):
    budget = opened(path)
    budget.reserve("digest", "run", 1, ROUND)
    budget.reserve("digest", "run", 2, ROUND)
    assert budget.spent_epsilon() == TWO < 2 * ONE


def test_a_round_over_the_limit_is_refused_and_costs_nothing(path):
    budget = opened(path, limit=(TWO + THREE) / 2)
    budget.reserve("digest", "run", 1, ROUND)
    budget.reserve("digest", "run", 2, ROUND)
    with pytest.raises(
        BudgetExceededError, match=r"north.*nothing was spent"
    ) as caught:
        budget.reserve("digest", "run", 3, ROUND)
    assert caught.value.site == "north"
    assert caught.value.exit_code == 4
    assert budget.spent_epsilon() == TWO
    assert len(budget.history()) == 2
    cheaper = sampled_gaussian(0.001, 5.0, 1)
    budget.reserve("digest", "run", 3, cheaper)  # The number stayed free.


def test_the_exact_limit_is_allowed(path):
    budget = opened(path, limit=ONE)
    budget.reserve("digest", "run", 1, ROUND)
    with pytest.raises(BudgetExceededError):
        budget.reserve("digest", "run", 2, ROUND)


def test_a_whole_study_is_refused_before_it_starts(path):
    budget = opened(path, limit=TWO)
    assert budget.can_afford([])
    assert budget.can_afford([ROUND, ROUND])
    assert not budget.can_afford([ROUND] * 3)
    budget.reserve("digest", "run", 1, ROUND)
    assert budget.can_afford([ROUND])
    assert not budget.can_afford([ROUND, ROUND])
    assert len(budget.history()) == 1


CRASH = """
import os, signal, sys
from secfed.privacy.accounting import sampled_gaussian
from secfed.privacy.budget import Budget
budget = Budget(sys.argv[1], "north").open("patients", "record", 8.0, 1e-5)
budget.reserve("digest", "run", 1, sampled_gaussian(0.05, 1.0, 10))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_interrupted_round_stays_spent_and_is_not_repeated(path):
    command = [sys.executable, "-c", CRASH, str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    budget = opened(path, limit=8.0)
    assert [charge.state for charge in budget.history()] == ["reserved"]
    assert budget.spent_epsilon() == ONE
    with pytest.raises(PolicyError, match="not repeated"):
        budget.reserve("digest", "run", 1, ROUND)
    budget.reserve("digest", "run", 2, ROUND)
    assert budget.spent_epsilon() == TWO


def test_the_same_round_of_another_run_is_another_round(path):
    budget = opened(path)
    budget.reserve("digest", "run-a", 1, ROUND)
    budget.reserve("digest", "run-b", 1, ROUND)
    with pytest.raises(PolicyError, match="not repeated"):
        budget.reserve("other digest", "run-b", 1, ROUND)


RACE = """
import sys
from secfed.errors import BudgetExceededError
from secfed.privacy.accounting import sampled_gaussian
from secfed.privacy.budget import Budget
budget = Budget(sys.argv[1], "north").open("patients", "record", float(sys.argv[2]), 1e-5)
print("ready", flush=True)
sys.stdin.readline()
try:
    budget.reserve("digest", sys.argv[3], 1, sampled_gaussian(0.05, 1.0, 10))
except BudgetExceededError:
    sys.exit(7)
"""


def test_two_processes_cannot_both_take_the_last_of_a_budget(path):
    opened(path, limit=ONE)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path), repr(ONE), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("a", "b")
    ]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    codes = []
    for racer in racers:
        racer.communicate()
        codes.append(racer.returncode)
    assert sorted(codes) == [0, 7]
    assert len(opened(path, limit=ONE).history()) == 1


def test_many_threads_take_exactly_what_fits(path):
    limit = (THREE + epsilon([ROUND] * 4, DELTA)) / 2
    opened(path, limit=limit)

    def attempt(number):
        try:
            opened(path, limit=limit).reserve("digest", "run", number, ROUND)
        except BudgetExceededError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 3
    assert opened(path, limit=limit).spent_epsilon() == THREE


def test_populations_are_separate_and_listed(path):
    first = opened(path, limit=ONE, population="a")
    first.reserve("digest", "run", 1, ROUND)
    second = opened(path, limit=TWO, population="b", unit="person")
    assert second.spent_epsilon() == 0
    assert second.history() == ()
    with pytest.raises(PolicyError, match="no reservation"):
        second.spend(first.history()[0].reservation)
    assert [(p.name, p.unit, p.max_epsilon) for p in second.populations()] == [
        ("a", "record", ONE),
        ("b", "person", TWO),
    ]


@pytest.mark.parametrize(
    ("kept", "asked"), [("person", "record"), ("record", "person")]
)
def test_one_unit_per_population(path, kept, asked):
    opened(path, unit=kept)
    with pytest.raises(PolicyError, match=f"kept per {kept}"):
        opened(path, unit=asked)


def test_new_limits_keep_what_was_spent(path):
    opened(path, limit=TWO).reserve("digest", "run", 1, ROUND)
    lowered = opened(path, limit=ONE / 2)
    assert lowered.spent_epsilon() == ONE
    assert lowered.remaining() == 0
    with pytest.raises(BudgetExceededError):
        lowered.reserve("digest", "run", 2, sampled_gaussian(0.001, 5.0, 1))
    opened(path, limit=THREE).reserve("digest", "run", 2, ROUND)


@pytest.mark.parametrize(
    ("population", "unit", "limit", "delta"),
    [
        ("", "record", 1.0, DELTA),
        ("a", "row", 1.0, DELTA),
        ("a", "record", 0.0, DELTA),
        ("a", "record", float("inf"), DELTA),
        ("a", "record", float("nan"), DELTA),
        ("a", "record", 1.0, 0.0),
        ("a", "record", 1.0, 1.0),
    ],
)
def test_bad_limits_are_refused(path, population, unit, limit, delta):
    budget = Budget(path, "north")
    with pytest.raises(PolicyError):
        budget.open(population, unit, limit, delta)
    assert budget.populations() == ()


def test_a_population_must_be_opened(path):
    budget = Budget(path, "north")
    with pytest.raises(PolicyError, match="open a population"):
        budget.reserve("digest", "run", 1, ROUND)
    with pytest.raises(PolicyError, match="open a population"):
        budget.spent_epsilon()


def test_unknown_events_are_refused(path):
    budget = opened(path)
    for event in (dp_accounting.NonPrivateDpEvent(), None):
        with pytest.raises(PlanError):
            budget.reserve("digest", "run", 1, event)
    assert budget.history() == ()


def test_unknown_reservations_are_refused(path):
    with pytest.raises(PolicyError, match="no reservation 99"):
        opened(path).spend(99)


def test_the_file_is_private_whatever_the_umask(path):
    previous = os.umask(0)
    try:
        opened(path)
    finally:
        os.umask(previous)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == [path.name, f"{path.name}.log"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    for file in files:
        file.chmod(0o644)
    opened(path)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]


def test_a_reservation_cannot_be_deleted_or_changed(path):
    opened(path).reserve("digest", "run", 1, ROUND)
    with sqlite3.connect(path) as database:
        for statement in (
            "DELETE FROM log",
            "UPDATE log SET entry = '{}'",
            "UPDATE log SET sequence = 7 WHERE sequence = 2",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                database.execute(statement)
    database.close()


def refused(path, site="north", match=""):
    before = path.read_bytes()
    with pytest.raises(BudgetFileError, match=match) as caught:
        Budget(path, site)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4
    assert path.read_bytes() == before


def test_files_that_are_not_a_budget_are_refused_untouched(path):
    path.write_bytes(b"")
    refused(path, match="empty")
    path.write_bytes(b"not a database at all, but long enough for a header" * 50)
    refused(path, match="not a database")
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (x)")
    database.close()
    refused(path, match="not a budget file")


def test_a_damaged_file_is_refused(path):
    budget = opened(path)
    budget.reserve("digest", "run", 1, ROUND)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4096])
    refused(path, match="cannot be used")
    page = len(whole) // 4096 - 1
    path.write_bytes(whole[: page * 4096] + os.urandom(4096))
    refused(path, match="cannot be used")
    path.write_bytes(whole)
    assert opened(path).spent_epsilon() == ONE


def forged(path, entry):
    """A database with one more entry that is chained correctly."""
    lines = path.with_name(f"{path.name}.log").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    links = [Link(row["sequence"], row["head"], row["entry"]) for row in rows]
    link = extended(links, entry)
    with sqlite3.connect(path) as database:
        row = (link.sequence, link.head, canonical_json(entry).decode())
        database.execute("INSERT INTO log VALUES (?, ?, ?)", row)
    database.close()


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "refund", "reservation": 2},
        {"kind": "spend", "reservation": 99, "at": "now"},
        {"kind": "reserve", "population": "patients", "event": {"event": 1}},
        {
            "kind": "population",
            "name": "patients",
            "unit": "person",
            "max_epsilon": 1.0,
            "delta": 0.1,
        },
        {"kind": "store", "site": "south"},
    ],
)
def test_a_damaged_event_stops_all_spending(path, entry):
    budget = opened(path, limit=8.0)
    forged(path, entry)
    for use in (
        budget.spent_epsilon,
        budget.history,
        lambda: budget.can_afford([]),
        lambda: budget.reserve("digest", "run", 2, ROUND),
        lambda: Budget(path, "north"),
        lambda: Budget.read(path),
    ):
        with pytest.raises(BudgetFileError, match="cannot be used"):
            use()


def test_another_sites_file_is_refused(path):
    opened(path)
    refused(path, site="south", match="budget of 'north', not of 'south'")


def test_a_missing_file_or_directory(path, tmp_path):
    with pytest.raises(BudgetFileError, match="no budget file"):
        Budget(path, "north", create=False)
    assert not path.exists()
    with pytest.raises(BudgetFileError, match="cannot be created"):
        Budget(tmp_path / "absent" / "budget.sqlite", "north")
    with pytest.raises(BudgetFileError, match="no budget file"):
        Budget(tmp_path, "north")


def test_a_file_removed_while_open_is_not_replaced_by_an_empty_one(path):
    budget = opened(path)
    path.unlink()
    with pytest.raises(BudgetFileError):
        budget.reserve("digest", "run", 1, ROUND)
    assert not path.exists()


# One unit per population


def test_records_are_charged_to_persons_by_their_cap(path):
    limit = 1.01 * epsilon([group_event(ROUND, 3)], DELTA)
    assert limit > 3 * ONE
    persons = Budget(path, "north").open("patients", "person", limit, DELTA)
    with pytest.raises(PolicyError, match=r"kept per person.*max_records_per_person"):
        Budget(path, "north").open("patients", "record", limit, DELTA)
    records = Budget(path, "north").open(
        "patients", "record", limit, DELTA, records_per_person=3
    )
    assert records.can_afford([ROUND])
    assert not records.can_afford([ROUND, ROUND])
    ticket = records.reserve("digest", "run", 1, ROUND)
    (charge,) = persons.history()
    assert (charge.event, charge.group) == (ROUND, 3)  # The ledger says what ran.
    assert charge.cost == group_event(ROUND, 3)
    assert persons.spent_epsilon() == records.spent_epsilon() > 3 * ONE
    records.spend(ticket)
    with pytest.raises(BudgetExceededError):
        records.reserve("digest", "run", 2, ROUND)
    # A person's event costs what it says.
    assert persons.open("patients", "person", 2 * limit, DELTA).can_afford([ROUND])


def test_a_cap_declares_a_population_of_persons(path):
    budget = Budget(path, "north")
    budget.open("patients", "record", 8.0, DELTA, records_per_person=2)
    assert [p.unit for p in budget.populations()] == ["person"]
    with pytest.raises(PlanError, match="positive number of records"):
        budget.open("others", "record", 8.0, DELTA, records_per_person=-1).can_afford(
            [ROUND]
        )


# Versions of the data


def test_another_row_is_another_version_and_resets_nothing(path):
    def used(fingerprint, population="patients"):
        return Budget(path, "north").open(
            population, "record", THREE, DELTA, fingerprint=fingerprint
        )

    used("a" * 64).reserve("digest", "run", 1, ROUND)
    with_a_row = used("b" * 64)
    assert with_a_row.spent_epsilon() == ONE
    with_a_row.reserve("digest", "run", 2, ROUND)
    assert used("a" * 64).spent_epsilon() == TWO
    assert used("b" * 64).populations()[0].versions == ("a" * 64, "b" * 64)
    # The same records under a new name would be a new budget for the same people.
    with pytest.raises(PolicyError, match="belong to population 'patients'"):
        used("b" * 64, "patients-2")
    assert [p.name for p in used("a" * 64).populations()] == ["patients"]


# Reading


def test_reading_changes_nothing_and_gives_alarms(path):
    for name, limit in (("a", 10 * ONE), ("b", 2 * ONE), ("c", 1.2 * ONE), ("d", ONE)):
        opened(path, limit, name).reserve("digest", name, 1, ROUND)
    opened(path, ONE / 2, "d")
    opened(path, ONE, "unused")
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    accounts = Budget.read(path)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    found = [(x.site, x.population.name, x.percent, x.alarm) for x in accounts]
    assert found == [
        ("north", "a", 10, 0),
        ("north", "b", 50, 50),
        ("north", "c", 84, 80),
        ("north", "d", 200, 100),
        ("north", "unused", 0, 0),
    ]
    assert accounts[0].spent_epsilon == ONE
    assert accounts[3].remaining == 0
    assert accounts[0].charges == opened(path, ONE, "a").history()
    with pytest.raises(BudgetFileError, match="no budget file"):
        Budget.read(path.with_name("absent.sqlite"))


@pytest.mark.parametrize("share", [0.4999, 0.5, 0.7899, 0.8, 0.9899, 1.0])
def test_alarms_are_given_at_their_share_and_not_before(path, share):
    opened(path, ONE / share).reserve("digest", "run", 1, ROUND)
    (account,) = Budget.read(path)
    expected = {0.4999: 50, 0.5: 50, 0.7899: 50, 0.8: 80, 0.9899: 80, 1.0: 100}
    assert account.alarm == expected[share]  # 49.99 % is shown as 50 %.


# What the ledger knows


def test_a_budget_that_lacks_what_the_ledger_knows_spends_nothing(path):
    budget = opened(path, limit=THREE)
    budget.reserve("digest", "run", 1, ROUND)
    heads = [charge.head for charge in budget.history()]
    assert budget.receipt(budget.history()[0].reservation).head == heads[0]
    budget.require_known(heads)
    budget.reserve("digest", "run", 2, ROUND, known_heads=heads)
    for use in (
        lambda: budget.require_known(["0" * 64, *heads]),
        lambda: budget.reserve("digest", "run", 3, ROUND, known_heads=["0" * 64]),
    ):
        with pytest.raises(BudgetFileError, match=r"knows 1 reservation.*reconcile"):
            use()
    assert budget.spent_epsilon() == TWO
    with pytest.raises(PolicyError, match="no reservation 99"):
        budget.receipt(99)


def test_heads_of_equal_budgets_differ(tmp_path):
    # A head is published; the same charges elsewhere must not show themselves.
    heads = set()
    for name in ("one", "two"):
        budget = opened(tmp_path / f"{name}.sqlite")
        budget.reserve("digest", "run", 1, ROUND)
        heads.add(budget.history()[0].head)
    assert len(heads) == 2
