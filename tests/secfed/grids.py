"""Grids as a runtime would write them: signed evidence, made-up scores, no training."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import evidence

from secfed.canonical import canonical_json, file_sha256
from secfed.manifest import list_files, write_manifest
from secfed.report.grid_html import write_grid_report
from secfed.report.html import build_report
from secfed.signing import CoordinatorKey
from secfed.study import Study, load_study_dict
from secfed.study.grid import Cell, grid_cells
from secfed.verify.grid import grid_epsilon

METHODS = ("fedavg", "ffa-lora")
HEAD, UPPER = "head-only", "non-private"

Score = Callable[[Cell, str, int], float]
Value = dict[str, Any]


def grid_values(**compare: object) -> Value:
    """The study of ``evidence`` with a grid in ``[compare]``."""
    values = copy.deepcopy(evidence.STUDY)
    values["compare"] = {"methods": list(METHODS), "seeds": [0], **compare}
    rates = values["training"]["learning_rate"]
    for method in values["compare"]["methods"]:
        rates.setdefault(method, 0.001)
    return values


def grid_study(**compare: object) -> Study:
    return load_study_dict(grid_values(**compare), "grid")


def level(_cell: Cell, _method: str, _seed: int) -> float:
    """Every method scores the same."""
    return 0.6


def arms_of(cell: Cell, seeds: Sequence[int]) -> list[tuple[str, str, str, int]]:
    """(name, method, kind, seed) of every arm of a cell."""
    found = []
    asked = cell.study.compare
    methods = asked.methods if asked else METHODS
    head = asked is None or HEAD in asked.baselines
    for seed in seeds:
        end = f"-s{seed}" if len(seeds) > 1 else ""
        kind, base = ("private", "baseline") if cell.epsilon else (UPPER, UPPER)
        found += [(f"{m}{end}", m, kind, seed) for m in methods]
        if head:
            found.append((f"{HEAD}{end}", HEAD, base, seed))
        if cell.epsilon:
            found.append((f"{UPPER}{end}", "fedavg", UPPER, seed))
    return found


def write_grid(
    run: Path,
    study: Study,
    score: Score = level,
    key: CoordinatorKey = evidence.KEY,
    seeds: Sequence[int] = (0,),
    failed: Mapping[str, str] | None = None,
) -> None:
    """Write a grid; cells named in ``failed`` have a reason instead of results."""
    failed = failed or {}
    (run / "private").mkdir(parents=True, mode=0o700)
    (run / "private" / "coordinator.key").write_bytes(b"secret")
    (run / "study.json").write_bytes(canonical_json(study.canonical()) + b"\n")
    cells = grid_cells(study)
    for cell in cells:
        if cell.name not in failed:
            write_cell(run / cell.run, cell, score, key, seeds)
    names = list_files(run)
    composed = grid_epsilon(
        study, lambda name: names[name].read_bytes(), names, key.public_bytes
    )
    value = {
        "format": 1,
        "title": study.study.title,
        "study_digest": study.digest(),
        "methods": list(study.compare.methods if study.compare else METHODS),
        "seeds": list(seeds),
        "budget": "rehearsal",
        "cells": [_entry(run, cell, failed.get(cell.name, "")) for cell in cells],
        "composed_epsilon": None if failed else composed,
        "delta": study.privacy.delta,
        "seconds": 1.0,
        "simulation_seed": None,
    }
    (run / "grid.json").write_bytes(canonical_json(value) + b"\n")
    write_grid_report(run)
    if not failed:
        write_manifest(run, study.digest(), key)


def write_cell(
    folder: Path, cell: Cell, score: Score, key: CoordinatorKey, seeds: Sequence[int]
) -> None:
    """One comparison with evidence for every arm."""
    arms = []
    for name, method, kind, seed in arms_of(cell, seeds):
        private = kind != UPPER
        evidence.write_run(
            folder / "arms" / name,
            key=key,
            private=private,
            study=cell.study.with_seed(seed).with_method(method),
        )
        final = score(cell, method, seed)
        arms.append(
            {
                "name": name,
                "method": method,
                "kind": kind,
                "seed": seed,
                "run": f"arms/{name}",
                "rounds": evidence.metrics_lines(private),
                "final": {"accuracy": final, "macro_f1": final / 2},
                "epsilon_max": cell.epsilon if private else None,
                "bytes_up": 1000 * len(method),
                "bytes_down": 2000,
            }
        )
    comparison = {
        "format": 1,
        "title": cell.study.study.title,
        "study_digest": cell.study.digest(),
        "arms": arms,
        "majority": {"accuracy": 0.5, "macro_f1": 0.1},
    }
    (folder / "comparison.json").write_bytes(canonical_json(comparison) + b"\n")
    (folder / "study.json").write_bytes(canonical_json(cell.study.canonical()) + b"\n")
    build_report(folder)
    write_manifest(folder, cell.study.digest(), key)


def _entry(run: Path, cell: Cell, reason: str) -> Value:
    path = run / cell.run / "comparison.json"
    shown = {k: v for k, v in dataclasses.asdict(cell).items() if k != "study"}
    return {
        **shown,
        "run": cell.run,
        "study_digest": cell.study.digest(),
        "status": "failed" if reason else "finished",
        "reason": reason,
        "comparison_sha256": None if reason else file_sha256(path),
    }
