"""``secfed plan``: what a study would cost every site, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from secfed.cli.assign import estimates_of, show_estimates
from secfed.cli.budgets import show_outlays
from secfed.cli.outlook import (
    SiteOutlook,
    evaluation_outlook,
    noise_to_signal,
    site_outlooks,
)
from secfed.cli.output import plain_table, print_json, show, tell
from secfed.cli.runs import find_policy
from secfed.cli.traffic import numbers_sent, parameter_counts, upload_bytes
from secfed.errors import PolicyError

if TYPE_CHECKING:
    from rich.table import Table

    from secfed.study import Study

__all__ = ["plan"]

_UNKNOWN: Final = "UNKNOWN"


def plan(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")],
    site_policy: Annotated[
        Path | None,
        typer.Option(
            "--site-policy",
            metavar="FILE",
            help="The sites' policy; site.toml beside the study by default.",
        ),
    ] = None,
    profiles: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile",
            metavar="FILE",
            help="A site's profile, from `secfed doctor --measure`; may be repeated.",
        ),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Show noise, epsilon and traffic per site, and who is too small or refuses.

    Nothing is trained and nothing is spent. Exit code 4: a site refuses or is too
    small.

    Example: secfed plan examples/icd10_hospitals/study.toml
    """
    from secfed.study import load_study  # noqa: PLC0415

    loaded = load_study(study)
    estimates = estimates_of(loaded, profiles or ())
    policy = find_policy(study, site_policy)
    tell("reading the sites' data and calibrating the noise")
    base_dir = study.resolve().parent
    outlooks = tuple(site_outlooks(loaded, base_dir, policy))
    upload = upload_bytes(loaded, base_dir, outlooks)
    ratio = noise_to_signal(loaded, outlooks, numbers_sent(loaded, base_dir))
    counts = parameter_counts(loaded, base_dir)
    evaluation = evaluation_outlook(loaded, outlooks)
    if as_json:
        print_json(
            {
                "study_digest": loaded.digest(),
                "method": loaded.training.method,
                "rounds": loaded.training.rounds,
                "delta": loaded.privacy.delta,
                "unit": loaded.privacy.unit,
                "clip_rule": loaded.privacy.clip_rule,
                "clip_norm": loaded.privacy.clip_norm,
                "clip_gamma": loaded.privacy.clip_gamma,
                "noise_to_signal": ratio,
                "upload_bytes_per_round": upload,
                "parameters_trainable": counts[0] if counts else None,
                "parameters": counts[1] if counts else None,
                "sites": [o.to_json() for o in outlooks],
                **({} if evaluation is None else {"evaluation": evaluation}),
                "rounds_measured": [
                    {"site": e.site, "rank": e.rank, "seconds": e.seconds}
                    for e in estimates
                ],
            }
        )
    else:
        _show(loaded, outlooks, upload)
        show_outlays({o.site: o.budget for o in outlooks if o.budget is not None})
        show(_trainable(counts))
        if evaluation is not None:
            show(Text(_evaluated(evaluation)))
        show_estimates(estimates)
        if loaded.privacy.unit == "site":
            show(Text(_of_a_whole_site(ratio)))
    refused = [o for o in outlooks if o.refusal]
    if refused and as_json:
        raise typer.Exit(PolicyError.exit_code)
    if refused:
        raise PolicyError(
            f"the study cannot run: {', '.join(o.site for o in refused)} cannot take "
            "part. Change the study, leave the site out, or ask its operator"
        )


