"""``secfed serve``, ``site``, ``status`` and ``stop``."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from secfed.cli.budgets import tell_alarms
from secfed.cli.keys import Protecting, host_and_port
from secfed.cli.output import (
    INTERRUPTED,
    SecfedGroup,
    print_json,
    remember_run,
    show,
    tell,
)
from secfed.cli.progress import progress_for
from secfed.errors import VerificationError

if TYPE_CHECKING:
    from secfed.runtime.roster import Roster
    from secfed.runtime.served import ServeRecord
    from secfed.runtime.site_worker import SiteWorker

__all__ = ["resume_serving", "serve", "site_app", "status", "stop"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Rehearsal = Annotated[
    bool,
    typer.Option("--rehearsal", help="Allow a simulation seed: NOT PRIVATE."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
site_app = typer.Typer(
    name="site",
    help="A site of a deployment.",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def serve(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")],
    roster: Annotated[
        Path, typer.Option(metavar="FILE", help="From `secfed keys roster`.")
    ],
    folder: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="The coordinator's keys.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The run directory to make.")
    ],
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The roster's address by default."),
    ] = None,
    joining: Annotated[
        float, typer.Option(metavar="SECONDS", help="To wait for sites to join.")
    ] = 300.0,
    training: Annotated[
        float, typer.Option(metavar="SECONDS", help="To wait for local training.")
    ] = 3600.0,
    phase: Annotated[
        float, typer.Option(metavar="SECONDS", help="To wait in any other phase.")
    ] = 120.0,
    where: Protecting = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="Serve /healthz and /metrics on loopback."),
    ] = None,
    also_sign: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names keys that sign the ledger, too."),
    ] = None,
    *,
    or_resume: Annotated[
        bool,
        typer.Option(
            "--or-resume", help="Continue the run in --out if there is one: a service."
        ),
    ] = False,
    rehearsal: Rehearsal = False,
    as_json: AsJson = False,
) -> None:
    """Coordinate a study whose sites are on other machines.

    Example: secfed serve study.toml --roster roster.json --keys keys --out runs/first
    """
    from secfed.runtime.key_places import absolute_place  # noqa: PLC0415
    from secfed.runtime.metrics_server import loopback  # noqa: PLC0415
    from secfed.runtime.roster import read_roster  # noqa: PLC0415
    from secfed.runtime.served import create_served, is_served  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    if or_resume and is_served(out):
        resume_serving(out, as_json=as_json)
        return
    if metrics is not None:
        loopback(metrics)
    read = read_roster(roster.read_bytes(), roster)
    if load_study(study).digest() != read.study.digest():
        raise VerificationError(f"{roster}: signed for another study than {study}")
    host, port = host_and_port(listen or read.address)
    record = create_served(
        out,
        roster=str(roster.resolve()),
        keys=str(folder.resolve()),
        base_dir=str(study.resolve().parent),
        host=host,
        port=port,
        rehearsal=rehearsal,
        joining=joining,
        training=training,
        phase=phase,
        protecting_key=absolute_place(where),
        metrics=metrics,
        also_sign=None if also_sign is None else str(also_sign.resolve()),
    )
    _serve(out, record, read, as_json=as_json)


def resume_serving(run_dir: Path, *, as_json: bool) -> None:
    """Continue a coordinator's run."""
    from secfed.runtime.served import open_served, roster_of  # noqa: PLC0415

    record = open_served(run_dir)
    _serve(run_dir, record, roster_of(record), as_json=as_json)


def _serve(
    run_dir: Path, record: ServeRecord, roster: Roster, *, as_json: bool
) -> None:
    """Prepare what is public, open the listener, run the rounds, show the run."""
    from secfed.cli.runs import show_run  # noqa: PLC0415
    from secfed.data.own import load_holdout  # noqa: PLC0415
    from secfed.runtime.deployed import Deadlines  # noqa: PLC0415
    from secfed.runtime.ending import ending_on_sigterm  # noqa: PLC0415
    from secfed.runtime.envelope import Post  # noqa: PLC0415
    from secfed.runtime.flower.coordinator import Listener, coordinate  # noqa: PLC0415
    from secfed.runtime.key_places import find_protecting_key  # noqa: PLC0415
    from secfed.runtime.keys import read_coordinator_key, read_server  # noqa: PLC0415
    from secfed.runtime.metrics_server import serving_metrics  # noqa: PLC0415
    from secfed.runtime.serve import check_deployable, serve_rounds  # noqa: PLC0415
    from secfed.runtime.served import opened  # noqa: PLC0415
    from secfed.runtime.sessions import smallest_sum  # noqa: PLC0415
    from secfed.runtime.setup import prepare_data  # noqa: PLC0415
    from secfed.runtime.signers import open_signers  # noqa: PLC0415
    from secfed.runtime.status import StatusProgress  # noqa: PLC0415

    remember_run(click.get_current_context(), run_dir)
    check_deployable(roster.study, rehearsal=record.rehearsal)
    keys, base = Path(record.keys), Path(record.base_dir)
    protecting = find_protecting_key(record.protecting_key)
    key = read_coordinator_key(keys, protecting)
    if key.public_bytes != roster.coordinator_key:
        raise VerificationError(f"{record.roster}: signed by another key than {keys}'s")
    also = open_signers(Path(record.also_sign)) if record.also_sign else ()
    listener = Listener(record.host, record.port, *read_server(keys, protecting))
    nodes, study = roster.nodes, roster.study
    deadlines = Deadlines(record.joining, record.training, record.phase)
    with ExitStack() as stack:
        stack.enter_context(opened(run_dir))
        stack.enter_context(ending_on_sigterm())
        progress = StatusProgress(
            stack.enter_context(progress_for()),
            run_dir,
            needed=smallest_sum(study),
            epsilon_limit=study.privacy.epsilon,
            deadline_seconds=max(record.joining, record.training, record.phase),
        )
        stack.enter_context(progress.noting_the_end())
        stack.enter_context(serving_metrics(record.metrics, progress.vitals))
        data = load_holdout(roster.study, base)
        prepared = prepare_data(roster.study, base, data, None, progress)

        def run(post: Post) -> None:
            serve_rounds(
                roster,
                prepared,
                run_dir,
                record.run_id,
                key,
                post,
                deadlines,
                progress,
                rehearsal=record.rehearsal,
                also=also,
            )

        coordinate(listener, nodes, run_dir / "private" / "flower", run)
    show_run(run_dir, as_json=as_json)


