"""``secfed policy``: which rules a study passes here, and the kill switch."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from secfed.cli.at_site import AtSite, open_at_site
from secfed.cli.output import SecfedGroup, plain_table, print_json, show
from secfed.errors import PolicyError

if TYPE_CHECKING:
    from secfed.policy import SitePolicy, Verdict

__all__ = ["policy_app"]

SiteFile = Annotated[
    Path, typer.Option("--site", metavar="FILE", help="The site's file, or its policy.")
]

policy_app = typer.Typer(
    name="policy",
    help="What a site's own rules say of a study, and its kill switch.",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@policy_app.command("check")
def check(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A study.toml, or a roster.")
    ],
    site: SiteFile,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Say for each rule of the policy whether a study passes, and why not.

    Nothing is trained and nothing is spent. Exit code 4: a rule refuses.

    Example: secfed policy check study.toml --site site.toml
    """
    here = open_at_site(study, site)
    found = _verdicts(here)
    refused = [verdict for verdict in found if verdict.refusal]
    if as_json:
        print_json(
            {
                "study_digest": here.manifest.study.digest(),
                "manifest_digest": here.manifest.digest(),
                "population": here.policy.population,
                "passed": not refused,
                "rules": [verdict.to_json() for verdict in found],
            }
        )
    else:
        _show(here, found)
    if refused:
        raise typer.Exit(PolicyError.exit_code)


@policy_app.command("stop")
def stop(
    site: SiteFile,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="For the site's own people.")
    ] = "",
) -> None:
    """Pull the kill switch: no round begins at this site, whatever runs.

    It needs nobody else, also where the coordinator cannot be reached. A round whose
    budget was reserved stays spent.

    Example: secfed policy stop --site site.toml --reason "incident 12"
    """
    path = _stop_file(site)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{now} {' '.join(reason.split())}\n")
        file.flush()
        os.fsync(file.fileno())
    show(f"stopped: {path}; no round begins here before `secfed policy start`")


@policy_app.command("start")
def start(site: SiteFile) -> None:
    """Let rounds begin again after ``secfed policy stop``.

    Example: secfed policy start --site site.toml
    """
    path = _stop_file(site)
    was = path.exists()
    path.unlink(missing_ok=True)
    show("started: rounds may begin again" if was else "this site was not stopped")


def _stop_file(site: Path) -> Path:
    from secfed.policy import load_policy  # noqa: PLC0415
    from secfed.study.reading import read_toml  # noqa: PLC0415

    path = site
    if "coordinator" in read_toml(site):
        from secfed.runtime.site_file import load_site_file  # noqa: PLC0415

        path = site.resolve().parent / load_site_file(site).policy
    policy: SitePolicy = load_policy(path)
    return Path(str(policy.stop_file))


def _verdicts(here: AtSite) -> tuple[Verdict, ...]:
    """What all rules say; of sites in one process, of the smallest."""
    from secfed.policy import Verdict, verdicts  # noqa: PLC0415

    data = here.data()
    least = min(held.num_units for held in data.sites.values())
    found = verdicts(here.policy, here.manifest.study, least)
    plans = here.plans(data)
    rule, key = "budget of all studies", "max_epsilon"
    if not plans:
        text = "no privacy plan exists for these sizes; see `secfed plan`"
        return (*found, Verdict(rule, key, "", text))
    budgets = [
        Verdict(
            rule,
            key,
            f"{site}: epsilon {o.before:.4g} before, {o.after:.4g} with it, at most "
            f"{o.limit:g}",
            f"{site}: {o.refusal()}" if o.refusal() else "",
        )
        for site, o in here.outlays(data, plans).items()
    ]
    return (*found, *budgets)


def _show(here: AtSite, found: tuple[Verdict, ...]) -> None:
    columns = {"": "left", "rule": "left", "key": "left", "reason": "left"}
    rows: list[list[Any]] = [
        ["refused" if v.refusal else "pass", v.rule, v.key, v.refusal or v.text]
        for v in found
    ]
    title = f"Policy of {here.policy.population!r}, study {here.manifest.study.name!r}"
    show(plain_table(title, columns, rows))
    count = sum(bool(verdict.refusal) for verdict in found)
    show(Text(f"{count} rule(s) refuse" if count else "all rules pass"))