def _show(study: Study, outlooks: tuple[SiteOutlook, ...], upload: int | None) -> None:
    from secfed.report.tables import round_up  # noqa: PLC0415

    columns = {
        "site": "left",
        "units (declared)": "right",
        "q": "right",
        "steps": "right",
        "sigma": "right",
        "epsilon, one round": "right",
        "epsilon, in total": "right",
        "verdict": "left",
    }
    rows = [
        [
            o.site,
            f"{o.nominal_units:,}",
            f"{o.sampling_probability:.4f}",
            str(o.steps),
            "-" if o.noise_multiplier is None else f"{o.noise_multiplier:.4f}",
            "-" if o.epsilon_per_round is None else round_up(o.epsilon_per_round),
            "-" if o.epsilon_total is None else round_up(o.epsilon_total),
            o.verdict,
        ]
        for o in outlooks
    ]
    title = (
        f"{study.study.title}: {study.training.method}, "
        f"{study.training.rounds} rounds, "
        f"delta {study.privacy.delta:g} per "
        f"{'whole site' if study.privacy.unit == 'site' else study.privacy.unit}"
    )
    show(plain_table(title, columns, rows), _in_other_words(study, outlooks))
    show(Text(_how(study)))
    size = _UNKNOWN if upload is None else f"{upload / 1e6:.3f} MB"
    show(f"Upload per site and round: {size}, plus keys, shares and signatures.")
    for outlook in outlooks:
        for kind, text in (("refused", outlook.refusal), ("warning", outlook.warning)):
            if text:
                show(Text(f"{outlook.site}, {kind}: {text}"))


def _evaluated(told: Mapping[str, Any]) -> str:
    """What is released of held-back records, at which cost, and how exact it is."""
    sizes, margin = told["held_back_nominal"], told["margin"]
    if not sizes:
        return "Evaluation: no site is large enough, by its declared size."
    said = (
        f"Evaluation after round {', '.join(map(str, told['rounds']))}: "
        f"{', '.join(told['metrics'])} on about {sum(sizes.values()):,} units that "
        f"{len(sizes)} sites hold back. Each costs epsilon "
        f"{told['epsilon_of_one']:.2f} by itself, within the total above"
    )
    if margin is None:
        return said + "."
    share = f"{100 * margin:.1f} points (95 %)"
    return said + f"; the noise leaves a share uncertain by up to {share}."


def _trainable(counts: tuple[int, int] | None) -> str:
    if counts is None:
        return f"Adapters and head: {_UNKNOWN}; the model's configuration is not here."
    trained, total = counts
    share = 100 * trained / total
    return (
        f"Adapters and head: {trained:,} of the model's {total:,} numbers "
        f"({share:.2f} %)."
    )


def _in_other_words(study: Study, outlooks: Sequence[SiteOutlook]) -> Table:
    from secfed.report.tables import round_up  # noqa: PLC0415

    whole = study.privacy.unit == "site"
    columns = {"site": "left", f"one {study.privacy.unit} replaced": "right"}
    if whole:
        columns["a person's records changed"] = "right"
    columns["GDP mu"] = "right"
    rows = []
    for o in outlooks:
        costs = [o.epsilon_replace_one]
        if whole:
            costs.append(o.epsilon_of_a_person)
        shown = ["-" if cost is None else round_up(cost) for cost in costs]
        mu = _UNKNOWN if o.mu is None else f"{o.mu:.4f}"
        rows.append([o.site, *shown, mu if o.noise_multiplier is not None else "-"])
    return plain_table("Epsilon in total, for other changes", columns, rows)


def _how(study: Study) -> str:
    """What every noisy sum has in common."""
    privacy, training = study.privacy, study.training
    rule: str = privacy.clip_rule
    if privacy.clip_gamma is not None:
        rule += f" (gamma {privacy.clip_gamma:g})"
    batch = (
        f"the site's whole update, trained in {training.steps_per_round} steps on "
        f"{training.expected_batch} expected records"
        if privacy.unit == "site"
        else f"{training.expected_batch} expected {privacy.unit}s"
    )
    return f"Each noisy sum: {batch}; clipped at {privacy.clip_norm:g}, rule {rule}."


def _of_a_whole_site(ratio: float | None) -> str:
    said = (
        "The unit is the site. Epsilon is for the site as a whole, its update present "
        "or zero; budgets are charged for a person, whose records can replace it. "
    )
    if ratio is None:
        return said + f"Noise against the longest possible update: {_UNKNOWN}."
    said += f"Noise in the mean update: {ratio:.3g} times its longest possible length"
    if ratio <= 1:
        return said + "."
    return said + (
        ". Warning: the noise is above the signal, so expect little or nothing to be "
        "learned; take more sites, fewer trained numbers or a larger epsilon."
    )