@site_app.command("run")
def run_site(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="The site's file.")],
    *,
    rehearsal: Rehearsal = False,
) -> None:
    """Take part in a study until it is finished; only the installed secfed is run.

    The file says who this site is and pins the coordinator's fingerprint; see
    docs/deployment.md.

    Example: secfed site run north.toml
    """
    from secfed.runtime.ending import ending_on_sigterm  # noqa: PLC0415
    from secfed.runtime.flower.site import Connection, work  # noqa: PLC0415
    from secfed.runtime.metrics_server import serving_metrics  # noqa: PLC0415
    from secfed.runtime.watched_site import open_watched_site  # noqa: PLC0415

    with ending_on_sigterm():
        with progress_for() as progress:
            ready = open_watched_site(site, progress, _say, rehearsal=rehearsal)
        link = Connection(
            ready.roster.address, ready.authority, ready.keys.node_private
        )
        _say(f"ready; connecting to {ready.roster.address}")
        try:
            with serving_metrics(ready.metrics, ready.watched.vitals):
                work(
                    link,
                    ready.watched.answer,
                    ready.state / "flower",
                    lambda: ready.worker.finished,
                    _say,
                    ready.watched.linked,
                )
        except KeyboardInterrupt:
            ready.worker.event("interrupted")
            _end_at_once(ready.worker, INTERRUPTED)
            raise
        tell_alarms(ready.worker.budget_file)
        _end_at_once(ready.worker, 0)


def _end_at_once(worker: SiteWorker, code: int) -> None:
    """End without waiting where local training still runs: nobody wants its result.

    The interpreter would end that thread inside a matrix product, and abort. All that
    must not be forgotten is on the disk already.
    """
    if not worker.training:
        return
    _say("ended while training; the round's budget stays spent")
    sys.stdout.flush()
    os._exit(code)


@site_app.callback()
def site() -> None:
    """Keep ``run`` a command of its own, though it is the only one."""


def status(run_dir: RunDir, *, as_json: AsJson = False) -> None:
    """Say where a coordinator's run is, or how it ended and what to do next.

    The state is running, finished, stopped, aborted, refused, failed, or killed (it
    ended without a word).

    Example: secfed status runs/first
    """
    from secfed.runtime.served import status_of  # noqa: PLC0415

    told = status_of(run_dir)
    if as_json:
        print_json(told)
        return
    error = f" ({told['error']})" if told.get("error") else ""
    show(f"state:   {told['state']}{error}")
    if told.get("rounds"):
        phase = f", {told['phase']}" if told["phase"] else ""
        show(f"round:   {told['round']} of {told['rounds']}{phase}")
        needed = f"; {told['needed']} needed" if told.get("needed") else ""
        show(f"sites:   {', '.join(told['sites']) or 'none yet'}{needed}")
    if told.get("epsilon") is not None:
        limit = f" of {told['epsilon_limit']:g}" if told.get("epsilon_limit") else ""
        show(f"epsilon: {told['epsilon']:.3f}{limit}, by the rounds that ended")
    if "changed" in told:
        at = datetime.fromtimestamp(told["changed"]).astimezone()
        show(f"since:   {at.isoformat(timespec='seconds')}")
    if told["state"] not in {"running", "finished"}:
        show(f"next:    secfed resume {shlex.quote(str(run_dir))}")


def stop(
    run_dir: RunDir,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="To wait until it has ended.")
    ] = 60.0,
    *,
    as_json: AsJson = False,
) -> None:
    """End a coordinator; a round that had begun counts as spent.

    Exit code 0 when none runs any more; 1 when it has not ended in time.

    Example: secfed stop runs/first
    """
    from secfed.runtime.served import stop_served  # noqa: PLC0415

    stopped = stop_served(run_dir, wait)
    if as_json:
        print_json({"stopped": stopped})
        return
    show("ended" if stopped else "no coordinator has this run open")


def _say(text: str) -> None:
    tell(text)
