"""``secfed release``: a request, two people, a bundle; and ``secfed contributions``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.text import Text

from secfed.cli.output import SecfedGroup, plain_table, print_json, show
from secfed.errors import RunDirectoryError
from secfed.signing import (
    CoordinatorKey,
    fingerprint,
    format_fingerprint,
    load_or_create,
    parse_fingerprint,
)

if TYPE_CHECKING:
    from secfed.verify import VerificationReport

__all__ = ["app", "contributions"]

_KEY = Path("private", "coordinator.key")

app = typer.Typer(
    name="release",
    help="Release an adapter: a request, two people's approvals, a bundle.",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A candidate: what a request wrote.")
]
Approvers = Annotated[
    list[str] | None,
    typer.Option(
        "--approver",
        metavar="FINGERPRINT",
        help="Count this person's key only; once for each.",
    ),
]


@app.command("key")
def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The key's file.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a person's key for approvals; a key that is there is kept.

    Each person keeps their own, on their own machine, and tells its fingerprint to
    those who verify.

    Example: secfed release key keys/ada.key
    """
    made = load_or_create(path)
    if as_json:
        print_json({"key": str(path), "fingerprint": made.fingerprint()})
        return
    show(f"key:         {path} (yours alone; show it to nobody)")
    show(f"fingerprint: {format_fingerprint(made.fingerprint())}")


@app.command("request")
def request(
    run: RunDir,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The candidate; a new folder.")
    ],
    audit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="audit.json of `secfed audit`, or its DIR."),
    ] = None,
    waive: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Release although something is not met; everybody will read why.",
        ),
    ] = None,
    coordinator_key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="RUN/private/coordinator.key else."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The base model's name on a hub."),
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", metavar="ID", help="A hub's licence id.")
    ] = "unknown",
    intended_use: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="For the model card; UNKNOWN without."),
    ] = None,
    approvals: Annotated[
        int, typer.Option(metavar="N", min=2, max=20, help="How many people sign.")
    ] = 2,
    *,
    as_json: AsJson = False,
) -> None:
    """Ask for a release: write a candidate that people can look at and sign.

    The run has to verify. It needs a privacy guarantee and an attack report of its
    study that does not refute it; without, --waive says why it is released all the
    same, and the model card begins with that. Nothing is released yet.

    Example: secfed audit study.toml --out audit
    && secfed release request runs/first --audit audit --out candidate

    Exit codes: 0 written, 2 usage, 3 the run or the report does not verify, 4 a
    requirement is not met.
    """
    from secfed.gate.candidate import Asked, make_request  # noqa: PLC0415
    from secfed.gate.documents import CardFacts  # noqa: PLC0415

    try:
        card = CardFacts(
            base_model=base_model, license=licence, intended_use=intended_use
        )
    except ValueError as error:
        raise click.BadParameter("one line, and a licence id as the hub has") from error
    signer = _existing_key(coordinator_key or _key_of(run))
    made = make_request(Asked(run, signer, out, audit, waive, card, approvals))
    if as_json:
        print_json({"candidate": str(out), "digest": made.digest()} | _told(made))
        return
    show(f"candidate: {out} (nothing is released yet)")
    show(f"digest:    {made.digest()}")
    for name in made.waived:
        show(Text(f"WAIVED:    {name}: {made.reason}", style="bold red"))
    show(
        "",
        f"{made.approvals_needed} people read {out / 'README.md'} and sign, each with "
        "their own key:",
    )
    show(f"  secfed release show {out}")
    show(f"  secfed release approve {out} --key FILE --name NAME --role ROLE")


@app.command("approve")
def approve(
    folder: Folder,
    key_file: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="Your own key.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Yours; it is released.")],
    role: Annotated[
        str, typer.Option(metavar="ROLE", help="In which you sign, like DPO.")
    ],
    digest: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The request's digest, from elsewhere."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Approve a request: check the candidate, then sign its digest with your key.

    The signature binds every file: adapter, settings, statement, card, report and
    ledger. On another machine, approve a copy and send back the one new file.

    Example: secfed release approve candidate --key ada.key --name "Ada L." --role DPO

    Exit codes: 0 signed, 3 a check failed, 4 this person may not or did already.
    """
    from secfed.gate.sealing import approve as sign  # noqa: PLC0415

    signer = _existing_key(key_file)
    _require_digest(folder, digest)
    try:
        made = sign(folder, signer, name, role)
    except ValueError as error:
        raise click.BadParameter("name and role are one line each") from error
    path = folder / "approvals" / made.file_name()
    if as_json:
        print_json(made.model_dump(mode="json") | {"file": str(path)})
        return
    show(f"approved: {made.request_digest}")
    show(f"by:       {made.name} ({made.role})")
    show(f"key:      {format_fingerprint(made.fingerprint())}")
    show(f"file:     {path}")


@app.command("bundle")
def bundle(
    folder: Folder,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The release; a new folder.")
    ],
    key_file: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="The coordinator's key.")
    ],
    approver: Approvers = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Release a candidate that enough people approved: check all, sign, copy.

    Example: secfed release bundle candidate --key runs/first/private/coordinator.key
    --out release

    Exit codes: 0 released, 3 a check failed, 4 too few people approved.
    """
    from secfed.gate.sealing import make_bundle  # noqa: PLC0415

    pins = _fingerprints(approver)
    made = make_bundle(folder, _existing_key(key_file), out, pins)
    signer = fingerprint(bytes.fromhex(made.coordinator_key))
    if as_json:
        print_json({"release": str(out), "files": len(made.files), "signed_by": signer})
        return
    show(f"release: {out} ({len(made.files)} files; plain PEFT loads this folder)")
    show(f"check:   secfed verify {out} --trust {signer}")


