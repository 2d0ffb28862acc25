"""Score private adapters against a private head on real data, at equal epsilon.

    python -m benchmarks.utility --out DIR --json FILE --markdown docs/utility.md
    python -m benchmarks.utility --only sst2 --seeds 1
    python -m benchmarks.utility --explore sst2 --method fedavg --set learning_rate=1,3

Every finished cell is kept below ``--out``; a second call continues. ``--explore``
tries recipes at one site, on the part of a data set that is declared public.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from benchmarks.output import put_between_marks, show_table, write_json
from benchmarks.utility_bench import Bench
from benchmarks.utility_cells import Store, trained, work_of
from benchmarks.utility_data import load_parts, missing
from benchmarks.utility_explore import explore, tried
from benchmarks.utility_progress import Remaining
from benchmarks.utility_recipes import METHODS, Utility, load_utility
from benchmarks.utility_results import cell_rows, summary, to_markdown, verdict
from benchmarks.utility_training import Cell, Result
from secfed.errors import SecfedError

__all__ = ["main"]

_RECIPES: Final = Path(__file__).with_suffix("")
_DATA: Final = Path("../shared/data")
_PERCENT = 100
_SEEDS = 3
_PAPER_WIDTH = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code says nothing about scores."""
    asked = _parser().parse_args(arguments)
    console = Console(stderr=True)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    try:
        utilities, left_out = _chosen(asked)
        if asked.explore:
            explore(utilities[0], asked, console)
            return 0
        found = _measure(utilities, left_out, asked, console)
    except SecfedError as error:
        console.print(str(error), style="red", highlight=False, soft_wrap=True)
        return 2
    _show(found)
    if asked.json:
        write_json(found, asked.json)
    if asked.markdown:
        put_between_marks(to_markdown(found), asked.markdown)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    parser.add_argument("--data", **folder, help=f"data sets; default {_DATA}")
    parser.add_argument("--recipes", **folder, default=_RECIPES, help="TOML files")
    parser.add_argument(
        "--out", **folder, default=Path("runs/utility"), help="records and cells"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="a data set")
    parser.add_argument(
        "--method", action="append", choices=METHODS, help="may be repeated"
    )
    parser.add_argument(
        "--epsilon", action="append", type=float, help="2, 8 and inf by default"
    )
    parser.add_argument("--seeds", type=int, help="how many; 3, exploring 1")
    parser.add_argument("--threads", type=int, default=0, help="of torch")
    parser.add_argument("--explore", metavar="NAME", help="try recipes of a data set")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="with --explore: values of a recipe's key; all combinations are tried",
    )
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    return parser


def _chosen(asked: argparse.Namespace) -> tuple[list[Utility], list[str]]:
    """The data sets that are there, and why others are not.

    Raises:
        SecfedError: A folder or a data set that was asked for does not exist.
    """
    if asked.data is not None and not asked.data.is_dir():
        raise SecfedError(f"--data {asked.data}: no such folder")
    asked.data = asked.data or _DATA
    asked.seeds = asked.seeds or (1 if asked.explore else _SEEDS)
    wanted = [asked.explore] if asked.explore else asked.only
    paths = {path.stem: path for path in sorted(asked.recipes.glob("*.toml"))}
    for name in wanted or ():
        if name not in paths:
            raise SecfedError(f"no data set {name!r}; known: {', '.join(paths)}")
    utilities, left_out = [], []
    for name, path in paths.items():
        utility = load_utility(path)
        reason = missing(utility, asked.data)
        if wanted is not None and name in wanted and reason:
            raise SecfedError(f"{name}: {reason}")
        if reason:
            left_out.append(f"{name}: {reason}")
        elif wanted is None or name in wanted:
            utilities.append(utility)
    if not utilities:
        raise SecfedError("nothing to run: " + "; ".join(left_out or ["no recipes"]))
    return utilities, left_out


def _measure(
    utilities: Sequence[Utility],
    left_out: Sequence[str],
    asked: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    cells = [
        Cell(method, epsilon, seed)
        for seed in range(asked.seeds)
        for epsilon in asked.epsilon or (2.0, 8.0, math.inf)
        for method in asked.method or METHODS
    ]
    stores = {
        own.name: Store(own, asked.out / own.name, part="private") for own in utilities
    }
    work = sum(
        work_of(own, own.recipe(cell.method, cell.epsilon), cell)
        for own in utilities
        for cell in cells
        if stores[own.name].read(cell, own.recipe(cell.method, cell.epsilon)) is None
    )
    remaining = Remaining(console, work)
    for line in left_out:
        console.print(f"left out: {line}", style="yellow", highlight=False)
    return {
        "format": 1,
        "command": shlex.join(["python", "-m", "benchmarks.utility", *sys.argv[1:]]),
        "left_out": list(left_out),
        "sets": [
            _measure_one(own, cells, stores[own.name], asked, remaining)
            for own in utilities
        ],
    }


def _measure_one(
    utility: Utility,
    cells: Sequence[Cell],
    store: Store,
    asked: argparse.Namespace,
    remaining: Remaining,
) -> dict[str, Any]:
    parts = load_parts(utility, asked.data, store.folder, tuning=False)
    bench = Bench(utility, parts, asked.recipes)
    results: dict[Cell, Result] = {
        cell: trained(
            bench, cell, utility.recipe(cell.method, cell.epsilon), store, remaining
        )
        for cell in cells
    }
    mean = sum(own.accuracy for own in results.values()) / len(results)
    return {
        "name": utility.name,
        "title": utility.title,
        "tuned": utility.tuned,
        "delta": utility.delta,
        "units": bench.units,
        "test": len(parts.test),
        "test_error": _PERCENT * math.sqrt(mean * (1 - mean) / len(parts.test)),
        "majority": bench.majority(),
        "seeds": asked.seeds,
        "rows": summary(results),
        "verdict": verdict(utility.title, results),
        "cells": cell_rows(results),
        "tried": tried(utility, Store(utility, store.folder, part="tuning")),
        "results": [json.loads(store.path(cell).read_text()) for cell in cells],
    }


def _show(found: dict[str, Any]) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=_PAPER_WIDTH)
    for own in found["sets"]:
        show_table(console, own["title"], own["rows"])
        for line in own["verdict"]:
            console.print(line, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
