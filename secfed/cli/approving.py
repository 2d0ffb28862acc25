"""``secfed approve``: what an operator reads, and signs or does not."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import click
import typer
from rich.text import Text

from secfed.cli.at_site import AtSite, open_at_site
from secfed.cli.output import print_json, show, tell
from secfed.errors import PolicyError, StudyError

if TYPE_CHECKING:
    from secfed.governance.consent import Standing
    from secfed.governance.summary import Summary
    from secfed.signing import CoordinatorKey

__all__ = ["approve"]

_DAYS: Final = 90
_NONCE_BYTES: Final = 16


def approve(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A study.toml, or a roster.")
    ],
    site: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The site's file, or the sites' policy."),
    ],
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An operator's key; else the site's own."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--protecting-key",
            metavar="WHERE",
            help="What --key is encrypted under: a path, or keyring:NAME.",
        ),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="How long; at most approval_days."),
    ] = None,
    exceptions: Annotated[
        list[str] | None,
        typer.Option(
            "--exception", metavar="NAME", help="semi-honest: trust the coordinator."
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Of a withdrawal; it is signed.")
    ] = "",
    *,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="End the approvals of this study.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON value; signs only with --yes."),
    ] = False,
) -> None:
    """Show what a study would do here, then sign its digest.

    Shown are what leaves this site and what does not, who gets the adapter, epsilon of
    the study and of everything on these people, and what changed since the version
    that was approved before. Any change of the study needs a new approval. Exit code 4:
    a rule or the budget refuses, and nothing is signed.

    Example: secfed approve roster.json --site north.toml
    """
    here = open_at_site(study, site)
    signer = _signer(here, key, where)
    if withdraw:
        _withdraw(here, signer, reason, as_json=as_json)
        return
    summary = _summary(here, tuple(exceptions or ()), days)
    if not as_json:
        show(Text(summary.text()), "")
    elif not yes or summary.refusals:
        print_json(summary.to_json() | {"signed": False})
    if summary.refusals:
        listed = "".join(f"\n  - {text}" for text in summary.refusals)
        error = PolicyError(f"refused, and nothing was signed:{listed}")
        if as_json:
            raise typer.Exit(error.exit_code)
        raise error
    if as_json and not yes:
        return
    if not yes:
        _confirm(summary.manifest.short)
    _sign(here, signer, summary)
    found = _standing(here)
    if as_json:
        print_json(summary.to_json() | _told(found, signer))
    else:
        _say(found)


def _confirm(short: str) -> None:
    """The digits are typed, so that nobody signs by pressing return."""
    typed = typer.prompt(f"To sign, type the first digits of the digest ({short})")
    if typed.strip().lower() != short:
        tell("these are other digits; nothing was signed")
        raise click.Abort


def _signer(here: AtSite, path: Path | None, where: str | None) -> CoordinatorKey:
    """The operator's key or, where none is named, the site's own."""
    if path is None:
        if where is not None:
            raise click.UsageError("--protecting-key is of --key; name both")
        key = here.signer
    else:
        key = _operator_key(path, where)
    if key is None:
        raise StudyError(
            "--key", "", "name an operator's key; make one with `secfed keys operator`"
        )
    if key.fingerprint() not in here.operators:
        raise PolicyError(
            f"{path or 'the key of this site'}: none of the operators in site.toml; "
            f"its fingerprint is {key.fingerprint()}"
        )
    return key


def _operator_key(path: Path, where: str | None) -> CoordinatorKey:
    from secfed.runtime.key_places import find_protecting_key  # noqa: PLC0415
    from secfed.runtime.keys import read_signing_key  # noqa: PLC0415

    return read_signing_key(path, find_protecting_key(where))


def _folder(here: AtSite) -> Path:
    if here.policy.approvals_dir is None:
        raise PolicyError("site.toml names no approvals_dir")
    return Path(here.policy.approvals_dir)


def _standing(here: AtSite) -> Standing:
    from secfed.governance import standing  # noqa: PLC0415

    return standing(
        _folder(here),
        here.manifest,
        site=here.site,
        population=here.policy.population,
        operators=here.operators,
        needed=here.policy.approvals or 1,
        now=datetime.now(UTC),
    )


def _summary(here: AtSite, exceptions: tuple[str, ...], days: int | None) -> Summary:
    from secfed.cli.traffic import numbers_sent, vector_bytes  # noqa: PLC0415
    from secfed.governance import differences  # noqa: PLC0415
    from secfed.governance.summary import Summary, warnings_of  # noqa: PLC0415
    from secfed.policy import MOMENTARY, verdicts  # noqa: PLC0415

    study, before = here.manifest.study, _standing(here)
    data = here.data()
    plans = here.plans(data)
    outlays = here.outlays(data, plans)
    known = before.counted[-1] if before.counted else before.previous
    found = verdicts(
        here.policy,
        study,
        min(held.num_units for held in data.sites.values()),
        without=MOMENTARY,
        exceptions=frozenset(_checked(exceptions)),
    )
    own = {site: data.nominal_units[site] for site in data.sites}
    return Summary(
        manifest=here.manifest,
        policy_of=here.policy.population,
        numbers=numbers_sent(study, here.base_dir),
        upload_bytes=vector_bytes(study, here.base_dir, plans) if plans else None,
        outlays=outlays,
        verdicts=found if plans else (*found, _unplanned()),
        since=known.approved_at if known else None,
        changes=differences(known.manifest, here.manifest) if known else (),
        warnings=warnings_of(study, outlays, own, known is not None, here.tuned_by()),
        exceptions=exceptions,
        expires_at=_end(here, days),
    )


def _checked(exceptions: tuple[str, ...]) -> tuple[str, ...]:
    from secfed.policy import SEMI_HONEST  # noqa: PLC0415

    for name in exceptions:
        if name != SEMI_HONEST:
            raise click.BadParameter(
                f"{name!r}; the one exception is {SEMI_HONEST}",
                param_hint="--exception",
            )
    return exceptions


def _unplanned() -> Any:
    from secfed.policy import Verdict  # noqa: PLC0415

    text = "no privacy plan exists for these sizes; see `secfed plan`"
    return Verdict("privacy plan", "privacy", "", text)


def _end(here: AtSite, days: int | None) -> datetime:
    """At most the policy's days from now, and the study's last day."""
    longest = here.policy.approval_days or _DAYS
    if days is not None and days > longest:
        raise PolicyError(f"--days {days} is above approval_days {longest}")
    end = datetime.now(UTC) + timedelta(days=days or longest)
    last = here.manifest.study.study.expires
    if last is None:
        return end
    return min(end, datetime.fromisoformat(f"{last}T00:00:00Z") + timedelta(days=1))


def _sign(here: AtSite, signer: CoordinatorKey, summary: Summary) -> None:
    from secfed.governance.approvals import approve as sign  # noqa: PLC0415

    sign(
        _folder(here),
        signer,
        here.manifest,
        site=here.site,
        population=here.policy.population,
        exceptions=summary.exceptions,
        shown=summary.text(),
        approved_at=datetime.now(UTC),
        expires_at=summary.expires_at,
        nonce=os.urandom(_NONCE_BYTES),
    )


def _withdraw(
    here: AtSite, signer: CoordinatorKey, reason: str, *, as_json: bool
) -> None:
    """End what was approved of this study, in every version."""
    from secfed.governance.approvals import read_approvals, withdraw  # noqa: PLC0415

    approvals, withdrawals = read_approvals(_folder(here))
    ended = {digest for w in withdrawals for digest in w.approvals}
    mine = (here.site, here.policy.population)
    open_ones = [
        a
        for a in approvals
        if (a.site, a.population) == mine
        and a.manifest.study.name == here.manifest.study.name
        and a.digest not in ended
    ]
    if open_ones:
        now = datetime.now(UTC)
        withdraw(_folder(here), signer, open_ones, reason=reason, withdrawn_at=now)
    if as_json:
        print_json({"withdrawn": [a.digest for a in open_ones]})
        return
    show(f"withdrawn: {len(open_ones)} approval(s) of {here.manifest.study.name}")
    show(
        "No further round begins here. What was released stays released: the privacy "
        "bound of the rounds that ran holds for it, and nothing is unlearned."
    )


def _told(found: Standing, signer: CoordinatorKey) -> dict[str, Any]:
    return {
        "signed": True,
        "operator": signer.fingerprint(),
        "approved": found.approved,
        "signatures": len(found.counted),
        "needed": found.needed,
    }


def _say(found: Standing) -> None:
    show(f"signed: {len(found.counted)} of {found.needed} operators")
    if not found.approved:
        show("Another operator must sign with a key of their own before it runs.")
