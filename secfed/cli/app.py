"""The commands of ``secfed`` and their exit codes."""

from __future__ import annotations

import sys
import warnings
from typing import Final, TextIO

import typer

from secfed.cli import budgets, deployment, evidence, keys, methods, planning, runs
from secfed.cli.amplification import amplification
from secfed.cli.approving import approve
from secfed.cli.assign import assign
from secfed.cli.audit import audit
from secfed.cli.bundle import app as bundle_app
from secfed.cli.doctor import doctor
from secfed.cli.incidents import incident, withdraw
from secfed.cli.initial import init
from secfed.cli.model import app as model_app
from secfed.cli.operations import app as operations_app
from secfed.cli.output import SecfedGroup, quiet_libraries, tell
from secfed.cli.policies import policy_app
from secfed.cli.release import app as release_app
from secfed.cli.release import contributions
from secfed.cli.tuning import tuning

__all__ = ["app", "main"]

_HELP: Final = """Private federated fine-tuning of language models.

Every site adds its own noise, the coordinator sees only sums, and the run leaves
evidence that anyone checks offline.

Exit codes: 0 done, 1 other, 2 usage, study or data, 3 verification failed,
4 refused by policy or budget, 5 round aborted, 130 interrupted.

Example: secfed demo
"""

app = typer.Typer(
    name="secfed",
    help=_HELP,
    cls=SecfedGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A traceback of a bug must not print local variables: they may be records.
    pretty_exceptions_enable=False,
)

app.command("demo")(runs.demo)
app.command("init")(init)
app.command("run")(runs.run)
app.command("compare")(runs.compare)
app.command("resume")(runs.resume)
app.command("serve")(deployment.serve)
app.add_typer(deployment.site_app, name="site")
app.add_typer(keys.keys_app, name="keys")
app.command("join")(keys.join)
app.command("approve")(approve)
app.add_typer(policy_app, name="policy")
app.command("status")(deployment.status)
app.command("stop")(deployment.stop)
app.command("withdraw")(withdraw)
app.command("incident")(incident)
app.command("report")(evidence.report)
app.command("plan")(planning.plan)
app.command("doctor")(doctor)
app.command("assign")(assign)
app.command("tuning")(tuning)
app.command("audit")(audit)
app.command("amplification")(amplification)
app.add_typer(budgets.app, name="budget")
app.add_typer(model_app, name="model")
app.add_typer(bundle_app, name="bundle")
app.add_typer(operations_app, name="operations")
app.command("strategies")(methods.strategies)
app.add_typer(release_app, name="release")
app.command("contributions")(contributions)
app.command("verify")(evidence.verify)
app.command("version")(evidence.version)


def main() -> None:
    """Run the command line and exit with its code."""
    if not sys.warnoptions:
        # Deprecations inside other packages are no news for people; ours are.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = _show_warning
    quiet_libraries()
    app(prog_name="secfed")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    tell(f"warning: {message}")
