"""Continue what was interrupted, from the run directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secfed.runtime.compare import run_comparison
from secfed.runtime.directory import open_run
from secfed.runtime.local import run_study
from secfed.runtime.progress import Progress

__all__ = ["resume_run"]


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
    if record.kind == "compare":
        return run_comparison(
            study, base_dir, run_dir, record.methods, record.seeds, policy, progress
        )
    return run_study(study, base_dir, run_dir, policy, progress)
