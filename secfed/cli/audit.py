"""``secfed audit``: does the pipeline keep what its privacy plan claims?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import click
import typer
from rich.text import Text

from secfed.cli.at_site import open_at_site
from secfed.cli.output import print_json, show
from secfed.cli.progress import progress_for
from secfed.cli.runs import policy_file
from secfed.errors import VerificationError

if TYPE_CHECKING:
    from secfed.audit.findings import AuditReport, Finding

__all__ = ["audit"]

_PARTS: Final = {
    "A": "conformance of the training functions (no private data)",
    "B": "Dirac canaries in a copy of the run",
    "C": "data canaries and membership inference on the copy's adapter",
}


def audit(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A study.toml, or a roster.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A new folder, never in a run."),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The audited site; the first by default."),
    ] = None,
    parts: Annotated[
        str, typer.Option(metavar="A,B,C", help="Which parts to run.")
    ] = "A,B,C",
    rounds: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Fewer rounds than the study's."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(metavar="N", min=20, help="Dirac canaries of part B.")
    ] = 2000,
    data_canaries: Annotated[
        int, typer.Option(metavar="N", min=16, help="Data canaries of part C.")
    ] = 200,
    shadows: Annotated[
        int, typer.Option(metavar="N", min=0, help="Shadow runs of part C, for LiRA.")
    ] = 4,
    level: Annotated[
        float, typer.Option(metavar="P", help="Level at which a claim is refuted.")
    ] = 0.01,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Also replay the ledger of a finished run."),
    ] = None,
    site_policy: Annotated[
        Path | None,
        typer.Option(
            "--site-policy",
            metavar="FILE",
            help="The sites' policy, or a deployed site's file; site.toml beside the "
            "study by default.",
        ),
    ] = None,
    *,
    own: Annotated[
        bool, typer.Option("--own", help="Only this site's records are here.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Try to refute a study's privacy claim on a copy of its pipeline.

    Parts B and C train on private records and are charged to the sites' budgets like
    a run each. Nothing of an audit is a release. Exit codes: 0 not refuted, 3 refuted.

    Example: secfed audit examples/icd10_hospitals/study.toml --parts A

    Example: secfed audit study.toml --site north --own --rounds 2

    Example: secfed audit roster.json --site-policy north.toml --rounds 2
    """
    wanted = _wanted(parts)
    if not 0 < level < 1:
        raise click.BadParameter("a level is between 0 and 1", param_hint="--level")
    at = open_at_site(study, policy_file(study, site_policy))
    if at.site and site not in (None, at.site):
        raise click.BadParameter(f"{site_policy} is of {at.site}", param_hint="--site")
    site, own = at.site or site, own or bool(at.site)
    if own and site is None:
        raise click.BadParameter("needs --site", param_hint="--own")
    from secfed.audit.data_canaries import DataSettings  # noqa: PLC0415
    from secfed.audit.dirac import DiracSettings  # noqa: PLC0415
    from secfed.audit.run import AuditRequest, run_audit  # noqa: PLC0415

    request = AuditRequest(
        study=at.manifest.study,
        base_dir=at.base_dir,
        policy=at.policy,
        folder=out or Path("runs", f"audit-{datetime.now(UTC):%Y%m%d-%H%M%S}"),
        site=site,
        own=own,
        parts=wanted,
        rounds=rounds,
        dirac=DiracSettings(canaries=canaries, level=level),
        data=DataSettings(canaries=data_canaries, shadows=shadows, level=level),
        run=run,
    )
    with progress_for() as progress:
        report = run_audit(request, progress)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report, request.folder)
    if report.refuted:
        raise typer.Exit(VerificationError.exit_code)


def _wanted(parts: str) -> tuple[str, ...]:
    chosen = tuple(part.strip().upper() for part in parts.split(","))
    if not set(chosen) <= set(_PARTS) or len(set(chosen)) != len(chosen):
        raise click.BadParameter("parts are A, B and C", param_hint="--parts")
    return chosen


def _show(report: AuditReport, folder: Path) -> None:
    from secfed.audit.findings import CAUTION  # noqa: PLC0415

    about = report.subject
    show(
        f"audit of {about['study']} ({about['method']}) at {about['site']}: "
        f"{about['rounds']} rounds, claimed epsilon {about['claimed_epsilon']:.4g} at "
        f"delta {about['delta']:g}, unit {about['unit']}"
    )
    part = ""
    for found in report.findings:
        if found.part != part:
            part = found.part
            show("", Text(f"{part}. {_PARTS[part]}", style="bold"))
        show(_line(found))
    show("", _cost(report), f"written: {folder / 'audit.json'}", "")
    word, style = ("REFUTED", "bold red") if report.refuted else ("not refuted", "bold")
    show(Text(f"The claim is {word}.", style=style), CAUTION)


def _line(found: Finding) -> Text:
    styles = {"ok": "green", "REFUTED": "bold red", "not run": "yellow"}
    line = Text(f"{found.number:>3}. ")
    line.append(f"{found.verdict:<8}", style=styles[found.verdict])
    line.append(f"{found.name}: {found.text}")
    return line


def _cost(report: AuditReport) -> str:
    about = report.subject
    if not about["charged_rounds"]:
        return "no private record was used, and nothing was charged"
    return (
        f"charged: {about['charged_rounds']} rounds, epsilon "
        f"{about['charged_epsilon']:.4g} beside what the study costs; budget: "
        f"{about['budget']}"
    )
