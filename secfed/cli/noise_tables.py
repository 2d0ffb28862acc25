"""What ``secfed amplification`` prints of a study: the methods, and curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from secfed.cli.output import plain_table, print_json, show

if TYPE_CHECKING:
    from rich.table import Table

    from secfed.amplification import Axis, Curve, Energy, NoiseRule
    from secfed.cli.noise_outlook import NoiseOutlook
    from secfed.cli.noise_rows import MethodNoise

__all__ = ["number", "of_curve", "of_study", "right"]

_Rules = tuple["NoiseRule", ...]
_COLUMNS = 6
"""Methods in a table; more would be cut at the width of a pipe."""
_SHOWN_PARTS = {
    "linear_b": "linear B",
    "linear_a": "linear A",
    "quadratic": "quadratic",
}


# ------------------------------------------------------------------- the study


def of_study(
    outlook: NoiseOutlook, chosen: _Rules | None, *, modules: bool, as_json: bool
) -> None:
    """Print what to expect of every method; ``chosen`` None: of all that is known."""
    from secfed.cli.noise_rows import method_noise  # noqa: PLC0415

    found = [method_noise(outlook, rule) for rule in chosen or _known(outlook)]
    left_out = {} if chosen else _left_out(outlook)
    if as_json:
        names = [module.name for module in outlook.modules] if modules else None
        methods = {one.rule.name: one.to_json(names) for one in found}
        print_json(_numbers(outlook) | {"methods": methods, "left_out": left_out})
        return
    show(_method_table(outlook, found))
    if modules:
        show(*_module_tables(outlook, found))
    show(Text(_what_was_known(outlook)))
    for one in found:
        if one.rule.note:
            show(Text(f"{one.rule.name}: {one.rule.note}."))
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        show(Text(f"Not shown: {', '.join(names)}: {reason}."))


def _known(outlook: NoiseOutlook) -> _Rules:
    rules = outlook.rules()
    if not rules:
        raise click.UsageError(
            "the study has no step size for a method that trains adapters; --rate "
            "gives all methods one"
        )
    return rules


def _left_out(outlook: NoiseOutlook) -> dict[str, str]:
    """Methods that are not shown, and why."""
    from secfed.amplification import NO_CLOSED_FORM, RULES  # noqa: PLC0415

    shown = outlook.rules()
    missing = [name for name, rule in RULES.items() if rule not in shown]
    why = "the study has no step size for it; --rate gives all methods one"
    return dict.fromkeys(missing, why) | dict(NO_CLOSED_FORM)


def _method_table(outlook: NoiseOutlook, found: Sequence[MethodNoise]) -> Table:
    rounds = outlook.study.training.rounds
    headings = [
        "step size",
        "round 1",
        *_later(f"round {rounds}", "all rounds", rounds),
    ]
    headings += [*_SHOWN_PARTS.values(), "/ ffa-lora", "at own step size"]
    rows = []
    for one in found:
        known = (one.rounds[-1].total, one.whole.total)
        last, whole = (number(x if one.rule.accumulates else None) for x in known)
        row = [one.rule.name, number(one.step_size), number(one.rounds[0].total)]
        row += _later(last, whole, rounds)
        row += [_share(one.whole, part) for part in _SHOWN_PARTS]
        rows.append([*row, number(one.amplification), number(one.over_ffa)])
    title = f"{outlook.study.study.title}: expected noise energy in the weights"
    return plain_table(title, {"method": "left"} | right(headings), rows)


def _later(last: str, whole: str, rounds: int) -> list[str]:
    """Columns that a study of one round does not have."""
    return [last, whole] if rounds > 1 else []


def _module_tables(
    outlook: NoiseOutlook, found: Sequence[MethodNoise]
) -> Iterator[Table]:
    for start in range(0, len(found), _COLUMNS):
        some = found[start : start + _COLUMNS]
        headings = ["outputs x inputs", *(one.rule.name for one in some)]
        rows = []
        for place, module in enumerate(outlook.modules):
            energies = [number(one.modules[place].total) for one in some]
            rows.append([module.name, f"{module.d} x {module.k}", *energies])
        title = "Energy by module, all rounds that are known"
        yield plain_table(title, {"module": "left"} | right(headings), rows)


def _share(energy: Energy, part: str) -> str:
    if energy.core:
        return "-"
    return f"{100 * getattr(energy, part) / energy.total:.1f} %"


def _what_was_known(outlook: NoiseOutlook) -> str:
    training, adapter = outlook.study.training, outlook.study.adapter
    sigmas = outlook.sigmas.values()
    norm_a = "r" if outlook.initial == "orthonormal" else "r/3"
    return (
        "Energy: squared Frobenius norm of the noise in the change of the weights of "
        f"{len(outlook.modules)} modules; r {adapter.r}, lora_alpha "
        f"{adapter.lora_alpha:g}, {len(sigmas)} sites with sigma {min(sigmas):.4g} to "
        f"{max(sigmas):.4g}, {training.rounds} rounds of {training.steps_per_round} "
        f"steps, |A|^2 = {norm_a}, |B|^2 = {outlook.norm_b2:g} without noise. "
        "The shares and the ratios are those of all rounds; '/ ffa-lora' is at the "
        "same noise per number. Gradients that react to earlier noise are not in it: "
        "it is close where one factor is noisy and too high where two are. "
        "Less noise is not more accuracy."
    )


def _numbers(outlook: NoiseOutlook) -> dict[str, Any]:
    """What the expectation was computed from."""
    training, adapter = outlook.study.training, outlook.study.adapter
    return {
        "study_digest": outlook.study.digest(),
        "modules": [vars(module) for module in outlook.modules],
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "rounds": training.rounds,
        "steps_per_round": training.steps_per_round,
        "noise_multipliers": dict(outlook.sigmas),
        "init": outlook.initial,
        "norm_b2": outlook.norm_b2,
    }


# ------------------------------------------------------------------- a curve


def of_curve(
    outlook: NoiseOutlook,
    chosen: _Rules | None,
    axis: Axis,
    points: Sequence[float] | None,
    svg: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print the energy over all rounds along one axis, and draw it if asked."""
    from secfed.amplification import HELD  # noqa: PLC0415

    found = _curve(outlook, chosen, axis, points)
    if svg is not None:
        _draw(found, outlook, svg)
    if as_json:
        methods = {
            name: {part: numbers.tolist() for part, numbers in parts.items()}
            for name, parts in found.energies.items()
        }
        curve = {"axis": axis, "held": HELD[axis], "values": found.values.tolist()}
        print_json(_numbers(outlook) | {"curve": curve | {"methods": methods}})
        return
    show("Expected noise energy over all rounds", Text(f"{HELD[axis]}."))
    rules = list(found.energies)
    for start in range(0, len(rules), _COLUMNS):
        names = rules[start : start + _COLUMNS]
        rows = [
            [
                f"{value:.4g}",
                *(number(found.energies[n]["total"][place]) for n in names),
            ]
            for place, value in enumerate(found.values)
        ]
        show(plain_table("", right([axis, *names]), rows))
    if svg is not None:
        show(Text(f"drawn: {svg}"))


def _curve(
    outlook: NoiseOutlook,
    chosen: _Rules | None,
    axis: Axis,
    points: Sequence[float] | None,
) -> Curve:
    from secfed.amplification import noise_curve, usual_values  # noqa: PLC0415

    rules = chosen or [rule for rule in _known(outlook) if rule.accumulates]
    settings = {rule: outlook.setting(rule) for rule in rules}
    if points is None:
        points = usual_values(next(iter(settings.values())), axis)
    try:
        return noise_curve(settings, axis, points)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _draw(found: Curve, outlook: NoiseOutlook, path: Path) -> None:
    from secfed.report.noise_curves import noise_curve_svg  # noqa: PLC0415

    try:
        text = noise_curve_svg(found, outlook.study.study.title)
    except ValueError as error:
        problem = f"{error}; choose with --methods"
        raise click.BadParameter(problem, param_hint="--svg") from error
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"{path}: cannot be written: {error.strerror}"
        raise click.BadParameter(problem, param_hint="--svg") from error


def right(headings: Sequence[str]) -> dict[str, str]:
    """Columns of numbers."""
    return dict.fromkeys(headings, "right")


def number(value: float | None) -> str:
    """Three digits; a dash where it is not known."""
    return "-" if value is None else f"{value:.3g}"
