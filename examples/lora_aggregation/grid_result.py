"""What a finished grid found, as a small JSON file and as tables for a README.

    python examples/lora_aggregation/grid_result.py FOLDER

Reads ``runs/NAME`` of the folder's study, checks it, writes ``result.json`` into the
folder and renews what stands in its ``README.md`` between the result marks.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from result_files import markdown_table, stamp, write_json

from secfed.report.measures import Measure, measure_of
from secfed.verify import verify_run

START: Final = "<!-- result -->"
END: Final = "<!-- /result -->"
_PACKAGES: Final = ("secfed", "numpy", "torch", "peft", "transformers", "opacus")
_KEPT: Final = ("title", "study_digest", "methods", "seeds", "seconds")
_AXES: Final = ("name", "epsilon", "alpha", "rank")


def main() -> int:
    """Check the run, write both files."""
    options = _options()
    folder: Path = options.folder
    run = options.run or Path("runs") / folder.name.replace("_", "-")
    grid_file = run / "grid.json"
    if not grid_file.is_file():
        print(
            f"{run}: no grid is there; {_compare(folder, run, options.jobs)}",
            file=sys.stderr,
        )  # noqa: T201
        return 2
    if failures := verify_run(run).failures():
        print(f"{run}: does not verify: {failures[0].reason}", file=sys.stderr)  # noqa: T201
        return 3
    grid = json.loads(grid_file.read_text(encoding="utf-8"))
    study = json.loads((run / "study.json").read_text(encoding="utf-8"))
    kind = (study.get("task") or {}).get("kind")
    command = _compare(folder, run, options.jobs)
    found = _summary(grid, kind, folder, run, command)
    value = write_json(found, folder / "result.json")
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_result(text, value), encoding="utf-8")
    print(tables(value))  # noqa: T201
    return 0


def with_result(text: str, value: Mapping[str, Any]) -> str:
    """A README with the tables of a result between its marks."""
    return re.sub(
        f"{START}.*{END}",
        lambda _: f"{START}\n{tables(value)}\n{END}",
        text,
        flags=re.DOTALL,
    )


def tables(value: Mapping[str, Any]) -> str:
    """The result's tables and how it was made, as Markdown."""
    measure = measure_of(value["task"])
    made = (
        f"{value['seconds'] / 60:.0f} minutes on {value['machine']['processor']}, "
        f"{value['date'][:10]}."
    )
    commands = "\n".join(["```console", *value["commands"], "```"])
    return "\n\n".join(
        [made, commands, _scores(value, measure), _differences(value, measure)]
    )


def _scores(value: Mapping[str, Any], measure: Measure) -> str:
    """One row for each cell, one column for each method."""
    found = {(score["cell"], score["method"]): score for score in value["scores"]}
    methods = list(dict.fromkeys(score["method"] for score in value["scores"]))
    rows = []
    for cell in value["cells"]:
        scores = [found.get((cell["name"], method)) for method in methods]
        shown = [_shown(score, measure) for score in scores]
        rows.append([_cell_title(cell), *shown])
    return markdown_table([measure.key, *methods], rows)


def _shown(score: Mapping[str, Any] | None, measure: Measure) -> str:
    if score is None:
        return "-"
    interval = score["interval_95"]
    return measure.around(score[measure.key], interval and tuple(interval))


def _differences(value: Mapping[str, Any], measure: Measure) -> str:
    """Paired over seeds, with the interval where there are seeds enough."""
    titles = {cell["name"]: _cell_title(cell) for cell in value["cells"]}
    rows = [
        [
            titles[pair["cell"]],
            f"{pair['first']} against {pair['second']}",
            f"{measure.difference(pair['mean'])} {measure.unit}",
            measure.bounds(tuple(pair["interval_95"])) if pair["interval_95"] else "-",
        ]
        for pair in value["differences"]
    ]
    return markdown_table(["cell", "pair", "difference", "95 %"], rows)


def _cell_title(cell: Mapping[str, Any]) -> str:
    epsilon = cell["epsilon"]
    parts = ["without privacy" if epsilon is None else f"epsilon {epsilon:g}"]
    parts += [f"{axis} {cell[axis]:g}" for axis in ("alpha", "rank") if axis in cell]
    return ", ".join(parts)


def _summary(
    grid: Mapping[str, Any], kind: str | None, folder: Path, run: Path, command: str
) -> dict[str, Any]:
    """The parts of ``grid.json`` that a reader compares, with how to repeat them."""
    collect = ["grid_result.py", folder.as_posix(), "--run", run.as_posix()]
    made = stamp(collect[0], collect[1:], _PACKAGES)
    made["commands"] = [command, made.pop("command")]
    cells = [
        {axis: cell[axis] for axis in _AXES if axis in cell and _is_set(cell, axis)}
        for cell in grid["cells"]
    ]
    return {
        **made,
        **{key: grid[key] for key in _KEPT},
        "task": kind,
        "cells": cells,
        "scores": grid["scores"],
        "differences": grid["differences"],
    }


def _is_set(cell: Mapping[str, Any], axis: str) -> bool:
    """Epsilon is null without privacy; other axes are null where they do not move."""
    return axis == "epsilon" or cell[axis] is not None


def _compare(folder: Path, run: Path, jobs: int) -> str:
    study = f"{folder.as_posix()}/study.toml"
    return f"secfed compare {study} --out {run.as_posix()} --jobs {jobs}"


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the study, with README.md")
    parser.add_argument("--run", type=Path, help="default: runs/NAME of the folder")
    parser.add_argument("--jobs", type=int, default=2, help="of the run; default: 2")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
