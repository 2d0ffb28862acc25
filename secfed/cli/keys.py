"""``secfed keys`` and ``secfed join``: keys, requests and rosters of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from secfed.cli.output import SecfedGroup, show
from secfed.errors import StudyError
from secfed.signing import fingerprint, format_fingerprint

if TYPE_CHECKING:
    from secfed.runtime.protection import ProtectingKey
    from secfed.signing import CoordinatorKey

__all__ = ["Protecting", "host_and_port", "join", "keys_app"]

_MAX_PORT = 65535

Protecting = Annotated[
    str | None,
    typer.Option(
        "--protecting-key",
        metavar="WHERE",
        help="What the keys are encrypted under: a path, or keyring:NAME.",
    ),
]
Unprotected = Annotated[
    bool,
    typer.Option("--unprotected", help="Leave new keys unencrypted: a rehearsal."),
]

keys_app = typer.Typer(
    name="keys",
    help="Keys of a deployment, made where they are used.",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@keys_app.command("new")
def new_keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The keys' folder.")],
    where: Protecting = None,
    *,
    unprotected: Unprotected = False,
) -> None:
    """Make a site's identity and node key; keys that are there are kept.

    They are encrypted under a protecting key, which is made where there is none. Keep
    it elsewhere than the keys and their backup.

    Example: secfed keys new keys --protecting-key /etc/secfed/protecting.key
    """
    from secfed.runtime.keys import make_site_keys  # noqa: PLC0415

    made = make_site_keys(
        folder, _protecting_new(folder, where, unprotected=unprotected)
    )
    show(f"keys:     {folder} (back it up; show it to nobody)")
    show(f"identity: {format_fingerprint(fingerprint(made.identity.public_bytes))}")


@keys_app.command("operator")
def operator_key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The key to make.")],
    where: Protecting = None,
    *,
    unprotected: Unprotected = False,
) -> None:
    """Make a person's key for approvals; a key that is there is kept.

    Its fingerprint goes into the site's policy, as one of `operators`. It is encrypted
    as by `secfed keys new`, under a protecting key of that person.

    Example: secfed keys operator anna.key --protecting-key keyring:anna
    """
    from secfed.runtime.keys import make_signing_key  # noqa: PLC0415

    protecting = _protecting_new(path, where, unprotected=unprotected)
    key = make_signing_key(path, protecting)
    show(f"key:         {path} (back it up; show it to nobody)")
    show(f"fingerprint: {key.fingerprint()}")


@keys_app.command("authority")
def authority(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The keys' folder.")],
    hosts: Annotated[
        list[str],
        typer.Option("--host", metavar="NAME", help="A name or address of the server."),
    ],
    where: Protecting = None,
    *,
    unprotected: Unprotected = False,
) -> None:
    """Make a coordinator's keys; the authority and the signing key only once.

    The server's certificate is made anew, for 397 days. Keys are encrypted as by
    `secfed keys new`.

    Example: secfed keys authority keys --host fl.example.org --protecting-key keyring
    """
    from secfed.runtime.keys import (  # noqa: PLC0415
        make_authority,
        make_coordinator_key,
        make_server_certificate,
    )

    protecting = _protecting_new(folder, where, unprotected=unprotected)
    make_authority(folder, protecting)
    make_server_certificate(folder, hosts, protecting)
    key = make_coordinator_key(folder, protecting)
    show(f"keys:        {folder} (back it up; show it to nobody)")
    show(f"coordinator: {format_fingerprint(key.fingerprint())}")


@keys_app.command("protect")
def protect(
    keys: Annotated[
        Path, typer.Argument(metavar="DIR", help="The keys' folder, or one key's file.")
    ],
    where: Protecting = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--was",
            metavar="WHERE",
            help="The protecting key until now, to replace it.",
        ),
    ] = None,
) -> None:
    """Encrypt keys that are not, or change their protecting key.

    The protecting key is made where there is none. What was unencrypted may still be in
    a backup, or in free blocks of the disk: where that matters, make new keys.

    Example: secfed keys protect keys --protecting-key /etc/secfed/protecting.key
    """
    from secfed.runtime.key_places import read_protecting_key  # noqa: PLC0415
    from secfed.runtime.keys import protect_keys  # noqa: PLC0415

    old = None if before is None else read_protecting_key(before)
    protecting = _protecting_new(keys, where, unprotected=False, make=old is not None)
    if protecting is None:
        raise click.UsageError("say --protecting-key WHERE: a path, or keyring:NAME")
    changed = protect_keys(keys, protecting, old)
    show(f"encrypted now: {', '.join(changed) or 'nothing, all were before'}")


def _protecting_new(
    keys: Path, where: str | None, *, unprotected: bool, make: bool = False
) -> ProtectingKey | None:
    """The protecting key for keys that are made or encrypted now.

    It is made where it is named by an option and nothing is encrypted under one yet.
    """
    from secfed.runtime.key_places import (  # noqa: PLC0415
        absolute_place,
        find_protecting_key,
        make_protecting_key,
    )
    from secfed.runtime.keys import any_protected  # noqa: PLC0415

    if unprotected and where is not None:
        raise click.UsageError("--unprotected and --protecting-key exclude each other")
    place = absolute_place(where)
    if place is not None and Path(place).is_relative_to(keys.resolve()):
        raise click.UsageError(f"{where}: beside the keys that it protects")
    if unprotected:
        return None
    if where is not None and (make or not any_protected(keys)):
        return make_protecting_key(where)
    found = find_protecting_key(where)
    if found is None:
        raise click.UsageError(
            "say under what the keys are encrypted: --protecting-key PATH (made where "
            "there is none; keep it elsewhere than the keys), --protecting-key "
            "keyring:NAME, or --unprotected for a rehearsal"
        )
    return found


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
    where: Protecting = None,
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

    host_and_port(address)
    read = [read_request(path.read_bytes(), path) for path in requests]
    key = _coordinator_key(folder, where)
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
    where: Protecting = None,
) -> None:
    """Trust the keys of some sites no longer; the study goes on without them.

    Stop the coordinator, revoke, and `secfed resume` the run: a revoked site cannot
    connect, is asked nothing, and its answers are not read. Give the new roster to
    every site. New keys of the site need a new roster and a new run.

    Example: secfed keys revoke roster.json north-general --keys keys
    """
    from secfed.runtime.directory import write_atomically  # noqa: PLC0415
    from secfed.runtime.roster import revoke  # noqa: PLC0415

    key = _coordinator_key(folder, where)
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
    where: Protecting = None,
) -> None:
    """Write a site's signed request, which goes to the coordinator.

    Example: secfed join north-general --keys keys
    """
    from secfed.runtime.key_places import find_protecting_key  # noqa: PLC0415
    from secfed.runtime.keys import read_site_keys  # noqa: PLC0415

    read = read_site_keys(folder, find_protecting_key(where))
    path = out or Path(f"{site}.request.json")
    path.write_bytes(read.request(site))
    show(f"request:  {path}")
    show(f"identity: {format_fingerprint(fingerprint(read.identity.public_bytes))}")


def _coordinator_key(folder: Path, where: str | None) -> CoordinatorKey:
    """A coordinator's signing key, opened under the protecting key of a place."""
    from secfed.runtime.key_places import find_protecting_key  # noqa: PLC0415
    from secfed.runtime.keys import read_coordinator_key  # noqa: PLC0415

    return read_coordinator_key(folder, find_protecting_key(where))


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


def host_and_port(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise StudyError("--address", "", f"{text!r} is not HOST:PORT")
    if not 0 < int(port) <= _MAX_PORT:
        raise click.BadParameter(f"{port} is not a port")
    return host.strip("[]"), int(port)
