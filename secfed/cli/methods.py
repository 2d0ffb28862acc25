"""``secfed strategies``: the aggregation methods, and what each costs a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from secfed.cli.output import plain_table, print_json, show

if TYPE_CHECKING:
    from secfed.strategies import Strategy

__all__ = ["strategies"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]

_KEYS = (
    "name",
    "title",
    "exact",
    "needs",
    "refusal",
    "reference",
    "cost",
    "linear",
    "unequal_ranks",
    "personal",
)


def strategies(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY", help="Show what each method sends in it."),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """List the aggregation methods; with a study, what each would send in it.

    Example: secfed strategies examples/icd10_hospitals/study.toml
    """
    from secfed.strategies import STRATEGIES  # noqa: PLC0415

    sizes = {} if study is None else _sizes(study, list(STRATEGIES))
    if as_json:
        listed = [
            {k: getattr(s, k) for k in _KEYS} | sizes.get(name, {})
            for name, s in STRATEGIES.items()
        ]
        print_json({"strategies": listed})
    elif study is None:
        for strategy in STRATEGIES.values():
            _describe(strategy)
    else:
        _compare(STRATEGIES, sizes)


def _describe(strategy: Strategy) -> None:
    traits = [
        "exact under sums" if strategy.exact else "not exact under sums",
        *(["unequal ranks"] if strategy.unequal_ranks else []),
        *(["personal models"] if strategy.personal else []),
    ]
    show(Text.assemble((strategy.name, "bold"), f"  {strategy.title}"))
    show(Text(f"    {', '.join(traits)}; coordinator: {strategy.cost} per module"))
    show(Text(f"    {strategy.reference}"))
    if strategy.refusal:
        show(Text(f"    refused under masking: {strategy.refusal}"))


def _sizes(path: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Numbers up, bytes down and trained numbers of each method in one round."""
    from secfed.cli.traffic import round_sizes  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    loaded = load_study(path)
    found = {name: round_sizes(loaded, path.resolve().parent, name) for name in names}
    return {name: sizes for name, sizes in found.items() if sizes is not None}


def _compare(
    known: Mapping[str, Strategy], sizes: Mapping[str, Mapping[str, Any]]
) -> None:
    columns = {
        "method": "left",
        "exact": "left",
        "unequal ranks": "left",
        "personal": "left",
        "numbers up": "right",
        "bytes up": "right",
        "bytes down": "right",
        "coordinator, per module": "left",
    }
    rows = []
    for name, rule in known.items():
        own = sizes.get(name, {})
        numbers = (own.get(k) for k in ("numbers_up", "bytes_up", "bytes_down"))
        rows.append(
            [
                name,
                _yes(rule.exact),
                _yes(rule.unequal_ranks),
                _yes(rule.personal),
                *("-" if n is None else f"{n:,}" for n in numbers),
                rule.cost,
            ]
        )
    show(plain_table("One round of each method in this study", columns, rows))
    show(
        "Bytes up: one site's masked vector, in 16 bits where every number is the "
        "change of a trained one and in 32 bits elsewhere (`secfed plan` says what the "
        "noise allows); keys, shares and signatures come on top. Bytes down: the "
        "adapter. n sites, W of (d, k), rank r, sketches p and q wide."
    )


def _yes(value: bool) -> str:  # noqa: FBT001
    return "yes" if value else "no"
