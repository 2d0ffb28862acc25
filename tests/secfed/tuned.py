"""Finished runs whose scores were looked at, and the study that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evidence

from secfed.canonical import file_sha256
from secfed.entries import (
    RunCosts,
)
from secfed.privacy import accounting
from secfed.runtime.earlier import open_tuning
from secfed.study import Study, load_study_dict

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


def two_runs(folder: Path) -> list[Path]:
    """The ledgers of two finished runs that nothing connects."""
    return [sweep(folder / "one", FIRST), sweep(folder / "two", SECOND)]


def table(ledgers: list[Path], **own: Any) -> dict[str, Any]:
    runs = [{"ledger": str(path), "sha256": file_sha256(path)} for path in ledgers]
    return {"data": "private", "settings": "step sizes", "runs": runs, **own}


def tuned(tuning: dict[str, Any], seed: int | None = None, unit: Any = "record"):
    values = evidence.make_study(seed, unit=unit).canonical()
    return load_study_dict({**values, "tuning": tuning}, "tuned")


def read(ledgers: list[Path], study: Study | None = None) -> tuple[RunCosts, ...]:
    study = study or tuned(table(ledgers))
    return tuple(run.costs for run in open_tuning(study, Path()))
