"""A grid: one ordinary comparison per cell, each in its own run directory.

Whatever holds for a comparison holds for a cell: it is resumed, verified and
reported by itself. The grid adds the order, the tables over cells and a manifest
over everything.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json, file_sha256
from secfed.data import load_sites
from secfed.errors import CellsFailedError, PolicyError, RunDirectoryError
from secfed.manifest import MANIFEST_NAME, list_files, write_manifest
from secfed.policy import SitePolicy
from secfed.policy import check as check_policy
from secfed.privacy.asked import plan_for
from secfed.privacy.composed import CellPlans, composed_epsilon
from secfed.report.grid_html import write_grid_report
from secfed.report.results import POOLED
from secfed.runtime.arms import Arm
from secfed.runtime.cells import CellEvents, CellJob, Limits, Outcome, run_cells
from secfed.runtime.compare import plan_arms
from secfed.runtime.directory import create_run, write_atomically
from secfed.signing import CoordinatorKey, load_or_create
from secfed.study import Study
from secfed.study.grid import Cell, grid_cells
from secfed.verify import verify_run
from secfed.verify.grid import grid_epsilon

__all__ = ["run_grid"]

_MANY_UNITS = 10**9
"""A site of any size: what a policy refuses for a small one is found in the cell."""


def run_grid(
    study: Study,
    base_dir: Path,
    run_dir: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    policy: SitePolicy,
    events: CellEvents,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Finish every cell, then write the grid's tables, report and manifest.

    Continues where an earlier call with the same arguments stopped; a finished
    cell is not repeated. A grid in which a cell failed has a report and no manifest.

    Returns:
        The content of ``grid.json``.

    Raises:
        CellsFailedError: A cell failed; the others are finished.
        SecfedError: The study, a policy or the directory stands against it.
    """
    started = time.perf_counter()
    cells = grid_cells(study)
    limits = limits or Limits()
    # 1. What can be refused is refused before a cell starts.
    arms = {cell.name: plan_arms(cell.study, methods, seeds) for cell in cells}
    for arm in (arm for planned in arms.values() for arm in planned):
        check_policy(policy, arm.study, _MANY_UNITS)
    if policy.budget_dir is not None:
        _require_affordable(cells, arms, base_dir, policy)
        # One budget for all cells, which two processes would wait for.
        limits = Limits(1, limits.memory_bytes)
    record = create_run(
        run_dir, study, base_dir, policy, kind="grid", methods=methods, seeds=seeds
    )
    with _locked(run_dir / "private" / "lock") as descriptor:
        (run_dir / MANIFEST_NAME).unlink(missing_ok=True)
        key = load_or_create(run_dir / "private" / "coordinator.key")
        # 2. The cells that are not finished yet.
        jobs = []
        for cell in cells:
            folder = run_dir / cell.run
            if not (folder / MANIFEST_NAME).is_file():
                _open_cell(cell, folder, Path(record.base_dir), policy, methods, seeds)
                _share_key(run_dir, folder)
                rounds = sum(
                    arm.study.training.rounds
                    for arm in arms[cell.name]
                    if arm.kind != POOLED  # It keeps no lines that could be counted.
                )
                jobs.append(CellJob(cell.name, folder, rounds))
        if len(jobs) < len(cells):
            events.note(f"{len(cells) - len(jobs)} of {len(cells)} cells are finished")
        outcomes = run_cells(jobs, limits, events, (descriptor,))
        # 3. What they say together.
        done = [_evidence(cell, run_dir, outcomes.get(cell.name)) for cell in cells]
        grid = {
            "format": 1,
            "title": study.study.title,
            "study_digest": study.digest(),
            "methods": list(methods),
            "seeds": list(seeds),
            "budget": "shared" if policy.budget_dir else "rehearsal",
            "cells": done,
            "composed_epsilon": _composed(study, done, run_dir, key),
            "delta": study.privacy.delta,
            "seconds": round(time.perf_counter() - started, 3),
            "simulation_seed": study.simulation.seed,
        }
        write_atomically(run_dir / "grid.json", canonical_json(grid) + b"\n")
        grid = write_grid_report(run_dir)
        failed = {c["name"]: str(c["reason"]) for c in done if c["status"] == "failed"}
        if failed:
            raise CellsFailedError(run_dir, failed, len(cells))
        write_manifest(run_dir, study.digest(), key)
    return grid


def _require_affordable(
    cells: Sequence[Cell],
    arms: Mapping[str, Sequence[Arm]],
    base_dir: Path,
    policy: SitePolicy,
) -> None:
    """On a lasting budget: all cells together, or none.

    What earlier studies spent is asked when a cell starts.
    """
    planned = []
    for cell in cells:
        private = sum(arm.private for arm in arms[cell.name])
        units = load_sites(cell.study, base_dir).nominal_units
        plans = {site: plan_for(cell.study, units[site]) for site in cell.study.sites}
        planned.append(CellPlans(str(cell.alpha), (plans,) * private))
    total = composed_epsilon(planned, policy.delta)
    if total > policy.max_epsilon:
        raise PolicyError(
            f"the whole grid would cost epsilon {total:.4g}, above max_epsilon "
            f"{policy.max_epsilon:g} of {policy.population!r}; nothing was spent. Use "
            "fewer cells, or rehearse on public text"
        )


def _open_cell(
    cell: Cell,
    folder: Path,
    base_dir: Path,
    policy: SitePolicy,
    methods: Sequence[str],
    seeds: Sequence[int],
) -> None:
    """Make the cell's run directory, or find the one that was made."""
    begun = (folder / "private" / "run.json").is_file()
    if folder.is_dir() and not begun and not (folder / "arms").exists():
        shutil.rmtree(folder)  # An interruption came while it was made.
    create_run(
        folder,
        cell.study,
        base_dir,
        policy,
        kind="compare",
        methods=methods,
        seeds=seeds,
    )


def _share_key(run_dir: Path, folder: Path) -> None:
    """One coordinator signs the grid and its cells, so one fingerprint pins all."""
    source, target = (d / "private" / "coordinator.key" for d in (run_dir, folder))
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def _evidence(cell: Cell, run_dir: Path, outcome: Outcome | None) -> dict[str, Any]:
    """The cell's object of ``grid.json``; a cell counts only if it verifies."""
    folder = run_dir / cell.run
    reason = outcome.reason if outcome else ""
    if not reason and not (folder / MANIFEST_NAME).is_file():
        reason = "it ended without a manifest"
    if not reason:
        found = verify_run(folder).failures()
        reason = f"it does not verify: {found[0].reason}" if found else ""
    digest = None if reason else file_sha256(folder / "comparison.json")
    return {
        "name": cell.name,
        "epsilon": cell.epsilon,
        "alpha": cell.alpha,
        "rank": cell.rank,
        "run": cell.run,
        "study_digest": cell.study.digest(),
        "status": "failed" if reason else "finished",
        "reason": reason,
        "comparison_sha256": digest,
    }


def _composed(
    study: Study, done: Sequence[Mapping[str, Any]], run_dir: Path, key: CoordinatorKey
) -> float | None:
    """What all cells would cost the same people; None while one is missing."""
    if any(entry["status"] == "failed" for entry in done):
        return None
    names = list_files(run_dir)
    return grid_epsilon(
        study, lambda name: names[name].read_bytes(), names, key.public_bytes
    )


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """One process at a time; the cells' processes hold the lock as well.

    Raises:
        RunDirectoryError: Another process works on this grid.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{path.parents[1]}: another process works on this grid; wait for it "
                "or end it"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)
