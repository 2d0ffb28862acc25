"""The rules of a fair comparison, and whether a grid's own files keep them.

What can be read off the arms' studies is read there and not assumed: a comparison
that breaks a rule says so where its numbers stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secfed.report.grid_reading import CellRecord, GridRecord
from secfed.report.measures import has_head
from secfed.report.results import HEAD_ONLY, NON_PRIVATE

__all__ = ["FairnessRule", "broken_rules", "fairness_rules"]


@dataclass(frozen=True)
class FairnessRule:
    """One rule and how this grid keeps it.

    Attributes:
        name: What must be equal, or present.
        kept: Whether it is.
        text: The values, or what is missing.
        binding: Whether a grid that breaks it is refused.
    """

    name: str
    kept: bool
    text: str
    binding: bool = True


def fairness_rules(grid: GridRecord) -> tuple[FairnessRule, ...]:
    """Every rule with what the cells' arms say about it."""
    cells = grid.finished
    return (
        _equal("the same records and model", cells, _records, _records_text(grid)),
        _equal("the same privacy in a cell", cells, _privacy, _privacy_text(grid)),
        _equal("the same steps and sampling", cells, _training, _steps_text(grid)),
        _equal("the same start for a seed", cells, _start, _start_text(grid)),
        _seeds(grid),
        _learning_rates(grid),
        _baselines(grid),
    )


def broken_rules(grid: GridRecord) -> tuple[FairnessRule, ...]:
    """The binding rules that are not kept."""
    rules = fairness_rules(grid)
    return tuple(rule for rule in rules if rule.binding and not rule.kept)


def _equal(
    name: str, cells: Sequence[CellRecord], part: Any, text: str
) -> FairnessRule:
    """Whether ``part`` of the arms' studies agrees among arms of a cell and seed."""
    for cell in cells:
        seen: dict[int, Any] = {}
        arms = cell.record.comparison.arms if cell.record else ()
        for arm in arms:
            value = part(cell.studies[arm.name])
            if value != seen.setdefault(arm.seed, value):
                return FairnessRule(name, kept=False, text=f"not in {cell.name}")
    return FairnessRule(name, kept=True, text=text)


def _records(study: Mapping[str, Any]) -> object:
    return study.get("task"), study.get("data"), study.get("model")


def _privacy(study: Mapping[str, Any]) -> object:
    return study.get("privacy"), study.get("secagg")


def _training(study: Mapping[str, Any]) -> object:
    return {k: v for k, v in study.get("training", {}).items() if k != "method"}


def _start(study: Mapping[str, Any]) -> object:
    return study.get("adapter"), study.get("simulation")


def _records_text(grid: GridRecord) -> str:
    data = grid.study.get("data", {})
    kind = data.get("partition", {}).get("kind")
    alphas = {cell.alpha for cell in grid.cells if cell.alpha is not None}
    named = ""
    if alphas:
        named = f", alpha {', '.join(f'{a:g}' for a in sorted(alphas))}"
    return f"{data.get('source')}, partition {kind}{named}; equal in a cell"


def _privacy_text(grid: GridRecord) -> str:
    finite = sorted({c.epsilon for c in grid.cells if c.epsilon is not None})
    without = any(not cell.is_private for cell in grid.cells)
    listed = [f"{epsilon:g}" for epsilon in finite] + (["inf"] if without else [])
    privacy = grid.study.get("privacy", {})
    return (
        f"epsilon {', '.join(listed)} at delta {privacy.get('delta')}, clip norm "
        f"{privacy.get('clip_norm')}, unit {privacy.get('unit')}"
    )


def _steps_text(grid: GridRecord) -> str:
    training = grid.study.get("training", {})
    return (
        f"{training.get('rounds')} rounds of {training.get('steps_per_round')} steps, "
        f"expected batch {training.get('expected_batch')}, optimizer "
        f"{training.get('optimizer')}"
    )


def _start_text(grid: GridRecord) -> str:
    ranks = sorted({cell.rank for cell in grid.cells})
    return (
        f"A drawn from the same public seed, rank {', '.join(map(str, ranks))} with "
        "the same lora_alpha / r; a rule that freezes the other factor starts from "
        "its own"
    )


def _seeds(grid: GridRecord) -> FairnessRule:
    name = "the same seeds for every method"
    for cell in grid.finished:
        found: dict[str, set[int]] = {}
        for arm in cell.compared:
            found.setdefault(arm.method, set()).add(arm.seed)
        for method, seeds in found.items():
            if seeds != set(grid.seeds):
                text = f"{method} in {cell.name} has others"
                return FairnessRule(name, kept=False, text=text)
    return FairnessRule(name, kept=True, text=", ".join(map(str, grid.seeds)))


def _learning_rates(grid: GridRecord) -> FairnessRule:
    """Named for each method; they are the study's and do not move with epsilon."""
    name = "a learning rate of its own for every method"
    training = grid.study.get("training", {})
    rates = dict(training.get("learning_rate", {}))
    rates.setdefault(HEAD_ONLY, training.get("head_learning_rate"))
    missing = [method for method in grid.methods if rates.get(method) is None]
    if missing:
        return FairnessRule(name, kept=False, text=f"none for {', '.join(missing)}")
    listed = ", ".join(f"{method} {rates[method]:g}" for method in grid.methods)
    plain = training.get("plain_learning_rate") or {}
    if plain and any(not cell.is_private for cell in grid.cells):
        own = ", ".join(f"{m} {plain[m]:g}" for m in grid.methods if m in plain)
        listed += f"; without privacy {own}"
    text = f"{listed}; the same in every cell, so not tuned to epsilon, alpha or rank"
    return FairnessRule(name, kept=True, text=text)


def _baselines(grid: GridRecord) -> FairnessRule:
    """The private head alone, and training without privacy."""
    head = any(
        arm.method == HEAD_ONLY for cell in grid.finished for arm in cell.compared
    )
    without = any(
        arm.kind == NON_PRIVATE
        for cell in grid.finished
        if cell.record
        for arm in cell.record.comparison.arms
    )
    wanted = {"training without privacy": without}
    if has_head(grid.study.get("task")):
        wanted = {"the head alone": head, **wanted}
    there = [name for name, found in wanted.items() if found]
    gone = [name for name, found in wanted.items() if not found]
    text = ", ".join(there)
    if gone:
        text = f"missing: {', '.join(gone)}" + (f"; there: {text}" if text else "")
    return FairnessRule("baselines", kept=not gone, text=text, binding=False)
