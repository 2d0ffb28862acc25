"""``secfed withdraw`` and ``secfed incident``: what operators do when they must."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from secfed.cli.output import print_json, show

if TYPE_CHECKING:
    from secfed.runtime.withdrawal import Withdrawal

__all__ = ["incident", "withdraw"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


def withdraw(
    site: Annotated[
        Path,
        typer.Argument(
            metavar="SITE", help="The site's file; with --received, a run directory."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A copy to send.")
    ] = None,
    *,
    received: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="At the coordinator: what a site sent.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Withdraw a site from the study of its roster; future rounds only.

    The site answers no further order of the study. What it sent until now is in the
    sums and in every adapter made of them: nothing is unlearned. The signed statement
    lists what is affected and the bound that remains.

    The coordinator gives the statement to its run, also to one that goes on: the site
    is asked nothing from the next round on, and the ledger binds the statement.

    Example: secfed withdraw north.toml --out withdrawal.json
    secfed withdraw runs/first --received withdrawal.json
    """
    if received is not None:
        _receive(site, received, as_json=as_json)
        return
    from secfed.runtime.directory import write_atomically  # noqa: PLC0415
    from secfed.runtime.site_file import (  # noqa: PLC0415
        keys_of,
        load_site_file,
        pinned_roster,
    )
    from secfed.runtime.watched_site import log_of_site  # noqa: PLC0415
    from secfed.runtime.withdrawal import withdraw as end  # noqa: PLC0415

    own, folder = load_site_file(site), site.resolve().parent
    keys = keys_of(own, folder)
    study = pinned_roster(own, folder, keys).study
    if not yes:
        click.confirm(
            f"{own.site} will never again take part in study {study.name}. Withdraw?",
            abort=True,
            err=True,
        )
    state = folder / own.state
    done = end(study, own.site, keys, folder / own.policy, state)
    if done.new:
        log = log_of_site(site).about(study=study.digest())
        log.event("withdrawn", sha256=done.sha256)
    if out is not None:
        write_atomically(out, done.data)
    if as_json:
        print_json(done.fields)
        return
    _show_withdrawal(done, study.name)


def _receive(run_dir: Path, file: Path, *, as_json: bool) -> None:
    from secfed.canonical import file_sha256  # noqa: PLC0415
    from secfed.runtime.notices import receive_withdrawal  # noqa: PLC0415
    from secfed.runtime.served import open_served, roster_of  # noqa: PLC0415
    from secfed.runtime.watching import log_of_run  # noqa: PLC0415

    record = open_served(run_dir)
    roster = roster_of(record)
    site = receive_withdrawal(run_dir, roster, file.read_bytes(), file)
    log = log_of_run(run_dir, roster.study, record.run_id, "coordinator")
    log.event("withdrawn", sha256=file_sha256(file), site=site)
    released = (run_dir / "statement.json").is_file()
    if as_json:
        print_json({"run": str(run_dir), "site": site, "released": released})
    elif released:
        show(f"received: from {site}; the run is released, and its ledger has ended")
    else:
        show(f"received: {site} is asked nothing from the next round on")


def _show_withdrawal(done: Withdrawal, study: str) -> None:
    fields = done.fields
    show(f"{fields['by']} withdrew from study {study} at {fields['at']}")
    show(f"effect:    {fields['effect']}")
    for run in fields["runs"]:
        rounds = ", ".join(map(str, run["rounds"]))
        show(
            f"affected:  run {run['run']}, which this site was charged for in {rounds}:"
        )
        show("           every adapter from then on, and what was made of it")
        if run["final_adapter_sha256"]:
            show(f"           the last one, SHA-256 {run['final_adapter_sha256']}")
    if not fields["runs"]:
        show("affected:  nothing; the study was paid for in no round")
    if fields["epsilon"] is None:
        show("bound:     none. NOT PRIVATE: the study names a simulation seed")
        return
    from secfed.report.tables import round_up  # noqa: PLC0415

    show(
        f"bound:     epsilon {round_up(fields['epsilon'])}, delta {fields['delta']:g} "
        f"for each {fields['unit']} of this site, on all that it sent in the study"
    )


def incident(
    where: Annotated[
        Path,
        typer.Argument(
            metavar="SITE_OR_RUN", help="A site's file, or a run directory."
        ),
    ],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="What happened.")],
    noticed: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it was seen; now by default."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Record an incident: a signed file, and a line of the operations log.

    KIND is one of key-lost, key-stolen, machine-compromised, budget-damaged,
    evidence-mismatch, unexpected-message, data-exposure-suspected, wrong-data-used,
    malfunction. There is no free text. A record stops nothing: see the runbook in
    docs/for-it-security.md.

    Example: secfed incident north.toml --kind key-stolen
    """
    from secfed.operations import INCIDENTS  # noqa: PLC0415

    if kind not in INCIDENTS:
        raise click.BadParameter(
            f"{kind!r} is not one of {', '.join(INCIDENTS)}", param_hint="--kind"
        )
    from secfed.runtime.incidents import record_incident  # noqa: PLC0415
    from secfed.runtime.signed_records import read_record  # noqa: PLC0415

    path, data = record_incident(where, kind, _moment(noticed))
    if as_json:
        print_json({"file": str(path), **read_record(data, path)})
        return
    show(f"recorded: {path}")


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--noticed") from error
    if found.tzinfo is None:
        raise click.BadParameter("say the time zone, as 08:00Z", param_hint="--noticed")
    return found
