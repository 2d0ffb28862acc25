"""``secfed tuning``: what the runs cost by which a study's settings were chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from secfed.cli.output import print_json, tell
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
    table into the study, in the place of a [tuning] that it has: what those runs spent
    is then recorded, composed with the study's own cost, and charged where it is not
    yet. Name every run that was looked at, the bad ones too. A run without privacy is
    refused, as nothing bounds what it says; of a comparison that has one, name the
    other arms' folders, if nobody chose by it.

    Example: secfed tuning study.toml runs/sweep-1 runs/sweep-2
    """
    from secfed.earlier_runs import EarlierRun, costs_of  # noqa: PLC0415
    from secfed.runtime.earlier import read_evidence  # noqa: PLC0415

    asked, replaces = _without_tuning(study)
    read = {path: read_evidence(path) for run in runs for path in ledgers_of(run)}
    earlier = [
        EarlierRun(data, costs_of(data, asked, f"{path}: ", evaluations=True))
        for path, data in read.items()
    ]
    folder = study.resolve().parent
    pinned = [
        {"ledger": _relative(path, folder), "sha256": run.costs.ledger_sha256}
        for path, run in zip(read, earlier, strict=True)
    ]
    sites = _sites([run.costs for run in earlier], asked)
    if as_json:
        print_json({"tuning": {"data": "private", "runs": pinned}, "sites": sites})
    else:
        signed = [run.signed for run in earlier]
        typer.echo(_table(pinned, signed, sites, asked.privacy.delta))
    if strangers := sorted(sites.keys() - set(asked.sites)):
        tell(
            f"no sites of this study: {', '.join(strangers)}. What was spent there is "
            "composed with nobody here; a site that had another name then is not known"
        )
    if replaces:
        tell(f"{study} has a [tuning] already; put this table in its place")


def _without_tuning(path: Path) -> tuple[Study, bool]:
    """The study as it is but for its ``[tuning]``, and whether it has one."""
    from secfed.study import load_study_dict  # noqa: PLC0415
    from secfed.study.reading import read_toml  # noqa: PLC0415

    values = read_toml(path)
    had = values.pop("tuning", None) is not None
    return load_study_dict(values, path), had


def ledgers_of(run: Path) -> Iterator[Path]:
    """The ledgers of a run, of a comparison's arms or of a grid's cells.

    Raises:
        RunDirectoryError: There is none.
    """
    if run.is_file():
        yield run
        return
    found = [path for path in sorted(run.rglob(_LEDGER)) if not _is_copy(path, run)]
    if not found:
        raise RunDirectoryError(f"{run}: no run directory; no {_LEDGER} is in it")
    yield from found


def _is_copy(ledger: Path, run: Path) -> bool:
    """Whether it is what a run keeps of another's ledger, or of its own."""
    return any(
        folder.name in _COPIES and (folder.parent / "study.json").exists()
        for folder in ledger.parents
        if folder.is_relative_to(run) and folder != run
    )


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
    pinned: list[dict[str, str]],
    signed: list[str],
    sites: dict[str, dict[str, Any]],
    delta: float,
) -> str:
    """The table of the study file; what the runs cost stands in it as comments."""
    spent = [
        f"#   {site}: {own['epsilon']:.4g}, of {own['runs']} runs"
        for site, own in sites.items()
    ]
    listed = [
        f"\n# {who}\n[[tuning.runs]]"
        f"\nledger = {json.dumps(run['ledger'], ensure_ascii=False)}"
        f'\nsha256 = "{run["sha256"]}"'
        for run, who in zip(pinned, signed, strict=True)
    ]
    head = f"\n# Epsilon that these runs spent together, at delta {delta:g}:"
    return "\n".join([head, *spent, "[tuning]", 'data = "private"', *listed])
