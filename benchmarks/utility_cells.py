"""Cells on disk: what was measured once is read, not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from benchmarks.utility_bench import Bench
from benchmarks.utility_progress import Remaining
from benchmarks.utility_recipes import HEAD, Recipe, Utility
from benchmarks.utility_training import Cell, Result, train
from secfed.study.reading import checked

__all__ = ["Store", "trained", "work_of"]

_VERSION: Final = 1
"""Raised when a change of the benchmark's code changes results."""

_HEAD_WORK: Final = 0.2
"""A step of the head alone against a step through one layer, very roughly."""


class Store:
    """One JSON file per cell; it counts only with the digest of its circumstances.

    Args:
        utility: The data set.
        folder: The data set's output folder.
        part: What the cells are trained on; part of the digest.
    """

    def __init__(self, utility: Utility, folder: Path, part: str) -> None:
        self.folder = folder
        self._utility, self._part = utility, part

    def path(self, cell: Cell, recipe: Recipe | None = None) -> Path:
        """Where a cell is kept; with a recipe under its own name."""
        name = cell.name
        if recipe is not None:
            name = f"{name}-{self._digest(cell, recipe)[:12]}"
        return self.folder / self._part / f"{name}.json"

    def read(
        self, cell: Cell, recipe: Recipe, *, by_recipe: bool = False
    ) -> Result | None:
        """The result, or None where it is missing or another recipe's."""
        path = self.path(cell, recipe if by_recipe else None)
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        if values.pop("digest") != self._digest(cell, recipe):
            return None
        return Result(**values["result"])

    def write(
        self, cell: Cell, recipe: Recipe, result: Result, *, by_recipe: bool = False
    ) -> None:
        """Keep a result; a reader sees all of it or nothing."""
        path = self.path(cell, recipe if by_recipe else None)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "digest": self._digest(cell, recipe),
            "cell": {**vars(cell), "epsilon": f"{cell.epsilon:g}"},
            "recipe": recipe.model_dump(mode="json", exclude_none=True),
            "result": result.to_json(),
        }
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(values, indent=1) + "\n")
        partial.replace(path)

    def everything(self) -> list[tuple[Cell, Recipe, Result]]:
        """All kept results that belong to the data set as it is described now."""
        found = []
        for path in sorted((self.folder / self._part).glob("*.json")):
            values = json.loads(path.read_text())
            cell = Cell(
                **{**values["cell"], "epsilon": float(values["cell"]["epsilon"])}
            )
            recipe = checked(Recipe, _tuples(values["recipe"]), path)
            if values["digest"] == self._digest(cell, recipe):
                found.append((cell, recipe, Result(**values["result"])))
        return found

    def _digest(self, cell: Cell, recipe: Recipe) -> str:
        return self._utility.digest(recipe, _VERSION, self._part, cell.name)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where a recipe has tuples."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
    }


def work_of(utility: Utility, recipe: Recipe, cell: Cell) -> float:
    """Records times layers that a cell trains on; all sites."""
    head = recipe.rounds if cell.method == HEAD else recipe.head_rounds
    rounds = (recipe.rounds - head) * recipe.layers + head * _HEAD_WORK
    return rounds * recipe.steps_per_round * recipe.expected_batch * utility.sites


def trained(
    bench: Bench,
    cell: Cell,
    recipe: Recipe,
    store: Store,
    remaining: Remaining,
    *,
    by_recipe: bool = False,
) -> Result:
    """The kept result of a cell, or a new one that is kept."""
    what = f"{bench.utility.name} {cell.name}"
    found = store.read(cell, recipe, by_recipe=by_recipe)
    if found is not None:
        remaining.line(f"{what}: {100 * found.accuracy:.1f} % (kept)")
        return found
    work = work_of(bench.utility, recipe, cell)
    remaining.line(what)
    bench.tick = lambda doing, share: remaining.tick(
        f"{what}: {doing}, {100 * share:.0f} %", 0.0
    )
    result = train(
        bench,
        cell,
        recipe,
        lambda share: remaining.tick(f"{what}: {100 * share:.0f} %", share * work),
    )
    store.write(cell, recipe, result, by_recipe=by_recipe)
    remaining.finished(work)
    remaining.line(f"{what}: {100 * result.accuracy:.1f} % in {result.seconds:.0f} s")
    return result
