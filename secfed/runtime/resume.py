"""Continue what was interrupted, from the run directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secfed.errors import RunDirectoryError
from secfed.runtime.cells import CellEvents, Limits, NoEvents
from secfed.runtime.compare import run_comparison
from secfed.runtime.directory import open_run
from secfed.runtime.grid import run_grid
from secfed.runtime.local import run_study
from secfed.runtime.progress import Progress

__all__ = ["resume_grid", "resume_run"]


def resume_grid(
    run_dir: Path, events: CellEvents, limits: Limits | None = None
) -> dict[str, Any]:
    """Finish a grid; its finished cells are not repeated.

    Raises:
        RunDirectoryError: There is no grid here.
        SecfedError: As ``run_grid``.
    """
    study, record, policy = open_run(run_dir)
    if record.kind != "grid":
        raise RunDirectoryError(f"{run_dir}: a {record.kind}, not a grid")
    return run_grid(
        study,
        Path(record.base_dir),
        run_dir,
        record.methods,
        record.seeds,
        policy,
        events,
        limits,
    )


def resume_run(run_dir: Path, progress: Progress) -> dict[str, Any]:
    """Finish a run or comparison.

    An interrupted round counts as spent and is not repeated; the remaining
    rounds run, so the total never exceeds the study's epsilon. A finished run is
    read back unchanged.

    Raises:
        RunDirectoryError: There is nothing to continue here.
        SecfedError: As the run itself.
    """
    study, record, policy = open_run(run_dir)
    base_dir = Path(record.base_dir)
    if record.kind == "grid":
        return resume_grid(run_dir, NoEvents())
    if record.kind == "compare":
        return run_comparison(
            study, base_dir, run_dir, record.methods, record.seeds, policy, progress
        )
    if record.kind == "simulation":
        # Flower is imported where somebody simulates with it.
        from secfed.runtime.simulated import run_simulation  # noqa: PLC0415

        return run_simulation(study, base_dir, run_dir, policy, progress)
    return run_study(study, base_dir, run_dir, policy, progress)
