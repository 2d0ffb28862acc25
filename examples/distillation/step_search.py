"""Which step sizes suit which LoRA row: every pair once, scored on public records.

A teacher's part of the loss has its least value where the student says what the
teacher says, so that a step that only makes an answer of labels surer carries past it.
Each row therefore has a search of its own, by another seed than the table's, and never
on the test set. The data sets are public; on people's records a search would be
charged, run by run.

Example: python examples/distillation/step_search.py --out runs/distillation
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import distillation_table
from distillation_table import DATASETS, ROWS, Cell, Steps

PAIRS: Final[Mapping[str, Sequence[Steps]]] = {
    "cola": ((3.0, 60.0), (0.1, 60.0), (1.0, 6.0), (1.0, 2.0), (0.3, 1.0)),
    "sst2": ((3.0, 60.0), (1.0, 20.0), (1.0, 6.0), (1.0, 2.0), (0.3, 1.0)),
}
"""Of adapter and head; the first is that of the study that the others took over."""

SEARCHED: Final = ("central-lora", "federated-lora", "federated-lora-kd")
SEED: Final = 1000
RANK: Final = 8


def main() -> None:
    """Run what is missing, or one cell, and print every score."""
    own, rest = _options(sys.argv[1:])
    options = distillation_table.options_of(rest)
    if own.one:
        row, dataset, rate, head = own.one
        steps = (float(rate), float(head))
        found = distillation_table.adapted(
            options, row, dataset, RANK, SEED, steps, scored_on="search"
        )
        print(json.dumps(found | {"dataset": dataset, "row": row, "steps": steps}))  # noqa: T201
        return
    cells = []
    for dataset in options.datasets:
        distillation_table.cell_of(options, "teacher", dataset, 0, options.seeds[0])
        for row in own.searched:
            cells += [_cell(options, row, dataset, steps) for steps in PAIRS[dataset]]
    print("\n".join(table(cells)))  # noqa: T201


def _cell(options: argparse.Namespace, row: str, dataset: str, steps: Steps) -> Cell:
    """One pair's numbers: kept from an earlier call, or from a fresh process."""
    named = [row, dataset, *(f"{step:g}" for step in steps)]
    kept = options.out / dataset / f"search-{row}-{named[2]}-{named[3]}.json"
    if not kept.is_file():
        command = [sys.executable, __file__, *sys.argv[1:], "--one", *named]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        kept.write_text(done.stdout.splitlines()[-1] + "\n", encoding="utf-8")
    found: Cell = json.loads(kept.read_text("utf-8"))
    return found


def table(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each data set and pair, one column for each row of the table."""
    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    names = [f"{ROWS[row][0]}, {ROWS[row][1]}" for row in rows]
    yield f"| data set | adapter | head | {' | '.join(names)} |"
    yield "| --- | --: | --: |" + " --: |" * len(rows)
    for dataset in DATASETS:
        own = [cell for cell in cells if cell["dataset"] == dataset]
        for steps in dict.fromkeys(tuple(cell["steps"]) for cell in own):
            found = {c["row"]: c["score"] for c in own if tuple(c["steps"]) == steps}
            scores = [f"{100 * found[row]:.1f}" if row in found else "" for row in rows]
            parts = [dataset, *(f"{step:g}" for step in steps), *scores]
            yield f"| {' | '.join(parts)} |"


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0],
        epilog="Every other option is one of distillation_table.py, --out for one.",
    )
    parser.add_argument(
        "--searched", nargs="+", choices=SEARCHED, default=list(SEARCHED)
    )
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    main()
