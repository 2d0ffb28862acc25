"""``secfed doctor``: what would stop a run here, and how fast this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from secfed.cli.output import print_json, show, tell

if TYPE_CHECKING:
    from secfed.doctor import Finding
    from secfed.profiles.profile import SiteProfile
    from secfed.study import Study

__all__ = ["doctor"]

_STOPS = 1


def doctor(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A site's file or folder; or a study."),
    ],
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, help="For every step on the network."),
    ] = 5.0,
    site: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --measure and a study: which site."),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="N,N", help="Tokens to measure at.")
    ] = None,
    ranks: Annotated[
        str | None, typer.Option(metavar="N,N", help="Ranks to measure at.")
    ] = None,
    micro_batches: Annotated[
        str | None, typer.Option(metavar="N,N", help="Tokens at once to measure at.")
    ] = None,
    quantisations: Annotated[
        str | None, typer.Option(metavar="A,B", help="none, nf4, int8 to measure at.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="profile.json beside PATH if left."),
    ] = None,
    *,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time training on made-up tokens, no checks."),
    ] = False,
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal", help="As of `secfed site run`.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Check this machine for a study, at a site of a deployment or at home.

    At a site the coordinator of its roster is contacted, and nobody else; at home
    there is no network. No record, count or secret is printed. Exit code 1: something
    would stop a run. With --measure a profile of this machine is written instead.

    Example: secfed doctor north.toml
    """
    if measure:
        grid = (lengths, ranks, micro_batches, quantisations)
        _measure(path, site, grid, out, as_json=as_json)
        return
    from secfed.doctor.examine import examine, kind_of  # noqa: PLC0415

    tell("examining; records and model are read here and stay here")
    findings = examine(path, timeout, rehearsal=rehearsal)
    stops = any(finding.stops for finding in findings)
    if as_json:
        print_json(
            {
                "situation": kind_of(path)[0],
                "findings": [finding.to_json() for finding in findings],
                "stops": stops,
            }
        )
    else:
        _show(findings)
    if stops:
        raise typer.Exit(_STOPS)


def _show(findings: tuple[Finding, ...]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        status = "UNKNOWN" if finding.status == "unknown" else finding.status
        line = f"{status:<8} {finding.check:<{width}}  {finding.text}"
        show(Text(line + (f". Mend: {finding.mend}" if finding.mend else "")))
    stopping = [finding.check for finding in findings if finding.stops]
    if stopping:
        show(Text(f"A run would be stopped by: {', '.join(stopping)}."))
    else:
        show(Text("Nothing that was checked stops a run."))


def _measure(
    path: Path,
    site: str | None,
    grid: tuple[str | None, str | None, str | None, str | None],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Time training on this machine, and write the profile."""
    from secfed.profiles.measure import grid_for, measure_site  # noqa: PLC0415
    from secfed.runtime.directory import write_atomically  # noqa: PLC0415

    study, name, folder = _measured(path, site)
    lengths, ranks, micro_batches, quantisations = grid
    chosen = grid_for(
        study,
        tuple((quantisations or "").replace(",", " ").split()),
        _numbers("--lengths", lengths),
        _numbers("--ranks", ranks),
        _numbers("--micro-batches", micro_batches),
    )
    profile = measure_site(study, folder, name, chosen, tell)
    target = out or folder / "profile.json"
    write_atomically(target, profile.to_bytes())
    if as_json:
        print_json(profile.model_dump(mode="json"))
    else:
        _show_profile(study, profile, target)


def _measured(path: Path, site: str | None) -> tuple[Study, str, Path]:
    """The study, the site's name, and where its relative paths start.

    Raises:
        ProfileError: It is not said which site this is.
    """
    from secfed.doctor.examine import kind_of  # noqa: PLC0415
    from secfed.errors import ProfileError  # noqa: PLC0415
    from secfed.runtime.site_file import (  # noqa: PLC0415
        keys_of,
        load_site_file,
        pinned_roster,
    )
    from secfed.study import load_study  # noqa: PLC0415

    kind, file = kind_of(path)
    folder = file.resolve().parent
    if kind == "site":
        own = load_site_file(file)
        roster = pinned_roster(own, folder, keys_of(own, folder))
        return roster.study, own.site, folder
    if site is None:
        raise ProfileError("with --measure and a study, say --site NAME")
    return load_study(file), site, folder


def _show_profile(study: Study, profile: SiteProfile, target: Path) -> None:
    from secfed.profiles.estimate import estimate  # noqa: PLC0415

    gpu = profile.gpu or "no accelerator"
    memory = f"{profile.memory_bytes / 1e9:.1f} GB"
    show(Text(f"{profile.site}: {profile.cores} cores, {memory}, {gpu}"))
    own = estimate(study, profile)
    if own.seconds is not None and own.timing is not None:
        show(
            Text(
                f"A round of the study as it is: {own.seconds / 60:.2f} minutes of "
                f"local training with the margin, {own.timing.peak_bytes / 1e9:.2f} "
                f"GB, {own.timing.micro_batch_tokens} tokens at once"
            )
        )
    show(Text(f"profile:  {target}; it says what machine this is, and nothing of data"))


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    parts = (text or "").replace(",", " ").split()
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise typer.BadParameter(f"{option}: whole numbers, as in 32,16")
    return tuple(int(part) for part in parts)
