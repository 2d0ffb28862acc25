"""``secfed budget``: what the sites have spent, and how a damaged file is mended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.text import Text
from typer.core import TyperGroup

from secfed.cli.output import plain_table, print_json, show, tell
from secfed.errors import RunDirectoryError

if TYPE_CHECKING:
    from secfed.governance import Outlay
    from secfed.privacy.budget import Account, Charge
    from secfed.privacy.salvage import Salvage

__all__ = ["app", "budget_files", "show_outlays", "tell_alarms"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
_BUDGET_NAME = "budget.sqlite"
_JOURNAL_NAME = "budget.sqlite.log"


class _ShowUnlessNamed(TyperGroup):
    """``secfed budget RUN`` is ``secfed budget show RUN``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the usual command in front where none is named."""
        if not args or args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ShowUnlessNamed,
    help="Show what each site has spent of its privacy budget, or reconcile it.",
    rich_markup_mode=None,
)


@app.command("show")
def show_accounts(
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

    Alarms are given at 50, 80 and 100 % of a limit. A budget that is damaged or
    was restored from an older copy is refused until you mend it with
    secfed budget reconcile FILE --ledger RUN

    Example: secfed budget runs/my-demo/private/sites/city-trauma/budget.sqlite
    """
    from secfed.privacy.budget import Budget  # noqa: PLC0415

    files = budget_files(run_or_file)
    accounts = [(path, account) for path in files for account in Budget.read(path)]
    if as_json:
        print_json({"budgets": [_json(path, account) for path, account in accounts]})
        return
    columns = {
        "site": "left",
        "population": "left",
        "unit": "left",
        "epsilon spent": "right",
        "limit": "right",
        "left": "right",
        "used": "right",
        "delta": "right",
        "charges": "right",
    }
    show(plain_table("Privacy budgets", columns, [_row(a) for _, a in accounts]))
    show("A reserved round costs as much as a finished one and is never given back.")
    for _, account in accounts:
        if account.alarm:
            show(Text(_alarm(account), style="bold red"))
    if history:
        show("", _history([account for _, account in accounts]))


@app.command("export")
def export(
    run_or_file: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_FILE", help="As for `secfed budget show`."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of standard output."),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON instead of CSV.")
    ] = False,
) -> None:
    """Write what each run spent of each population, for a data protection officer.

    One line for each run: its epsilon alone, the epsilon composed with all before it,
    and how much of the limit that is. It stays at the site.

    Example: secfed budget export budgets --out spending.csv
    """
    from secfed.governance.spending import spending, spending_csv  # noqa: PLC0415
    from secfed.privacy.budget import Budget  # noqa: PLC0415

    accounts = [a for file in budget_files(run_or_file) for a in Budget.read(file)]
    rows = [row for account in accounts for row in spending(account)]
    value = {"runs": [asdict(row) for row in rows]}
    if out is None and as_json:
        print_json(value)
        return
    text = json.dumps(value, indent=2) + "\n" if as_json else spending_csv(rows)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise RunDirectoryError(f"{out}: is there already; name another file")
    out.write_text(text, "utf-8")
    show(f"written: {out}")


@app.command("reconcile")
def reconcile(
    budget: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE_OR_FOLDER]",
            help="The budget file, or a folder of them; without it, those of RUN.",
        ),
    ] = None,
    *,
    ledger: Annotated[
        list[Path],
        typer.Option(metavar="RUN", help="A run on these people; give every one."),
    ],
    as_json: AsJson = False,
) -> None:
    """Add what ledgers know and a budget does not, as spent; mend its files.

    For a budget that was damaged or restored from a backup. Give every run that
    these people took part in: what no file and no ledger knows stays forgotten.

    Example: secfed budget reconcile budgets/north/budget.sqlite --ledger runs/a
    """
    from secfed.runtime.receipts import reconcile as mend  # noqa: PLC0415

    done = [(path, mend(path, ledger)) for path in budget_files(budget or ledger[0])]
    if as_json:
        print_json({"reconciled": [_outcome(path, result) for path, result in done]})
        return
    for path, result in done:
        if not result.set_aside:
            show(f"{path}: nothing was missing, nothing was changed")
            continue
        show(f"{path}: {len(result.added)} reservation(s) added, all of them spent")
        for charge in result.added:
            show(f"    round {charge.round} of {charge.run_id}, {charge.population}")
        show(f"    the files as they were: {result.set_aside[0]} and beside it")


