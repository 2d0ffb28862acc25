"""Damaged, older, restored and former budget files are noticed and mended."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest

from secfed.errors import PolicyError
from secfed.privacy.accounting import epsilon, event_to_json, sampled_gaussian
from secfed.privacy.budget import Budget, BudgetFileError
from secfed.privacy.salvage import salvage
from secfed.privacy.store import BudgetStore

DELTA = 1e-5
ROUND = sampled_gaussian(1.0, 20.0, 4)
ONE, TWO, THREE = (epsilon([ROUND] * rounds, DELTA) for rounds in (1, 2, 3))


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "north"
    folder.mkdir()
    return folder / "budget.sqlite"


def opened(path, limit=8.0, population="patients", unit="record"):
    return Budget(path, "north").open(population, unit, limit, DELTA)


def journal(path):
    return path.with_name(f"{path.name}.log")


def spent(path, rounds, run="run"):
    """A budget that has paid for these rounds, the last of them only reserved."""
    budget = opened(path)
    for number in rounds:
        ticket = budget.reserve("digest", run, number, ROUND)
        if number != rounds[-1]:
            budget.spend(ticket)
    return budget


def rounds_of(path):
    (account,) = Budget.read(path)
    return [(charge.run_id, charge.round) for charge in account.charges]


def refuses(path, match="cannot be used"):
    for use in (lambda: Budget(path, "north"), lambda: Budget.read(path)):
        with pytest.raises(BudgetFileError, match=match) as caught:
            use()
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 4


def no_receipts(site):
    assert site == "north"
    return ()


# Both files are written, and the disk is waited for


def test_database_and_journal_hold_the_same_and_are_synced(path, monkeypatch):
    budget = spent(path, [1])
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd))
    )
    budget.reserve("digest", "run", 2, ROUND)
    assert synced == [journal(path).stat().st_ino]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        rows = database.execute("SELECT sequence, head, entry FROM log").fetchall()
    lines = [json.loads(line) for line in journal(path).read_bytes().splitlines()]
    assert [(x["sequence"], x["head"], x["entry"]) for x in lines] == [
        (number, head, json.loads(entry)) for number, head, entry in rows
    ]
    assert [x["entry"]["kind"] for x in lines] == [
        "store",
        "population",
        "reserve",
        "reserve",
    ]


def test_a_database_is_never_used_without_full_synchronisation(path, monkeypatch):
    seen = []
    real = sqlite3.connect

    class Watching(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement.startswith("BEGIN"):
                seen.append(super().execute("PRAGMA synchronous").fetchone()[0])
            return super().execute(statement, *values)

    monkeypatch.setattr(
        sqlite3, "connect", lambda *a, **k: real(*a, factory=Watching, **k)
    )
    budget = opened(path)
    budget.spend(budget.reserve("digest", "run", 1, ROUND))
    assert len(seen) >= 4
    assert set(seen) == {2}  # FULL


def test_a_journal_that_is_behind_is_completed(path):
    spent(path, [1, 2])
    whole = journal(path).read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (lines[:-1], [*lines[:-1], lines[-1][:20]], lines[:1]):
        # A crash came between the two files; nothing had been reported yet.
        journal(path).write_bytes(b"".join(cut))
        assert rounds_of(path) == [("run", 1), ("run", 2)]
        opened(path, limit=8.0).spend(4)
        assert journal(path).read_bytes().startswith(whole)


def test_an_interrupted_creation_is_taken_up(path):
    spent(path, [1])
    first = journal(path).read_bytes().splitlines(keepends=True)[0]
    path.unlink()
    for begun in (b"", first[:30], first):
        journal(path).write_bytes(begun)
        opened(path)
        assert journal(path).read_bytes().startswith(begun if begun == first else b"{")
        assert rounds_of(path) == []
        path.unlink()


# Damage


def test_every_flipped_byte_is_refused_or_changes_nothing(path):
    spent(path, [1, 2, 3])
    expected = Budget.read(path)
    rng = np.random.default_rng(5)  # Fixed, so that a failure can be repeated.
    for file, tries in ((path, 500), (journal(path), 300)):
        whole = file.read_bytes()
        refused = 0
        for position in rng.permutation(len(whole))[:tries]:
            data = bytearray(whole)
            data[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(data)
            try:
                assert Budget.read(path) == expected, position
            except BudgetFileError:
                refused += 1
        file.write_bytes(whole)
        # The database has unused space; of the journal every byte counts, except
        # that a last line without its end is one that was never reported.
        assert refused >= (100 if file == path else tries - 1)
    assert Budget.read(path) == expected


def test_every_truncation_is_refused_or_changes_nothing(path):
    spent(path, [1, 2, 3])
    expected = Budget.read(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 512):
        path.write_bytes(whole[:length])
        refuses(path, match="budget")
    path.write_bytes(whole)
    lines = journal(path).read_bytes()
    for length in range(0, len(lines), 7):
        journal(path).write_bytes(lines[:length])
        assert Budget.read(path) == expected  # The database knows more.
    journal(path).unlink()
    refuses(path, match="is missing")


def test_changed_tables_are_refused(path):
    spent(path, [1])
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TRIGGER never_forget")
        database.commit()
    refuses(path, match="tables or triggers")


def test_an_entry_removed_by_hand_is_noticed(path):
    budget = spent(path, [1, 2])
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TRIGGER never_forget")
        database.execute(
            "DELETE FROM log WHERE sequence = (SELECT max(sequence) FROM log)"
        )
        database.commit()
    for use in (
        lambda: budget.reserve("digest", "run", 3, ROUND),
        budget.history,
    ):
        with pytest.raises(BudgetFileError, match="cannot be used"):
            use()


# Older copies


def backup(path):
    folder = path.parent.with_name(f"backup-{len(list(path.parent.parent.iterdir()))}")
    return shutil.copytree(path.parent, folder)


def restore(path, copy, names=("budget.sqlite", "budget.sqlite.log")):
    for name in names:
        shutil.copy(copy / name, path.parent / name)


def test_an_older_database_is_refused_until_reconciled(path):
    spent(path, [1])
    copy = backup(path)
    spent(path, [2, 3])
    restore(path, copy, ["budget.sqlite"])
    refuses(path, match=r"knows 3 newer entries.*secfed budget reconcile")
    mended = salvage(path, no_receipts)
    assert rounds_of(path) == [("run", 1), ("run", 2), ("run", 3)]
    assert mended.added == ()  # The journal had them.
    assert {stat.S_IMODE(f.stat().st_mode) for f in (path, journal(path))} == {0o600}
    assert opened(path).spent_epsilon() == THREE
    assert [f.name for f in mended.set_aside] == [
        f.name for f in sorted(path.parent.glob("*.before-*Z"))
    ]
    spent(path, [4])


def test_an_older_journal_is_completed(path):
    spent(path, [1])
    copy = backup(path)
    spent(path, [2])
    restore(path, copy, ["budget.sqlite.log"])
    assert rounds_of(path) == [("run", 1), ("run", 2)]
    spent(path, [3])
    assert journal(path).read_bytes().count(b'"reserve"') == 3


def test_a_lost_database_is_refused_and_rebuilt(path):
    spent(path, [1, 2])
    path.unlink()
    with pytest.raises(BudgetFileError, match=r"is missing.*reconcile"):
        Budget(path, "north")
    assert not path.exists()
    salvage(path, no_receipts)
    assert rounds_of(path) == [("run", 1), ("run", 2)]


def test_a_restored_folder_is_noticed_by_whoever_saw_more(path):
    budget = spent(path, [1])
    copy = backup(path)
    spent(path, [2])
    (_, lost) = budget.history()
    restore(path, copy)
    # 1. The two files agree with each other, so nobody who comes new can tell.
    assert rounds_of(path) == [("run", 1)]
    # 2. The process that is running has seen more.
    for use in (budget.history, lambda: budget.reserve("digest", "run", 3, ROUND)):
        with pytest.raises(BudgetFileError, match="older copy during this run"):
            use()
    # 3. The ledger and the receipts name a head that is not there.
    with pytest.raises(BudgetFileError, match="knows 1 reservation"):
        opened(path).reserve("digest", "run", 3, ROUND, known_heads=[lost.head])
    # 4. With the receipt it is added, once, as spent.
    mended = salvage(path, lambda _site: [lost.receipt()])
    assert [(c.round, c.state, c.event) for c in mended.added] == [(2, "spent", ROUND)]
    assert opened(path).spent_epsilon() == TWO
    opened(path).reserve("digest", "run", 3, ROUND, known_heads=[lost.head])
    again = salvage(path, lambda _site: [lost.receipt()])
    assert (again.added, again.set_aside) == ((), ())
    assert opened(path).spent_epsilon() == THREE


def test_two_lines_of_history_are_both_kept(path):
    spent(path, [1])
    copy = backup(path)
    spent(path, [2, 3])
    newer = backup(path)
    restore(path, copy)
    spent(path, [2], run="another")  # Nobody could tell.
    restore(path, newer, ["budget.sqlite.log"])
    refuses(path, match="newer entries|not the same")
    mended = salvage(path, no_receipts)
    kept = rounds_of(path)
    assert sorted(kept) == [("another", 2), ("run", 1), ("run", 2), ("run", 3)]
    assert [(c.run_id, c.round) for c in mended.added] == [("another", 2)]


def test_a_round_that_was_repeated_after_a_restore_is_spent_twice(path):
    spent(path, [1])
    copy = backup(path)
    (_, lost) = spent(path, [2]).history()
    restore(path, copy)
    spent(path, [2])
    salvage(path, lambda _site: [lost.receipt()])
    assert rounds_of(path) == [("run", 1), ("run", 2), ("run", 2)]


def test_what_can_be_read_of_a_broken_database_is_kept(path):
    spent(path, [1, 2])
    lines = journal(path).read_bytes().splitlines(keepends=True)
    journal(path).write_bytes(b"".join(lines[:3]) + b"garbage\n")
    salvage(path, no_receipts)
    assert rounds_of(path) == [("run", 1), ("run", 2)]
    path.write_bytes(os.urandom(3 * 4096))
    salvage(path, no_receipts)
    assert rounds_of(path) == [("run", 1), ("run", 2)]


def test_when_nothing_can_be_read_a_new_budget_is_filled_from_evidence(path):
    known = [charge.receipt() for charge in spent(path, [1, 2]).history()]
    path.write_bytes(os.urandom(4096))
    journal(path).write_bytes(b"garbage\n")
    with pytest.raises(BudgetFileError, match="Move both away"):
        salvage(path, lambda _site: known)
    path.unlink()
    journal(path).unlink()
    fresh = opened(path)
    with pytest.raises(BudgetFileError, match="knows 2 reservation"):
        fresh.require_known(receipt.head for receipt in known)
    salvage(path, lambda _site: known)
    opened(path).require_known(receipt.head for receipt in known)
    assert opened(path).spent_epsilon() == TWO
    with pytest.raises(BudgetFileError, match="no budget here"):
        salvage(path.with_name("other.sqlite"), no_receipts)


def test_evidence_that_could_mean_two_populations_is_not_guessed(path):
    (charge,) = spent(path, [1]).history()
    opened(path, population="staff")
    unknown = charge.receipt().__class__(
        **{
            **vars(charge.receipt()),
            "head": "1" * 64,
            "population": None,
            "run_id": "x",
        }
    )
    with pytest.raises(PolicyError, match="which population"):
        salvage(path, lambda _site: [unknown])
    # A run that drew on one population before goes on drawing on it.
    same_run = unknown.__class__(**{**vars(unknown), "run_id": "run"})
    (added,) = salvage(path, lambda _site: [same_run]).added
    assert added.population == "patients"


def test_evidence_of_records_against_persons_needs_the_cap(path):
    def receipt(unit):
        (charge,) = spent(path.with_name("other.sqlite"), [1]).history()
        changed = {"population": None, "group": None, "unit": unit}
        return charge.receipt().__class__(**{**vars(charge.receipt()), **changed})

    known = receipt("record")
    opened(path, unit="person")
    with pytest.raises(PolicyError, match="protects each record"):
        salvage(path, lambda _site: [known])
    capped = Budget(path, "north").open(
        "patients", "record", 1e3, DELTA, records_per_person=3
    )
    capped.reserve("digest", "before", 1, ROUND)
    (added,) = salvage(path, lambda _site: [known]).added
    assert added.group == 3


def test_an_interrupted_salvage_stays_refused_and_is_repeated(path, monkeypatch):
    spent(path, [1])
    copy = backup(path)
    (_, lost) = spent(path, [2]).history()
    restore(path, copy)

    def crash(self, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "unlink", crash)  # Between the two files.
        with pytest.raises(KeyboardInterrupt):
            salvage(path, lambda _site: [lost.receipt()])
    for leftover in path.parent.glob("*.new"):
        leftover.unlink()
    assert salvage(path, lambda _site: [lost.receipt()]).site == "north"
    assert opened(path).spent_epsilon() == TWO


def test_writers_wait_for_a_salvage_and_use_the_new_files(path):
    budget = spent(path, [1])
    shutil.copy(journal(path), journal(path).with_name("same"))
    store = BudgetStore(path, "north")
    with store.journal.locked() as descriptor:
        inode = os.fstat(descriptor).st_ino
    journal(path).with_name("same").replace(journal(path))
    assert journal(path).stat().st_ino != inode
    budget.reserve("digest", "run", 2, ROUND)
    assert rounds_of(path) == [("run", 1), ("run", 2)]
    assert journal(path).read_bytes().count(b'"reserve"') == 2


# Formats

FORMER = """
PRAGMA application_id = 0x73666264;
PRAGMA user_version = 1;
CREATE TABLE site (name TEXT NOT NULL) STRICT;
CREATE TABLE populations (
    name TEXT PRIMARY KEY,
    unit TEXT NOT NULL,
    max_epsilon REAL NOT NULL,
    delta REAL NOT NULL
) STRICT;
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    population TEXT NOT NULL REFERENCES populations (name),
    study_digest TEXT NOT NULL,
    run_id TEXT NOT NULL,
    round INTEGER NOT NULL,
    event TEXT NOT NULL,
    reserved_at TEXT NOT NULL,
    spent_at TEXT,
    UNIQUE (run_id, round)
) STRICT;
CREATE TRIGGER never_forget BEFORE DELETE ON reservations
BEGIN SELECT RAISE(ABORT, 'a reservation is never returned'); END;
CREATE TRIGGER never_rewrite BEFORE UPDATE OF
    id, population, study_digest, run_id, round, event ON reservations
