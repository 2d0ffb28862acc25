"""``report.html``: one file that needs nothing else, for a person to read or print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from secfed.canonical import sha256_hex
from secfed.errors import RunDirectoryError
from secfed.report.charts import Chart, comparison_charts
from secfed.report.conclusion import conclude
from secfed.report.evaluated import evaluated_rows
from secfed.report.plain import describe_protection, statement_table
from secfed.report.reading import RunRecord, read_run
from secfed.report.results import NON_PRIVATE, POOLED
from secfed.report.tables import (
    beside_rows,
    category_rows,
    comparison_rows,
    round_up,
    sum_text,
)

__all__ = ["build_report", "page_environment", "render_report", "write_page"]

_TEMPLATE = "report.html.j2"
_NAME = "report.html"


def build_report(directory: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run and say where.

    Args:
        directory: A run directory or one arm's directory.
        out: The file to write; ``report.html`` in the directory by default.

    Guarantees:
        Equal run directories give equal bytes.

    Raises:
        RunDirectoryError: The directory is not a run, or the file cannot be
            written.
    """
    record = read_run(directory)
    return write_page(render_report(record), record.directory, record.manifest, out)


def write_page(
    text: str,
    directory: Path,
    manifest: Mapping[str, Any],
    out: str | Path | None = None,
) -> Path:
    """Write a page to ``out``, or as a run directory's report.

    Args:
        text: The page.
        directory: The run directory.
        manifest: Its parsed manifest, empty where it has none.
        out: The file to write; ``report.html`` in the directory by default.

    Raises:
        RunDirectoryError: The manifest names another page, or the file cannot be
            written.
    """
    data = text.encode("utf-8")
    path = directory / _NAME if out is None else Path(out)
    if out is None and _signed_digest(manifest) not in {None, sha256_hex(data)}:
        raise RunDirectoryError(
            f"{path}: this version of secfed draws the report differently from the "
            "one that the run's manifest signed, which is kept; give another file "
            "with --out"
        )
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: cannot be written: {error.strerror}"
        ) from error
    return path


def _signed_digest(manifest: Mapping[str, Any]) -> str | None:
    """The digest under which the run's manifest names the report, if it does."""
    files = manifest.get("files")
    value = files.get(_NAME) if isinstance(files, Mapping) else None
    return value if isinstance(value, str) else None


def render_report(record: RunRecord) -> str:
    """The report as one HTML text without scripts, links or requests."""
    epsilon = record.study_value("privacy", "epsilon")
    charts = comparison_charts(
        record.comparison,
        float(epsilon) if isinstance(epsilon, int | float) else None,
    )
    return (
        page_environment()
        .get_template(_TEMPLATE)
        .render(
            comparison=record.comparison,
            conclusion=conclude(record.comparison),
            rows=comparison_rows(record.comparison),
            beside=beside_rows(record.comparison),
            categories=category_rows(record.comparison),
            evaluated=evaluated_rows(record),
            protection=describe_protection(record),
            charts=charts,
            statements=[
                statement_table(name, statement)
                for name, statement in record.statements.items()
            ],
            unstated=[
                arm.name
                for arm in record.comparison.arms
                if arm.name not in record.statements
                and arm.kind not in {NON_PRIVATE, POOLED}
            ],
            record=record,
            round_up=round_up,
            sum_text=sum_text,
        )
    )


def page_environment() -> jinja2.Environment:
    """How every page is made: all that is not ours is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = _trusted_svg
    return environment


def _trusted_svg(chart: Chart) -> Markup:
    # The only markup that is not escaped: made by our own chart code, which
    # escapes every name that it draws.
    return Markup(chart.svg)  # noqa: S704
