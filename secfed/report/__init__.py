"""What people see of a run: tables, charts, the conclusion and ``report.html``.

Everything here is rebuilt from the files of a run directory, without PyTorch,
and the same files give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from secfed.report.conclusion import conclude
from secfed.report.results import Comparison
from secfed.report.tables import write_csv

__all__ = ["Comparison", "conclude", "write_csv", "write_run_report"]


def write_run_report(directory: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a grid, a run or one arm; as ``html.build_report``."""
    # Imported here: the charts' library takes longer to load than the tables need.
    from secfed.report.grid_reading import is_grid_directory  # noqa: PLC0415

    if is_grid_directory(directory):
        from secfed.report.grid_html import build_grid_page  # noqa: PLC0415

        return build_grid_page(directory, out)
    from secfed.report.html import build_report  # noqa: PLC0415

    return build_report(directory, out)
