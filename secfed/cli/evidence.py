"""The commands that read evidence; none of them loads PyTorch."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.text import Text

from secfed.cli.output import plain_table, print_json, show
from secfed.errors import RunDirectoryError, VerificationError

if TYPE_CHECKING:
    from secfed.verify import VerificationReport

__all__ = ["budget", "report", "strategies", "verify", "version"]

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
_BUDGET_NAME = "budget.sqlite"


def report(
    run: RunDir,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Another place than RUN/report.html."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run again: one HTML file that needs nothing else.

    Example: secfed report runs/my-demo --out report.html
    """
    from secfed.report import write_run_report  # noqa: PLC0415

    path = write_run_report(run, out)
    if as_json:
        print_json({"report": str(path)})
    else:
        show(f"report: {path}")


def budget(
    run_or_file: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_FILE", help="A run directory or budget file."),
    ],
    *,
    history: Annotated[
        bool, typer.Option("--history", help="Also list every charge.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what each site has spent of its privacy budget.

    Example: secfed budget runs/my-demo/private/sites/city-trauma/budget.sqlite
    """
    accounts = [
        account for path in _budget_files(run_or_file) for account in _accounts(path)
    ]
    if as_json:
        print_json({"budgets": accounts})
        return
    columns = {
        "site": "left",
        "population": "left",
        "unit": "left",
        "epsilon spent": "right",
        "limit": "right",
        "left": "right",
        "delta": "right",
        "charges": "right",
    }
    show(plain_table("Privacy budgets", columns, [_account_row(a) for a in accounts]))
    show("A reserved round costs as much as a finished one and is never given back.")
    if history:
        show("", _history_table(accounts))


def strategies(*, as_json: AsJson = False) -> None:
    """List the aggregation methods.

    Example: secfed strategies
    """
    from secfed.strategies import STRATEGIES  # noqa: PLC0415

    if as_json:
        keys = ("name", "title", "exact", "needs", "refusal", "reference")
        listed = [{k: getattr(s, k) for k in keys} for s in STRATEGIES.values()]
        print_json({"strategies": listed})
        return
    for strategy in STRATEGIES.values():
        exact = "exact" if strategy.exact else "not exact"
        show(Text.assemble((strategy.name, "bold"), f"  {strategy.title}"))
        show(Text(f"    {exact} under sums; {strategy.reference}"))
        if strategy.refusal:
            show(Text(f"    refused under masking: {strategy.refusal}"))


def verify(
    run: RunDir,
    trust: Annotated[
        str | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="The coordinator's key, known from elsewhere than the directory.",
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check a run offline: files, signatures, hash chain, recomputed epsilon.

    Without --trust the answer is UNPINNED: anyone could have written the files.

    Example: secfed verify runs/my-demo --trust 9f86d081...
    """
    from secfed.signing import parse_fingerprint  # noqa: PLC0415
    from secfed.verify import verify_run  # noqa: PLC0415

    if trust is not None:
        try:
            trust = parse_fingerprint(trust)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--trust") from error
    result = verify_run(run, trust)
    if as_json:
        print_json(result.to_json())
    else:
        _show_checks(result)
    if result.passed:
        return
    if as_json:
        raise typer.Exit(VerificationError.exit_code)
    failures = result.failures()
    raise VerificationError(
        f"{run}: {len(failures)} of the checks failed, the first is "
        f"{failures[0].name!r}: {failures[0].reason}. Do not use this run; get the "
        "directory again from its coordinator"
    )


def version(*, as_json: AsJson = False) -> None:
    """Print the version.

    Example: secfed version
    """
    import secfed  # noqa: PLC0415

    if as_json:
        print_json({"secfed": secfed.__version__})
    else:
        show(f"secfed {secfed.__version__}")


def _show_checks(result: VerificationReport, name: str = "") -> None:
    if name:
        show("", Text(f"arm {name}", style="bold"))
    for check in result.checks:
        word, style = ("ok", "green") if check.passed else ("FAILED", "bold red")
        line = Text(f"{check.number:>3}. ")
        line.append(f"{word:<7}", style=style)
        line.append(f"{check.name}: {check.reason}")
        show(line)
    for arm in result.arms:
        _show_checks(arm, Path(arm.path).name)
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


def _budget_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RunDirectoryError(
            f"{path}: no such file or directory; give a run directory or a "
            f"{_BUDGET_NAME}"
        )
    found = sorted(path.rglob(_BUDGET_NAME))
    if not found:
        raise RunDirectoryError(
            f"{path}: no {_BUDGET_NAME} in it; give the run's top directory or the "
            "budget_dir of site.toml (private/ stays at the site and is not part of a "
            "copy)"
        )
    return found


def _accounts(path: Path) -> list[dict[str, Any]]:
    from secfed.privacy.accounting import event_to_json  # noqa: PLC0415
    from secfed.privacy.budget import Budget  # noqa: PLC0415

    held = Budget(path, _owner(path), create=False)
    accounts = []
    for population in held.populations():
        # Read only: opening with the limits that are there changes nothing.
        held.open(
            population.name, population.unit, population.max_epsilon, population.delta
        )
        charges = held.history()
        accounts.append(
            {
                "site": held.site,
                "file": str(path),
                "population": population.name,
                "unit": population.unit,
                "epsilon_spent": held.spent_epsilon() if charges else 0.0,
                "max_epsilon": population.max_epsilon,
                "epsilon_left": held.remaining(),
                "delta": population.delta,
                "charges": [
                    {
                        "run": charge.run_id,
                        "round": charge.round,
                        "state": charge.state,
                        "reserved_at": charge.reserved_at,
                        "study_digest": charge.study_digest,
                        "event": event_to_json(charge.event),
                    }
                    for charge in charges
                ],
            }
        )
    return accounts


def _owner(path: Path) -> str:
    """The site that a budget file names as its own; ``Budget`` checks the rest."""
    from secfed.privacy.budget import BudgetFileError  # noqa: PLC0415

    location = f"{path.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(location, uri=True)) as database:
            row = database.execute("SELECT name FROM site").fetchone()
    except sqlite3.Error as error:
        raise BudgetFileError(f"{path}: not a budget file ({error})") from error
    return str(row[0]) if row else ""


def _account_row(account: dict[str, Any]) -> list[str]:
    from secfed.report.tables import round_up  # noqa: PLC0415

    return [
        account["site"],
        account["population"],
        account["unit"],
        round_up(account["epsilon_spent"]),
        f"{account['max_epsilon']:g}",
        f"{account['epsilon_left']:.2f}",
        f"{account['delta']:g}",
        str(len(account["charges"])),
    ]


def _history_table(accounts: list[dict[str, Any]]) -> Any:
    columns = {
        "site": "left",
        "reserved at": "left",
        "run": "left",
        "round": "right",
        "state": "left",
    }
    rows = [
        [
            account["site"],
            charge["reserved_at"],
            charge["run"],
            str(charge["round"]),
            charge["state"],
        ]
        for account in accounts
        for charge in account["charges"]
    ]
    return plain_table("Charges", columns, rows)
