"""The commands that read evidence; none of them loads PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.text import Text

from secfed.cli.output import print_json, show
from secfed.errors import VerificationError

if TYPE_CHECKING:
    from secfed.verify import VerificationReport

__all__ = ["report", "show_checks", "show_verification", "trusted", "verify", "version"]

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


def report(
    run: RunDir,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Another place than RUN/report.html."),
    ] = None,
    *,
    markdown: Annotated[
        bool, typer.Option(help="Print the tables as Markdown; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run again: one HTML file that needs nothing else.

    Example: secfed report runs/my-demo --out report.html

    Example: secfed report runs/my-demo --markdown >> notes.md
    """
    if markdown:
        _print_markdown(run, out, as_json=as_json)
        return
    from secfed.report import write_run_report  # noqa: PLC0415

    path = write_run_report(run, out)
    if as_json:
        print_json({"report": str(path)})
    else:
        show(f"report: {path}")


def _print_markdown(run: Path, out: Path | None, *, as_json: bool) -> None:
    if out is not None or as_json:
        raise click.UsageError("--markdown goes with neither --out nor --json")
    from secfed.report.markdown import run_markdown  # noqa: PLC0415

    typer.echo(run_markdown(run), nl=False)


def verify(
    run: RunDir,
    trust: Annotated[
        str | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="The coordinator's key, known from elsewhere than the directory.",
        ),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=FINGERPRINT",
            help="A site's key, known from elsewhere: it has to have cosigned.",
        ),
    ] = None,
    seen: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint kept elsewhere, which the ledger has to extend.",
        ),
    ] = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An incident or withdrawal, beside its salt: the ledger binds it.",
        ),
    ] = None,
    approver: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="Of a release: a person who may approve it; once for each.",
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check a run, a grid or a release offline: signatures, witnesses, epsilon anew.

    Without --trust the answer is UNPINNED: anyone could have written the files.

    Example: secfed verify runs/my-demo --trust 9f86d081...
    """
    from secfed.gate.layout import is_release  # noqa: PLC0415
    from secfed.verify import verify_run  # noqa: PLC0415

    known: dict[str, Any] = {
        "witnesses": dict(_pin(text) for text in witness or ()),
        "seen": seen or (),
        "records": record or (),
    }
    people = [_fingerprint(text, "--approver") for text in approver or ()]
    if is_release(run):
        from secfed.gate.verification import verify_release  # noqa: PLC0415

        result = verify_release(run, trusted(trust), people, **known)
    elif people:
        raise click.BadParameter("belongs to a release", param_hint="--approver")
    else:
        result = verify_run(run, trusted(trust), **known)
    show_verification(result, as_json=as_json)


def _pin(text: str) -> tuple[str, str]:
    site, _, pin = text.partition("=")
    return site, _fingerprint(pin, "--witness")


def version(*, as_json: AsJson = False) -> None:
    """Print the version.

    Example: secfed version
    """
    import secfed  # noqa: PLC0415

    if as_json:
        print_json({"secfed": secfed.__version__})
    else:
        show(f"secfed {secfed.__version__}")


def trusted(fingerprint: str | None) -> str | None:
    """What ``--trust`` says, as people write it.

    Raises:
        click.BadParameter: It is no fingerprint.
    """
    return None if fingerprint is None else _fingerprint(fingerprint, "--trust")


def _fingerprint(text: str, option: str) -> str:
    from secfed.signing import parse_fingerprint  # noqa: PLC0415

    try:
        return parse_fingerprint(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def show_verification(result: VerificationReport, *, as_json: bool) -> None:
    """Print the checks, and end with their exit code.

    Raises:
        VerificationError: A check failed, and words are wanted.
        typer.Exit: A check failed, and JSON was printed.
    """
    if as_json:
        print_json(result.to_json())
    else:
        show_checks(result)
    if result.passed:
        return
    if as_json:
        raise typer.Exit(VerificationError.exit_code)
    failures = result.failures()
    what = result.kind if result.kind in {"bundle", "release"} else "run"
    raise VerificationError(
        f"{result.path}: {len(failures)} of the checks failed, the first is "
        f"{failures[0].name!r}: {failures[0].reason}. Do not use this {what}; get the "
        "directory again from its coordinator"
    )


def show_checks(result: VerificationReport, name: str = "") -> None:
    """Print every check, and whose signature it is."""
    prefix = f"{name}, " if name else ""
    if name:
        show("", Text(name, style="bold"))
    for check in result.checks:
        word, style = ("ok", "green") if check.passed else ("FAILED", "bold red")
        line = Text(f"{check.number:>3}. ")
        line.append(f"{word:<7}", style=style)
        line.append(f"{check.name}: {check.reason}")
        show(line)
    part = "cell" if result.kind == "grid" else "arm"
    for child in result.arms:
        show_checks(child, f"{prefix}{part} {Path(child.path).name}")
    if not name:
        _show_pin(result)


def _show_pin(result: VerificationReport) -> None:
    from secfed.signing import format_fingerprint  # noqa: PLC0415

    key = (
        "none" if result.fingerprint is None else format_fingerprint(result.fingerprint)
    )
    show("", f"signed by: {key}")
    if result.pinned:
        show("PINNED: this is the key that you trust.")
    else:
        show(
            "UNPINNED: the files agree with each other at best; anyone could have "
            "written them. Give the coordinator's fingerprint with --trust."
        )
    if result.passed:
        show("verified")