BEGIN SELECT RAISE(ABORT, 'a reservation is never changed'); END;
INSERT INTO site VALUES ('north');
INSERT INTO populations VALUES ('patients', 'record', 8.0, 1e-5);
INSERT INTO populations VALUES ('staff', 'person', 2.0, 1e-6);
"""


def former(path, event=None):
    """A budget of format 1, as secfed 0.1 wrote it."""
    text = json.dumps(event_to_json(ROUND) if event is None else event, sort_keys=True)
    row = (
        "INSERT INTO reservations VALUES (NULL, ?, 'digest', ?, ?, ?, '2026-01-02', ?)"
    )
    with closing(sqlite3.connect(path)) as database:
        database.executescript(FORMER)
        database.execute(row, ("patients", "run", 1, text, "2026-01-03"))
        database.execute(row, ("patients", "run", 2, text, None))
        database.execute(row, ("staff", "run-2", 1, text, "2026-01-03"))
        database.commit()
    return path


def described(path):
    return [
        (
            account.population.name,
            account.population.unit,
            account.population.max_epsilon,
            account.population.delta,
            [
                (c.run_id, c.round, c.event, c.state, c.reserved_at)
                for c in account.charges
            ],
        )
        for account in Budget.read(path)
    ]


FORMER_CONTENT = [
    (
        "patients",
        "record",
        8.0,
        1e-5,
        [
            ("run", 1, ROUND, "spent", "2026-01-02"),
            ("run", 2, ROUND, "reserved", "2026-01-02"),
        ],
    ),
    ("staff", "person", 2.0, 1e-6, [("run-2", 1, ROUND, "spent", "2026-01-02")]),
]


def test_a_former_file_is_read_without_changing_it_and_migrated_when_used(path):
    before = former(path).read_bytes()
    assert described(path) == FORMER_CONTENT
    assert path.read_bytes() == before
    assert not journal(path).exists()
    budget = opened(path)
    assert described(path) == FORMER_CONTENT
    assert budget.spent_epsilon() == TWO
    with pytest.raises(PolicyError, match="not repeated"):
        budget.reserve("digest", "run", 2, ROUND)
    budget.reserve("digest", "run", 3, ROUND)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert stat.S_IMODE(journal(path).stat().st_mode) == 0o600


def test_an_interrupted_migration_changes_nothing_and_is_repeated(path, monkeypatch):
    before = former(path).read_bytes()
    real = sqlite3.connect

    class Failing(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement.startswith("CREATE TRIGGER"):
                raise KeyboardInterrupt
            return super().execute(statement, *values)

    with monkeypatch.context() as patch:
        patch.setattr(
            sqlite3, "connect", lambda *a, **k: real(*a, factory=Failing, **k)
        )
        with pytest.raises(KeyboardInterrupt):
            Budget(path, "north")
    assert path.read_bytes() == before
    assert described(path) == FORMER_CONTENT  # The journal was there already.
    written = journal(path).read_bytes()
    for begun in (written, written[:300], b""):
        journal(path).write_bytes(begun)
        with monkeypatch.context() as patch:
            patch.setattr(
                sqlite3, "connect", lambda *a, **k: real(*a, factory=Failing, **k)
            )
            with pytest.raises(KeyboardInterrupt):
                Budget(path, "north")
    Budget(path, "north")
    assert described(path) == FORMER_CONTENT


def test_a_former_file_restored_over_a_migrated_one_is_refused(path):
    before = former(path).read_bytes()
    opened(path).reserve("digest", "run", 3, ROUND)
    path.write_bytes(before)
    refuses(path, match="from before its migration")
    salvage(path, no_receipts)
    assert opened(path).spent_epsilon() == THREE


def test_a_former_file_with_a_damaged_event_is_refused_untouched(path):
    for event in ({"event": 1}, None):
        path.unlink(missing_ok=True)
        before = former(path, event).read_bytes()
        if event is None:
            with closing(sqlite3.connect(path)) as database:
                database.execute("DELETE FROM site")
                database.commit()
            before = path.read_bytes()
        refuses(path)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("version", "match"), [(3, "newer secfed"), (0, "format 0"), (-2, "format -2")]
)
def test_another_format_is_refused(path, version, match):
    spent(path, [1])
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    refuses(path, match=match)
