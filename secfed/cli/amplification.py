"""``secfed amplification``: the privacy noise to expect in the adapted weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
import typer

from secfed.cli import noise_run, noise_tables
from secfed.cli.output import tell

if TYPE_CHECKING:
    from secfed.amplification import NoiseRule
    from secfed.cli.noise_outlook import NoiseOutlook

__all__ = ["amplification"]

# Written out here, so that the command line starts without numpy.
_Axis = Literal["rank", "alpha", "sigma", "sites", "steps"]
_Initial = Literal["peft", "orthonormal"]


def amplification(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="A study.toml.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Methods; all with a step size by default."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="X", help="One step size for all methods."),
    ] = None,
    init: Annotated[
        _Initial,
        typer.Option(
            show_default=False,
            help="Law of the frozen factor: |A|^2 is r/3 (peft, the default) or r.",
        ),
    ] = "peft",
    norm_b: Annotated[
        float,
        typer.Option(
            show_default=False,
            metavar="X",
            help="|B| of every module without noise; 0, as at the start, by default.",
        ),
    ] = 0.0,
    curves: Annotated[
        _Axis | None, typer.Option(help="Vary one number of the study.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(metavar="1,2,4", help="Where, with --curves.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw --curves into a file.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare with what a run measured."),
    ] = None,
    *,
    modules: Annotated[
        bool, typer.Option("--modules", help="Also list every adapted module.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Show how much privacy noise each method would leave in the weights.

    From public numbers alone: the study, its privacy plan, and the shapes in the
    header of the base model. Nothing is trained and nothing is spent. With --run,
    what a finished simulation measured stands beside it; STUDY may then be left out.

    Example: secfed amplification examples/icd10_hospitals/study.toml

    Example: secfed amplification study.toml --curves rank --svg noise.svg

    Example: secfed amplification --run runs/my-demo
    """
    names = _names(methods)
    points = _points(values)
    if svg is not None and curves is None:
        raise click.BadParameter("needs --curves", param_hint="--svg")
    if points is not None and curves is None:
        raise click.BadParameter("needs --curves", param_hint="--values")
    if run is not None and (curves is not None or modules):
        raise click.BadParameter(
            "goes without --curves and --modules", param_hint="--run"
        )
    if rate is not None and not 0.0 < rate < float("inf"):
        raise click.BadParameter("a step size is positive", param_hint="--rate")
    if not 0.0 <= norm_b < float("inf"):
        raise click.BadParameter("a norm is not negative", param_hint="--norm-b")
    outlook = None if study is None else _outlook(study, rate, init, norm_b)
    if run is not None:
        noise_run.of_run(run, outlook, names, as_json=as_json)
    elif outlook is None:
        raise click.UsageError("name a STUDY, or a run with --run DIR")
    elif curves is not None:
        noise_tables.of_curve(
            outlook, _rules(names), curves, points, svg, as_json=as_json
        )
    else:
        noise_tables.of_study(outlook, _rules(names), modules=modules, as_json=as_json)


def _outlook(
    study: Path, rate: float | None, initial: _Initial, norm_b: float
) -> NoiseOutlook:
    from secfed.cli.noise_outlook import noise_outlook  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    loaded = load_study(study)
    tell("reading the model's shapes and calibrating the noise")
    return noise_outlook(
        loaded, study.resolve().parent, rate=rate, initial=initial, norm_b2=norm_b**2
    )


def _names(methods: str | None) -> tuple[str, ...] | None:
    if methods is None:
        return None
    from secfed.amplification import NO_CLOSED_FORM, RULES  # noqa: PLC0415
    from secfed.study.reading import nearest  # noqa: PLC0415

    known = (*RULES, *NO_CLOSED_FORM)
    found = [name for part in methods.split(",") if (name := part.strip())]
    for name in found:
        if name not in known:
            problem = f"unknown method {name!r}; {nearest(name, known)}"
            raise click.BadParameter(problem, param_hint="--methods")
    if not found:
        raise click.BadParameter("name at least one", param_hint="--methods")
    return tuple(dict.fromkeys(found))


def _rules(names: tuple[str, ...] | None) -> tuple[NoiseRule, ...] | None:
    """The rules by name; what is measured only has nothing to expect."""
    if names is None:
        return None
    from secfed.amplification import NO_CLOSED_FORM, RULES  # noqa: PLC0415

    for name in names:
        if name in NO_CLOSED_FORM:
            problem = f"{name}: {NO_CLOSED_FORM[name]}"
            raise click.BadParameter(problem, param_hint="--methods")
    return tuple(RULES[name] for name in names)


def _points(values: str | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        return tuple(float(part) for part in values.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--values") from error
