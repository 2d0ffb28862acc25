"""``secfed serve``, ``site``, ``keys``, ``join``, ``status`` and ``stop``."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from secfed.cli.budgets import tell_alarms
from secfed.cli.output import (
    INTERRUPTED,
    SecfedGroup,
    print_json,
    remember_run,
    show,
    tell,
)
from secfed.cli.progress import progress_for
from secfed.errors import StudyError, VerificationError
from secfed.signing import fingerprint, format_fingerprint, load_or_create

if TYPE_CHECKING:
    from secfed.runtime.roster import Roster
    from secfed.runtime.served import ServeRecord
    from secfed.runtime.site_worker import SiteWorker

__all__ = ["join", "keys_app", "resume_serving", "serve", "site_app", "status", "stop"]

_KEY_NAME = "coordinator.key"
_MAX_PORT = 65535

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Rehearsal = Annotated[
    bool,
    typer.Option("--rehearsal", help="Allow a simulation seed: NOT PRIVATE."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]

keys_app = typer.Typer(
    name="keys",
    help="Keys of a deployment, made where they are used.",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)
site_app = typer.Typer(
    name="site",
    help="A site of a deployment.",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@keys_app.command("new")
def new_keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The keys' folder.")],
) -> None:
    """Make a site's identity and node key; keys that are there are kept.

    Example: secfed keys new keys
    """
    from secfed.runtime.keys import make_site_keys  # noqa: PLC0415

    made = make_site_keys(folder)
    show(f"keys:     {folder} (back it up; show it to nobody)")
    show(f"identity: {format_fingerprint(fingerprint(made.identity.public_bytes))}")


@keys_app.command("operator")
def operator_key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The key to make.")],
) -> None:
    """Make a person's key for approvals; a key that is there is kept.

    Its fingerprint goes into the site's policy, as one of `operators`.

    Example: secfed keys operator anna.key
    """
    key = load_or_create(path)
    show(f"key:         {path} (back it up; show it to nobody)")
    show(f"fingerprint: {key.fingerprint()}")


@keys_app.command("authority")
def authority(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The keys' folder.")],
    hosts: Annotated[
        list[str],
        typer.Option("--host", metavar="NAME", help="A name or address of the server."),
    ],
) -> None:
    """Make a coordinator's keys; the authority and the signing key only once.

    The server's certificate is made anew, for 397 days.

    Example: secfed keys authority keys --host fl.example.org
    """
    from secfed.runtime.keys import (  # noqa: PLC0415
        make_authority,
        make_server_certificate,
    )

    make_authority(folder)
    make_server_certificate(folder, hosts)
    key = load_or_create(folder / _KEY_NAME)
    show(f"keys:        {folder} (back it up; show it to nobody)")
    show(f"coordinator: {format_fingerprint(key.fingerprint())}")


@keys_app.command("roster")
def roster(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")],
    requests: Annotated[
        list[Path], typer.Argument(metavar="REQUEST...", help="One of each site.")
    ],
    folder: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="The coordinator's keys.")
    ],
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where sites connect.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The roster to write.")
    ],
) -> None:
    """Countersign the sites' requests for one study.

    Compare every fingerprint with the site's operator, by telephone, before you give
    the roster away.

    Example: secfed keys roster study.toml *.request.json --keys keys
    --address fl.example.org:8443 --out roster.json
    """
    from secfed.runtime.keys import AUTHORITY_NAME  # noqa: PLC0415
    from secfed.runtime.roster import make_roster, read_request  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    _host_and_port(address)
    read = [read_request(path.read_bytes(), path) for path in requests]
    key = load_or_create(folder / _KEY_NAME)
    certificate = (folder / AUTHORITY_NAME).read_text("ascii")
    data = make_roster(key, load_study(study), address, certificate, read)
    out.write_bytes(data)
    _show_roster(out)


@keys_app.command("revoke")
def revoke_keys(
    path: Annotated[Path, typer.Argument(metavar="ROSTER", help="It is rewritten.")],
    sites: Annotated[list[str], typer.Argument(metavar="SITE...", help="Whose keys.")],
    folder: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="The coordinator's keys.")
    ],
) -> None:
    """Trust the keys of some sites no longer; the study goes on without them.

    Stop the coordinator, revoke, and `secfed resume` the run: a revoked site cannot
    connect, is asked nothing, and its answers are not read. Give the new roster to
    every site. New keys of the site need a new roster and a new run.

    Example: secfed keys revoke roster.json north-general --keys keys
    """
    from secfed.runtime.directory import write_atomically  # noqa: PLC0415
    from secfed.runtime.roster import revoke  # noqa: PLC0415

    key = load_or_create(folder / _KEY_NAME)
    write_atomically(path, revoke(key, path.read_bytes(), sites, path))
    _show_roster(path)


@keys_app.command("show")
def show_keys(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A roster.")],
) -> None:
    """Check a roster and print its fingerprints, to be read aloud.

    Example: secfed keys show roster.json
    """
    _show_roster(path)


def join(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Its name in the study.")],
    folder: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="From `secfed keys new`.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The request to write.")
    ] = None,
) -> None:
    """Write a site's signed request, which goes to the coordinator.

    Example: secfed join north-general --keys keys
    """
    from secfed.runtime.keys import read_site_keys  # noqa: PLC0415

    read = read_site_keys(folder)
    path = out or Path(f"{site}.request.json")
    path.write_bytes(read.request(site))
    show(f"request:  {path}")
    show(f"identity: {format_fingerprint(fingerprint(read.identity.public_bytes))}")


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
    *,
    rehearsal: Rehearsal = False,
    as_json: AsJson = False,
) -> None:
    """Coordinate a study whose sites are on other machines.

    Example: secfed serve study.toml --roster roster.json --keys keys --out runs/first
    """
    from secfed.runtime.roster import read_roster  # noqa: PLC0415
    from secfed.runtime.served import create_served  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    read = read_roster(roster.read_bytes(), roster)
    if load_study(study).digest() != read.study.digest():
        raise VerificationError(f"{roster}: signed for another study than {study}")
    host, port = _host_and_port(listen or read.address)
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
    )
    _serve(out, record, read, as_json=as_json)


def resume_serving(run_dir: Path, *, as_json: bool) -> None:
    """Continue a coordinator's run."""
    from secfed.runtime.roster import read_roster  # noqa: PLC0415
    from secfed.runtime.served import open_served  # noqa: PLC0415

    record = open_served(run_dir)
    path = Path(record.roster)
    _serve(run_dir, record, read_roster(path.read_bytes(), path), as_json=as_json)


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
    from secfed.runtime.serve import check_deployable, serve_rounds  # noqa: PLC0415
    from secfed.runtime.served import StatusProgress, opened  # noqa: PLC0415
    from secfed.runtime.setup import prepare_data  # noqa: PLC0415

    remember_run(click.get_current_context(), run_dir)
    check_deployable(roster.study, rehearsal=record.rehearsal)
    keys, base = Path(record.keys), Path(record.base_dir)
    key = load_or_create(keys / _KEY_NAME)
    if key.public_bytes != roster.coordinator_key:
        raise VerificationError(f"{record.roster}: signed by another key than {keys}'s")
    listener = Listener(
        record.host, record.port, keys / "server.pem", keys / "server.key"
    )
    nodes = roster.nodes
    with opened(run_dir), ending_on_sigterm(), progress_for() as shown:
        progress = StatusProgress(shown, run_dir)
        data = load_holdout(roster.study, base)
        prepared = prepare_data(roster.study, base, data, None, progress)
        deadlines = Deadlines(record.joining, record.training, record.phase)

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
    from secfed.runtime.watched_site import open_watched_site  # noqa: PLC0415

    with ending_on_sigterm():
        with progress_for() as progress:
            ready = open_watched_site(site, progress, _say, rehearsal=rehearsal)
        link = Connection(ready.roster.address, ready.authority, ready.keys.node_file)
        _say(f"ready; connecting to {ready.roster.address}")
        try:
            work(
                link,
                ready.worker.answer,
                ready.state / "flower",
                lambda: ready.worker.finished,
                _say,
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
    """Say where a coordinator's run is.

    Example: secfed status runs/first
    """
    from secfed.runtime.served import status_of  # noqa: PLC0415

    told = status_of(run_dir)
    if as_json:
        print_json(told)
        return
    show(f"state:  {told['state']}")
    if told.get("rounds"):
        show(f"round:  {told['round']} of {told['rounds']}, {told['phase']}")
        show(f"sites:  {', '.join(told['sites']) or 'none yet'}")
        at = datetime.fromtimestamp(told["changed"]).astimezone()
        show(f"since:  {at.isoformat(timespec='seconds')}")


def stop(run_dir: RunDir) -> None:
    """End a coordinator; a round that had begun counts as spent.

    Example: secfed stop runs/first
    """
    from secfed.runtime.served import stop_served  # noqa: PLC0415

    stopped = stop_served(run_dir)
    show("asked to end" if stopped else "no coordinator has this run open")


def _show_roster(path: Path) -> None:
    from secfed.runtime.keys import certificate_fingerprint  # noqa: PLC0415
    from secfed.runtime.roster import read_roster  # noqa: PLC0415

    read = read_roster(path.read_bytes(), path)
    show(f"study:       {read.study.name}, {format_fingerprint(read.study.digest())}")
    show(f"coordinator: {format_fingerprint(fingerprint(read.coordinator_key))}")
    certificate = certificate_fingerprint(read.authority)
    show(f"authority:   {format_fingerprint(certificate)}")
    for name, request in sorted(read.requests.items()):
        mark = " REVOKED" if name in read.revoked else ""
        show(f"{name}: {format_fingerprint(request.fingerprint)}{mark}")


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise StudyError("--address", "", f"{text!r} is not HOST:PORT")
    if not 0 < int(port) <= _MAX_PORT:
        raise click.BadParameter(f"{port} is not a port")
    return host.strip("[]"), int(port)


def _say(text: str) -> None:
    tell(text)
