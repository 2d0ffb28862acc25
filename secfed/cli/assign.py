"""``secfed assign``: what sites do in a round, so that the weakest is in time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from secfed.cli.output import plain_table, print_json, show

if TYPE_CHECKING:
    from secfed.profiles.assign import Assignment
    from secfed.profiles.estimate import Estimate
    from secfed.study import Study

__all__ = ["assign", "estimates_of", "show_estimates"]


def assign(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")],
    profiles: Annotated[
        list[Path], typer.Argument(metavar="PROFILE...", help="One of each site.")
    ],
    minutes_per_round: Annotated[
        float,
        typer.Option(metavar="MINUTES", min=0.001, help="For local training."),
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Choose ranks, length, bits and steps from the sites' profiles, and say why.

    Prints the tables of the study that this sets. They are fixed by the study's
    digest, which sites approve; micro-batches are each site's own choice. Exit code
    2: even the least does not fit.

    Example: secfed assign study.toml north.json south.json west.json
    --minutes-per-round 10
    """
    from secfed.profiles.assign import assign as choose  # noqa: PLC0415
    from secfed.profiles.profile import read_profile  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    read = [read_profile(path) for path in profiles]
    chosen = choose(load_study(study), read, 60 * minutes_per_round)
    if as_json:
        print_json(
            {
                "study_digest": chosen.study.digest(),
                "tables": chosen.tables(),
                "sites": [asdict(site) for site in chosen.sites],
                "reasons": list(chosen.reasons),
            }
        )
        return
    _show(chosen)


def _show(chosen: Assignment) -> None:
    columns = {
        "site": "left",
        "rank": "right",
        "minutes a round": "right",
        "memory": "right",
        "micro_batch_tokens (the site's file)": "right",
    }
    rows = [
        [
            site.site,
            str(site.rank or "-"),
            f"{site.seconds / 60:.2f}",
            f"{site.peak_bytes / 1e9:.2f} GB",
            str(site.micro_batch_tokens),
        ]
        for site in chosen.sites
    ]
    show(plain_table("Local training at every site, with the margin", columns, rows))
    for reason in chosen.reasons or ("The study fits as it is.",):
        show(Text(reason))
    show(Text("\nFor the study file, before anybody approves it:\n"))
    show(Text(_toml(chosen.tables())))
    show(
        Text(
            f"With these keys its digest is {chosen.study.digest()}. Noise follows "
            "from the steps: see `secfed plan`."
        )
    )


def _toml(tables: dict[str, dict[str, Any]]) -> str:
    """Tables of names with numbers and texts; both are written as JSON does."""
    lines = []
    for name, entries in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
    return "\n".join(lines) + "\n"


def estimates_of(study: Study, profiles: Sequence[Path]) -> tuple[Estimate, ...]:
    """What the study as it is takes at the sites whose profiles are given.

    Raises:
        ProfileError: One is malformed, or of other work.
    """
    from secfed.profiles.estimate import estimate  # noqa: PLC0415
    from secfed.profiles.profile import read_profile  # noqa: PLC0415

    return tuple(estimate(study, read_profile(path)) for path in profiles)


def show_estimates(estimates: Sequence[Estimate]) -> None:
    """A table of rounds as measured at the sites; nothing where there are none."""
    columns = {
        "site": "left",
        "rank": "right",
        "minutes a round": "right",
        "memory": "right",
        "micro-batch": "right",
    }
    rows = []
    for own in estimates:
        timing, seconds = own.timing, own.seconds
        if timing is None or seconds is None:
            why = "does not fit its memory" if own.measured else "not measured"
            rows.append([own.site, str(own.rank or "-"), why, "-", "-"])
            continue
        size = f"{timing.peak_bytes / 1e9:.2f} GB"
        tokens = f"{timing.micro_batch_tokens} tokens"
        minutes = f"{seconds / 60:.2f}"
        rows.append([own.site, str(own.rank or "-"), minutes, size, tokens])
    if rows:
        show(plain_table("Local training, from the sites' profiles", columns, rows))
