"""Try recipes cheaply: one site, the tuning part of a data set, one seed each.

The tuning part shares no group with the private records of the table and none of its
test records, and it is declared public. What is chosen on it costs no privacy
(PITFALLS 9), and the score of the table is not the best of many tries on its own test.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from benchmarks.output import show_table
from benchmarks.utility_bench import Bench
from benchmarks.utility_cells import Store, trained, work_of
from benchmarks.utility_data import load_parts
from benchmarks.utility_progress import Remaining
from benchmarks.utility_recipes import METHODS, Recipe, Utility
from benchmarks.utility_training import Cell
from secfed.errors import SecfedError

__all__ = ["combinations", "explore", "tried"]


def explore(utility: Utility, asked: argparse.Namespace, console: Console) -> None:
    """Train every combination of ``--set`` for every method and epsilon asked for."""
    store = Store(utility, asked.out / utility.name, part="tuning")
    parts = load_parts(utility, asked.data, store.folder, tuning=True)
    bench = Bench(utility, parts, asked.recipes)
    tries = [
        (Cell(method, epsilon, seed), recipe, changes)
        for method in asked.method or METHODS
        for epsilon in asked.epsilon or (8.0,)
        for changes in combinations(asked.set)
        for recipe in [_recipe(utility, method, epsilon, changes)]
        for seed in range(asked.seeds)
    ]
    missing = [
        work_of(utility, recipe, cell)
        for cell, recipe, _ in tries
        if store.read(cell, recipe, by_recipe=True) is None
    ]
    remaining = Remaining(console, sum(missing))
    console.print(
        f"{len(tries)} tries; one site with {bench.units[0]:,} records, scored on "
        f"{len(parts.test):,}; the constant answer has {100 * bench.majority():.1f} %",
        highlight=False,
    )
    rows = []
    for cell, recipe, changes in tries:
        result = trained(bench, cell, recipe, store, remaining, by_recipe=True)
        rows.append(_row(cell, changes, result.accuracy, result.seconds))
    rows.sort(key=lambda row: -float(row["accuracy"]))
    show_table(Console(width=max(console.width, 120)), utility.title, rows)


def tried(utility: Utility, store: Store) -> list[dict[str, str]]:
    """Every try that was kept, and in what it differs from the recipe chosen."""
    rows = []
    for cell, recipe, result in store.everything():
        chosen = utility.recipe(cell.method, cell.epsilon).model_dump()
        own = recipe.model_dump()
        changes = {key: own[key] for key in own if own[key] != chosen[key]}
        shown = ", ".join(f"{key} {_words(value)}" for key, value in changes.items())
        row = _row(cell, {}, result.accuracy, result.seconds)
        rows.append({**row, "differs from the recipe in": shown or "nothing: chosen"})
    return sorted(
        rows,
        key=lambda row: (row["method"], row["epsilon"], -float(row["accuracy"])),
    )


def _words(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


def combinations(settings: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every choice of one value per key; without keys the recipe as it is.

    Raises:
        SecfedError: A setting is not ``KEY=A,B``.
    """
    keys, choices = [], []
    for setting in settings:
        key, equals, values = setting.partition("=")
        if not equals or not values:
            raise SecfedError(f"--set {setting}: write KEY=VALUE or KEY=VALUE,VALUE")
        keys.append(key)
        choices.append([_value(text) for text in values.split(",")])
    for chosen in itertools.product(*choices):
        yield dict(zip(keys, chosen, strict=True))


def _value(text: str) -> Any:
    """A number or true/false as TOML writes it, a list as ``a+b``, else a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return tuple(filter(None, text.split("+"))) if "+" in text else text


def _recipe(
    utility: Utility, method: str, epsilon: float, changes: dict[str, Any]
) -> Recipe:
    base = utility.recipe(method, epsilon)
    known = type(base).model_fields
    typed = {
        key: float(value)
        if key in known and "float" in str(known[key].annotation) and value is not None
        else value
        for key, value in changes.items()
    }
    return base.changed(**typed)


def _row(
    cell: Cell, changes: dict[str, Any], accuracy: float, seconds: float
) -> dict[str, str]:
    shown = "inf" if math.isinf(cell.epsilon) else f"{cell.epsilon:g}"
    return {
        "method": cell.method,
        "epsilon": shown,
        "seed": str(cell.seed),
        **{key: str(value) for key, value in changes.items()},
        "accuracy": f"{100 * accuracy:.1f}",
        "seconds": f"{seconds:.0f}",
    }