def budget_files(path: Path) -> list[Path]:
    """The budgets that a file, a run or a folder of budgets names.

    Raises:
        RunDirectoryError: There is none.
    """
    if path.is_file() or path.with_name(f"{path.name}.log").is_file():
        return [path]
    if not path.is_dir():
        raise RunDirectoryError(
            f"{path}: no such file or directory; give a run directory or a "
            f"{_BUDGET_NAME}"
        )
    journals = {file.with_suffix("") for file in path.rglob(_JOURNAL_NAME)}
    found = sorted(journals | set(path.rglob(_BUDGET_NAME)))
    if not found:
        raise RunDirectoryError(
            f"{path}: no {_BUDGET_NAME} in it; give the run's top directory or the "
            "budget_dir of site.toml (private/ stays at the site and is not part of a "
            "copy)"
        )
    return found


def show_outlays(outlays: Mapping[str, Outlay]) -> None:
    """Print what a study would add to budgets that outlive a run; and alarms."""
    if not outlays:
        return
    from secfed.report.tables import round_up  # noqa: PLC0415

    columns = {"site": "left", "population": "left", "unit": "left"} | dict.fromkeys(
        ("this study", "spent before", "composed after", "limit", "used"), "right"
    )
    rows = [
        [
            site,
            o.population,
            o.unit,
            *map(round_up, (o.own, o.before, o.after)),
            f"{o.limit:g}",
            f"{o.percent:.0f} %",
        ]
        for site, o in outlays.items()
    ]
    show(plain_table("Privacy budgets, before and after", columns, rows))
    for site, o in outlays.items():
        if o.alarm:
            text = f"alarm: the study brings {site} to {o.percent:.0f} % of its limit"
            show(Text(text, style="bold red"))


def tell_alarms(path: Path) -> None:
    """After a run: say what its budgets have reached, beside the results.

    Args:
        path: A budget file, or a folder of them.
    """
    from secfed.privacy.budget import Budget  # noqa: PLC0415

    for file in budget_files(path):
        for account in Budget.read(file):
            if account.alarm:
                tell(_alarm(account))


def _json(path: Path, account: Account) -> dict[str, Any]:
    held = account.population
    return {
        "site": account.site,
        "file": str(path),
        "population": held.name,
        "unit": held.unit,
        "versions": list(held.versions),
        "epsilon_spent": account.spent_epsilon,
        "max_epsilon": held.max_epsilon,
        "epsilon_left": account.remaining,
        "percent": account.percent,
        "alarm": account.alarm,
        "delta": held.delta,
        "charges": [_charge_json(charge) for charge in account.charges],
    }


def _charge_json(charge: Charge) -> dict[str, Any]:
    from secfed.privacy.accounting import event_to_json  # noqa: PLC0415

    return {
        "run": charge.run_id,
        "round": charge.round,
        "state": charge.state,
        "reserved_at": charge.reserved_at,
        "study_digest": charge.study_digest,
        "event": event_to_json(charge.event),
        "unit": charge.unit,
        "group": charge.group,
        "records_per_person": None if charge.unit == "site" else charge.group,
        "head": charge.head,
    }


def _outcome(path: Path, result: Salvage) -> dict[str, Any]:
    return {
        "site": result.site,
        "file": str(path),
        "added": [_charge_json(charge) for charge in result.added],
        "set_aside": [str(file) for file in result.set_aside],
    }


def _row(account: Account) -> list[str]:
    from secfed.report.tables import round_up  # noqa: PLC0415

    held = account.population
    return [
        account.site,
        held.name,
        held.unit,
        round_up(account.spent_epsilon),
        f"{held.max_epsilon:g}",
        f"{account.remaining:.2f}",
        f"{account.percent:.0f} %",
        f"{held.delta:g}",
        str(len(account.charges)),
    ]


def _alarm(account: Account) -> str:
    return (
        f"alarm, {account.alarm} % reached: {account.site} has spent "
        f"{account.percent:.0f} % of the limit of {account.population.name}"
    )


def _history(accounts: list[Account]) -> Any:
    columns = {
        "site": "left",
        "reserved at": "left",
        "run": "left",
        "round": "right",
        "state": "left",
    }
    rows = [
        [
            account.site,
            charge.reserved_at,
            charge.run_id,
            str(charge.round),
            charge.state,
        ]
        for account in accounts
        for charge in account.charges
    ]
    return plain_table("Charges", columns, rows)
