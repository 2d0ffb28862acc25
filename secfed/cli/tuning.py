"""``secfed tuning``: what the runs cost by which a study's settings were chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from secfed.cli.output import print_json
from secfed.errors import RunDirectoryError

if TYPE_CHECKING:
    from secfed.entries import RunCosts
    from secfed.study import Study

__all__ = ["ledgers_of", "tuning"]

_LEDGER: Final = "ledger.jsonl"
_COPIES: Final = frozenset({"private", "teacher", "tuning"})


def tuning(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="The study.toml that was tuned.")
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Runs, comparisons or grids that were looked at, or their ledgers.",
        ),
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Show what runs cost that were looked at, and print the table that names them.

    A step size that was chosen by its score on private records depends on them. Put the
    table into the study: what those runs spent is then recorded, composed with the
    study's own cost, and charged where it is not yet. Name every run that was looked
    at, the bad ones too. A run without privacy is refused: nothing bounds what it says.

    Example: secfed tuning study.toml runs/sweep-1 runs/sweep-2 >> study.toml
    """
    from secfed.canonical import file_sha256  # noqa: PLC0415
    from secfed.earlier_runs import costs_of  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    asked = load_study(study)
    found = {path: file_sha256(path) for run in runs for path in ledgers_of(run)}
    costs = [
        costs_of(path.read_bytes(), asked, f"{path}: ", evaluations=True)
        for path in found
    ]
    pinned = [
        {"ledger": _relative(path, study.resolve().parent), "sha256": digest}
        for path, digest in found.items()
    ]
    sites = _sites(costs, asked)
    if as_json:
        print_json({"tuning": {"data": "private", "runs": pinned}, "sites": sites})
        return
    typer.echo(_table(pinned, sites, asked.privacy.delta))


def ledgers_of(run: Path) -> Iterator[Path]:
    """The ledgers of a run, of a comparison's arms or of a grid's cells.

    Raises:
        RunDirectoryError: There is none.
    """
    if run.is_file():
        yield run
        return
    found = [
        path
        for path in sorted(run.rglob(_LEDGER))
        if not _COPIES & set(path.relative_to(run).parts)
    ]
    if not found:
        raise RunDirectoryError(f"{run}: no run directory; no {_LEDGER} is in it")
    yield from found


def _relative(path: Path, folder: Path) -> str:
    """As the study file names it, also where it lies beside its folder."""
    return Path(os.path.relpath(path.resolve(), folder)).as_posix()


def _sites(costs: list[RunCosts], study: Study) -> dict[str, dict[str, Any]]:
    """Each site's runs, and what all their charges cost together."""
    from secfed.earlier_runs import charges_at, events_at  # noqa: PLC0415
    from secfed.privacy import accounting  # noqa: PLC0415

    return {
        site: {
            "runs": len({charge.run_id for charge in charges_at(costs, site)}),
            "epsilon": accounting.epsilon(events_at(costs, site), study.privacy.delta),
            "delta": study.privacy.delta,
        }
        for site in sorted({site for own in costs for site in own.spent})
    }


def _table(
    pinned: list[dict[str, str]], sites: dict[str, dict[str, Any]], delta: float
) -> str:
    """The table of the study file; what the runs cost stands in it as comments."""
    spent = [
        f"#   {site}: {own['epsilon']:.4g}, of {own['runs']} runs"
        for site, own in sites.items()
    ]
    listed = [
        "\n[[tuning.runs]]"
        f"\nledger = {json.dumps(run['ledger'], ensure_ascii=False)}"
        f'\nsha256 = "{run["sha256"]}"'
        for run in pinned
    ]
    head = f"\n# Epsilon that these runs spent together, at delta {delta:g}:"
    return "\n".join([head, *spent, "[tuning]", 'data = "private"', *listed])
