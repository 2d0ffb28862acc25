"""A grid against its cells: the study's own cells, one signer, and what all cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from secfed.canonical import parse_json, sha256_hex
from secfed.entries import PlanEntry
from secfed.errors import VerificationError
from secfed.ledger import split_lines, verify_entries
from secfed.privacy.composed import CellPlans, composed_epsilon
from secfed.privacy.plan import PrivacyPlan
from secfed.study import Study
from secfed.study.grid import CELLS, Cell, grid_cells
from secfed.verify.claims import difference
from secfed.verify.files import Bundle

__all__ = ["CELLS", "check_cells", "check_composed", "check_grid", "grid_epsilon"]

_ARM_LEDGER = f"{CELLS}/*/arms/*/ledger.jsonl"

_METHODS_OWN = ("method",)
"""What arms may differ in, of ``[training]``."""


def check_grid(bundle: Bundle, study: Study) -> tuple[tuple[Cell, ...], str]:
    """The cells that ``grid.json`` lists, if they are the study's, all finished.

    Raises:
        VerificationError: It is of another study, or lists other cells than the
            study has or than there are.
    """
    value = bundle.json("grid.json")
    if value["study_digest"] != bundle.manifest.study_digest:
        raise VerificationError("grid.json: of another study than the manifest")
    cells = grid_cells(study)
    for cell, said in zip(cells, value["cells"], strict=False):
        expected = {
            "name": cell.name,
            "epsilon": cell.epsilon,
            "alpha": cell.alpha,
            "rank": cell.rank,
            "run": cell.run,
            "study_digest": cell.study.digest(),
            "status": "finished",
        }
        if any(said.get(key) != expected[key] for key in expected):
            raise VerificationError(
                f"grid.json: cell {cell.name!r} is not as the study has it, or did "
                "not finish"
            )
    names = {name.split("/")[1] for name in bundle.manifest.files if _in_cell(name)}
    odd = names ^ {cell.name for cell in cells}
    if odd or len(value["cells"]) != len(cells):
        listed = ", ".join(sorted(odd)) or "another number of cells"
        raise VerificationError(f"the study's cells and {CELLS}/ differ: {listed}")
    return cells, f"it lists the study's {len(cells)} cells, all finished"


def check_cells(bundle: Bundle, cells: Sequence[Cell]) -> str:
    """Every cell is of its own study and signer, and treats its methods alike."""
    listed = {said["name"]: said for said in bundle.json("grid.json")["cells"]}
    for cell in cells:
        manifest = parse_json(bundle.read(f"{cell.run}/manifest.json"))
        if manifest["coordinator_key"] != bundle.manifest.coordinator_key.hex():
            raise VerificationError(f"{cell.run}/manifest.json: signed by another key")
        if manifest["study_digest"] != cell.study.digest():
            raise VerificationError(f"{cell.run}: of another study than the grid's")
        name = f"{cell.run}/comparison.json"
        if sha256_hex(bundle.read(name)) != listed[cell.name]["comparison_sha256"]:
            raise VerificationError(f"{name}: not the one that grid.json names")
        _check_alike(bundle, cell, bundle.json(name)["arms"])
    return f"{len(cells)} cells have their studies, one signer and equal settings"


def _check_alike(bundle: Bundle, cell: Cell, arms: Sequence[Mapping[str, Any]]) -> None:
    """Arms of a cell differ in the method, and by the seed in the start.

    An arm without a run directory, the pooled baseline, has no evidence to check.
    """
    tables = cell.study.canonical()
    for arm in (arm for arm in arms if arm["run"]):
        name = f"{cell.run}/{arm['run']}/study.json"
        own = bundle.json(name)
        seed = cell.study.adapter.seed + arm["seed"]
        wanted = {
            "distillation": tables.get("distillation"),
            "training": _without(tables["training"], _METHODS_OWN),
            "adapter": {**tables["adapter"], "seed": seed},
        }
        found = {
            "distillation": own.get("distillation"),
            "training": _without(own["training"], _METHODS_OWN),
            "adapter": own["adapter"],
        }
        where = difference(found, wanted)
        if where is not None:
            raise VerificationError(f"{name}: {where[1:]} is not the cell's")


def check_composed(bundle: Bundle, study: Study) -> str:
    """What all cells would cost the same people, computed from their ledgers."""
    said = bundle.json("grid.json")["composed_epsilon"]
    key = bundle.manifest.coordinator_key
    computed = grid_epsilon(study, bundle.read, bundle.manifest.files, key)
    if difference(said, computed) is not None:
        raise VerificationError(
            f"grid.json: composed_epsilon {said} does not follow from the ledgers"
        )
    return f"all cells on the same records would cost epsilon {computed:.4g}"


def grid_epsilon(
    study: Study,
    read: Callable[[str], bytes],
    names: Iterable[str],
    public_key: bytes,
) -> float:
    """Epsilon of all private arms of all cells together.

    Args:
        study: The grid's.
        read: Gives the content of a file of the run directory.
        names: The files that there are.
        public_key: Of the coordinator, who signed the ledgers.

    Raises:
        LedgerError: A ledger does not verify.
        VerificationError: A ledger's second entry is not its plan.
    """
    # Of arms; below those lie copies of ledgers that a study names.
    ledgers = sorted(n for n in names if PurePosixPath(n).match(_ARM_LEDGER))
    cells = []
    for cell in grid_cells(study):
        own = [name for name in ledgers if name.startswith(f"{cell.run}/arms/")]
        plans = [_plans(name, read(name), public_key) for name in own]
        division = "" if cell.alpha is None else repr(cell.alpha)
        cells.append(CellPlans(division, tuple(found for found in plans if found)))
    return composed_epsilon(cells, study.privacy.delta)


def _plans(name: str, ledger: bytes, public_key: bytes) -> dict[str, PrivacyPlan]:
    """The plan of every site of an arm; empty where nothing is private."""
    entries = verify_entries(split_lines(ledger), public_key)
    plan = entries[1].parsed() if len(entries) > 1 else None
    if not isinstance(plan, PlanEntry):
        raise VerificationError(f"{name}: the second entry is not the plan")
    if not plan.private:
        return {}
    return {site: PrivacyPlan.from_json(value) for site, value in plan.sites.items()}


def _in_cell(name: str) -> bool:
    return name.startswith(f"{CELLS}/")


def _without(table: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}
