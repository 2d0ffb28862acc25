"""What a run knows about its sites' budgets, and how a budget is reconciled.

A site keeps a receipt of every reservation in the run's private folder, before
the first step of the round; the ledger names the budget's head of every round
that ended. A budget that lacks one of them is older than the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json
from secfed.errors import LedgerError, RunDirectoryError
from secfed.ledger import Entry, signer_of, split_lines, verify_entries
from secfed.privacy.budget import Budget, Charge, Receipt
from secfed.privacy.held_back import evaluation_run
from secfed.privacy.salvage import Salvage, salvage
from secfed.runtime.directory import read_lines, write_atomically

__all__ = [
    "Reservation",
    "keep_receipt",
    "read_receipts",
    "receipts_of_run",
    "reconcile",
    "reservations",
]

Reservation = tuple[str, int, str]
"""The run and arm, the round, and the budget's head after it was reserved."""

_LEDGERS = ("ledger.jsonl", "arms/*/ledger.jsonl")
_ROUND_KINDS = ("round", "round-interrupted")
_EVALUATION_KINDS = ("evaluation", "evaluation-interrupted")


def keep_receipt(private_dir: Path, site: str, receipt: Receipt) -> None:
    """Put one more receipt on the disk."""
    path = _receipts_path(private_dir, site)
    lines = [*read_lines(path), asdict(receipt)]
    write_atomically(path, b"".join(canonical_json(line) + b"\n" for line in lines))


def read_receipts(private_dir: Path, site: str) -> tuple[Receipt, ...]:
    """The receipts that one site keeps in a run.

    Raises:
        RunDirectoryError: The file is damaged.
    """
    path = _receipts_path(private_dir, site)
    try:
        return tuple(Receipt(**line) for line in read_lines(path))
    except (ValueError, TypeError) as error:
        raise RunDirectoryError(f"{path}: not a file of receipts: {error}") from error


def reservations(private_dir: Path, site: str, budget: Budget) -> list[Reservation]:
    """Everything that a site itself knows it reserved, of all runs.

    A crash may have come between the budget and the receipt, and a reconciliation
    charges what the budget had lost under a new head.
    """
    charges = budget.history()
    known: list[Receipt | Charge] = [*read_receipts(private_dir, site), *charges]
    return [
        *((held.run_id, held.round, held.head) for held in known),
        *((c.run_id, c.round, c.replaces) for c in charges if c.replaces is not None),
    ]


def reconcile(budget: Path, runs: Sequence[Path]) -> Salvage:
    """Add to a budget what the ledgers and receipts of runs know, as spent.

    Args:
        budget: The budget file.
        runs: Run directories, or copies of them without ``private/``.

    Raises:
        RunDirectoryError: There is no ledger, or one that names no budgets.
        LedgerError: A ledger does not verify.
        PolicyError: The budget's files cannot be used, or it is not clear how a
            reservation is to be charged.
    """

    def receipts(site: str) -> list[Receipt]:
        return [known for run in runs for known in receipts_of_run(run, site)]

    return salvage(budget, receipts)


def receipts_of_run(run: Path, site: str) -> list[Receipt]:
    """Everything that a run knows about one site's budget, surest first."""
    ledgers = sorted(path for name in _LEDGERS for path in run.glob(name))
    if not ledgers:
        raise RunDirectoryError(f"{run}: no ledger.jsonl here or below arms/")
    of_ledgers = [known for path in ledgers for known in _of_ledger(path, site)]
    return [*read_receipts(run / "private", site), *of_ledgers]


def _of_ledger(path: Path, site: str) -> list[Receipt]:
    """A ledger's reservations of one site; checked under the key that it names."""
    data = path.read_bytes()
    lines = split_lines(data[: data.rfind(b"\n") + 1])
    entries = verify_entries(lines, _key_of(path, lines))
    study, plan = entries[0].body, entries[1].body if len(entries) > 1 else {}
    unit = ((plan.get("sites") or {}).get(site) or {}).get("unit")
    return [
        _receipt(path, entry, site, study, unit)
        for entry in entries
        if entry.kind in (*_ROUND_KINDS, *_EVALUATION_KINDS)
        and site in entry.body["spent"]
    ]


def _receipt(path: Path, entry: Entry, site: str, study: Any, unit: Any) -> Receipt:
    head, run_id = entry.body.get("budget_heads", {}).get(site), study["run_id"]
    if head is None:
        raise RunDirectoryError(
            f"{path}: this ledger does not name its sites' budgets, so nothing can be "
            "reconciled with it; an older secfed wrote it"
        )
    evaluated = entry.kind in _EVALUATION_KINDS
    return Receipt(
        head=head,
        population=None,
        study_digest=study["study_digest"],
        run_id=evaluation_run(run_id) if evaluated else run_id,
        round=entry.body["round"],
        event=entry.body["spent"][site],
        group=None,
        unit=unit,
    )


def _key_of(path: Path, lines: Sequence[bytes]) -> bytes:
    try:
        return signer_of(lines)
    except LedgerError as error:
        raise RunDirectoryError(f"{path}: {error}") from error


def _receipts_path(private_dir: Path, site: str) -> Path:
    return private_dir / "sites" / site / "receipts.jsonl"