@app.command("show")
def show_release(
    folder: Folder, approver: Approvers = None, *, as_json: AsJson = False
) -> None:
    """Show what a candidate or a release is, and every check; writes nothing.

    Example: secfed release show candidate
    """
    from secfed.cli.evidence import show_checks  # noqa: PLC0415
    from secfed.gate.layout import is_release  # noqa: PLC0415
    from secfed.gate.verification import look_at  # noqa: PLC0415

    if not is_release(folder):
        raise RunDirectoryError(f"{folder}: neither a candidate nor a release")
    report = look_at(folder, _fingerprints(approver))
    if as_json:
        print_json(report.to_json())
        return
    _show_request(folder, report)
    show_checks(report)


def contributions(run: RunDir, *, as_json: AsJson = False) -> None:
    """Show what each site gave to a run, computed from its signed ledger.

    Rounds, uptime, epsilon spent and the declared size as a power of ten. There is no
    score of single updates: they are masked.

    Example: secfed contributions runs/first --json
    """
    from secfed.gate.candidate import run_contributions  # noqa: PLC0415

    record = run_contributions(run)
    if as_json:
        print_json(record)
        return
    headings = ("Asked", "Completed", "Uptime", "Epsilon", "Size")
    rows = [_contribution(site, own) for site, own in record["sites"].items()]
    title = f"{record['study']}: {record['rounds_completed']} rounds"
    show(plain_table(title, {"Site": "left", **dict.fromkeys(headings, "right")}, rows))
    show("", f"ledger head {record['ledger_head']}", record["score_of_single_updates"])


def _contribution(site: str, own: dict[str, Any]) -> list[str]:
    uptime, spent = own["uptime_of_all"], own["epsilon_spent"]
    return [
        site,
        str(own["rounds_asked"]),
        str(own["rounds_completed"]),
        "-" if uptime is None else f"{uptime:.0%}",
        "none" if spent is None else f"{spent:.4g}",
        own["declared_size"],
    ]


def _show_request(folder: Path, report: VerificationReport) -> None:
    from secfed.gate.documents import Request  # noqa: PLC0415
    from secfed.gate.layout import REQUEST  # noqa: PLC0415
    from secfed.verify.files import read_plain  # noqa: PLC0415

    found = Request.read(read_plain(folder / REQUEST, REQUEST), REQUEST)
    show(f"{report.kind}: {folder}", f"digest:    {found.digest()}")
    for name in found.waived:
        show(Text(f"WAIVED:    {name}: {found.reason}", style="bold red"))
    show("")


def _told(made: Any) -> dict[str, Any]:
    return {
        "approvals_needed": made.approvals_needed,
        "waived": list(made.waived),
        "reason": made.reason,
        "ledger_head": made.ledger_head,
    }


def _require_digest(folder: Path, digest: str | None) -> None:
    from secfed.errors import VerificationError  # noqa: PLC0415
    from secfed.gate.documents import Request  # noqa: PLC0415
    from secfed.gate.layout import REQUEST  # noqa: PLC0415

    if digest is None:
        return
    found = Request.read((folder / REQUEST).read_bytes(), REQUEST).digest()
    if found != digest.strip().lower():
        raise VerificationError(f"{folder}: the request's digest is {found}")


def _fingerprints(texts: list[str] | None) -> list[str]:
    try:
        return [parse_fingerprint(text) for text in texts or ()]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--approver") from error


def _key_of(run: Path) -> Path:
    """The key in the run, or in the comparison or grid that it is an arm of."""
    for above in (run, *run.resolve().parents[:4]):
        if (above / _KEY).is_file():
            return above / _KEY
    return run / _KEY


def _existing_key(path: Path) -> CoordinatorKey:
    if not path.is_file():
        raise RunDirectoryError(
            f"{path}: there is no key; name it with --key, or make one with "
            "`secfed release key`"
        )
    return load_or_create(path)
