"""``secfed operations``: the log that a security team reads, and its chain."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import click
import typer

from secfed.cli.output import SecfedGroup, print_json, show

__all__ = ["app"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
LogFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="operations.jsonl, or an older file.")
]
Seen = Annotated[
    str | None,
    typer.Option(metavar="HASH", help="SHA-256 of a line that must be in it."),
]

app = typer.Typer(
    name="operations",
    help="The operations log of a site or a coordinator: show it, check its chain.",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("show")
def show_log(
    path: LogFile,
    actions: Annotated[
        list[str] | None,
        typer.Option("--action", metavar="NAME", help="An event.action; repeatable."),
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(metavar="LEVEL", help="info, warning or error; repeatable."),
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Or how it begins.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="For example 2027-03-31T08:00Z.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show the events of a log whose chain is whole.

    Example: secfed operations show state/operations.jsonl --level warning
    """
    from secfed.operations import KINDS, read_log, selected  # noqa: PLC0415

    for name in actions or ():
        if name not in KINDS:
            raise click.BadParameter(
                f"{name!r} is not one of {', '.join(KINDS)}", param_hint="--action"
            )
    lines = selected(
        read_log(path).lines,
        actions=actions or (),
        levels=level or (),
        study=study,
        since=None if since is None else _time(since),
    )
    if as_json:
        print_json({"events": [line.value for line in lines]})
        return
    for line in lines:
        value = line.value
        show(f"{line.time} {value['log.level']:7} {line.action}: {value['message']}")


@app.command("verify")
def verify_log(path: LogFile, seen: Seen = None, *, as_json: AsJson = False) -> None:
    """Check the chain of a log, its older files first; exit code 3 where it breaks.

    The chain cannot show that the end was cut off. Give --seen the hash of a line that
    was shipped elsewhere.

    Example: secfed operations verify state/operations.jsonl
    """
    from secfed.operations import read_log  # noqa: PLC0415

    found = read_log(path, seen)
    first = found.lines[0].sequence if found.lines else 0
    if as_json:
        told = {
            "whole": True,
            "files": [str(file) for file in found.files],
            "events": len(found.lines),
            "first_sequence": first,
            "head": found.head,
        }
        print_json(told)
        return
    show(f"whole:  {len(found.lines)} events in {len(found.files)} file(s)")
    if found.lines and not found.complete:
        show(f"begins: with event {first}; what was before it is not here")
    show(f"head:   {found.head}")


@app.command("record")
def show_record(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A withdrawal or an incident.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Check the signature of a withdrawal or an incident, and show it.

    Example: secfed operations record withdrawal.json
    """
    from secfed.runtime.signed_records import read_record  # noqa: PLC0415
    from secfed.signing import fingerprint, format_fingerprint  # noqa: PLC0415

    fields = read_record(path.read_bytes(), path)
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        if name not in {"key", "signature"}:
            text = value if isinstance(value, str) else json.dumps(value)
            show(f"{name + ':':14}{text}")
    shown = format_fingerprint(fingerprint(bytes.fromhex(fields["key"])))
    show(f"{'signed by:':14}{shown}", "compare it with the roster")


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error
    if found.tzinfo is None:
        raise click.BadParameter(
            "say the time zone, as in 08:00Z", param_hint="--since"
        )
    return found
