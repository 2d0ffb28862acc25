"""Reads what a grid's report shows from its run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfed.errors import RunDirectoryError
from secfed.report.measures import ACCURACY, Measure
from secfed.report.reading import RunRecord, inside, read_object, read_run
from secfed.report.results import NON_PRIVATE, POOLED, Arm, Source

__all__ = ["GRID", "CellRecord", "GridRecord", "is_grid_directory", "read_grid"]

GRID = "grid.json"


@dataclass(frozen=True)
class CellRecord:
    """One cell of a grid.

    Attributes:
        name: Its name.
        epsilon: Of its private arms; None where nothing is private.
        alpha: Of its Dirichlet partition; None where it has another.
        rank: r of its adapters.
        run: Its directory below the grid's.
        reason: Why it has no result; empty where it has one.
        record: Its files; None where it has no result.
        studies: Arm name to the arm's canonical study.
    """

    name: str
    epsilon: float | None
    alpha: float | None
    rank: int
    run: str
    reason: str
    record: RunRecord | None
    studies: Mapping[str, Mapping[str, Any]]

    @property
    def is_private(self) -> bool:
        """Whether its methods were trained with noise."""
        return self.epsilon is not None

    @property
    def compared(self) -> tuple[Arm, ...]:
        """The arms set against each other: private ones, or all where none is."""
        arms = self.record.comparison.arms if self.record else ()
        return tuple(
            arm
            for arm in arms
            if (arm.kind != NON_PRIVATE) == self.is_private and arm.kind != POOLED
        )

    @property
    def measure(self) -> Measure:
        """The main score of its task."""
        return self.record.comparison.measure if self.record else ACCURACY

    @property
    def title(self) -> str:
        """Its place on the axes, in words."""
        epsilon = "inf" if self.epsilon is None else f"{self.epsilon:g}"
        parts = [f"epsilon {epsilon}"]
        if self.alpha is not None:
            parts.append(f"alpha {self.alpha:g}")
        return ", ".join([*parts, f"r {self.rank}"])


@dataclass(frozen=True)
class GridRecord:
    """The files of a grid.

    Attributes:
        directory: Where they were read.
        title: The study's.
        study: The canonical study, empty when the file is missing.
        cells: In the order of the study's lists.
        seeds: Of every method.
        composed_epsilon: Of all cells on the same people; None when unknown.
        delta: At which it is stated.
        shared_budget: Whether the cells were charged to one lasting budget.
        simulation_seed: Public, where there is one.
        manifest: The parsed manifest, unchecked; empty when there is none yet.
        source: The parsed ``grid.json``.
    """

    directory: Path
    title: str
    study: Mapping[str, Any]
    cells: tuple[CellRecord, ...]
    seeds: tuple[int, ...]
    composed_epsilon: float | None
    delta: float | None
    shared_budget: bool
    simulation_seed: int | None
    manifest: Mapping[str, Any]
    source: Mapping[str, Any]

    @property
    def finished(self) -> tuple[CellRecord, ...]:
        """The cells with a result."""
        return tuple(cell for cell in self.cells if cell.record is not None)

    @property
    def measure(self) -> Measure:
        """The main score of the study's task."""
        return next((cell.measure for cell in self.finished), ACCURACY)

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method that was compared in some cell, in order of appearance."""
        names = (arm.method for cell in self.finished for arm in cell.compared)
        return tuple(dict.fromkeys(names))

    @property
    def fingerprint(self) -> str | None:
        """Of the coordinator's key, as the cells' ledgers name it."""
        records = (cell.record for cell in self.finished)
        return next((r.fingerprint for r in records if r and r.fingerprint), None)


def is_grid_directory(directory: str | Path) -> bool:
    """Whether a directory holds a grid's results."""
    return (Path(directory) / GRID).is_file()


def read_grid(directory: str | Path) -> GridRecord:
    """Read a grid's run directory and those of its cells.

    Raises:
        RunDirectoryError: It is not a grid, or a file in it is not what its name
            says.
    """
    folder = Path(directory)
    if not is_grid_directory(folder):
        raise RunDirectoryError(
            f"{folder}: {GRID} is not there; no cell has finished, or this is not a "
            f"grid. `secfed resume {folder}` continues an interrupted one"
        )
    value = read_object(folder / GRID)
    source = Source(value, str(folder / GRID))
    if source.get("format") != 1:
        raise RunDirectoryError(
            f"{source.where}: format is {source.get('format')!r}, this version reads 1"
        )
    return GridRecord(
        directory=folder,
        title=source.text("title", "Study"),
        study=read_object(folder / "study.json", required=False),
        cells=tuple(_cell(folder, item) for item in source.children("cells")),
        seeds=_seeds(source),
        composed_epsilon=source.number("composed_epsilon"),
        delta=source.number("delta"),
        shared_budget=source.text("budget") == "shared",
        simulation_seed=source.whole("simulation_seed"),
        manifest=read_object(folder / "manifest.json", required=False),
        source=value,
    )


def _seeds(source: Source) -> tuple[int, ...]:
    listed = source.get("seeds")
    if not isinstance(listed, list) or not all(isinstance(s, int) for s in listed):
        raise source.wrong("seeds", "a list of whole numbers")
    return tuple(listed)


def _cell(folder: Path, source: Source) -> CellRecord:
    reason, record = source.text("reason"), None
    studies: dict[str, Mapping[str, Any]] = {}
    if source.text("status") == "finished":
        own = inside(folder, source.text("run"))
        record = read_run(own)
        for arm in (arm for arm in record.comparison.arms if arm.run):
            path = inside(own, arm.run) / "study.json"
            studies[arm.name] = read_object(path, required=False)
    rank = source.whole("rank")
    if rank is None:
        raise source.wrong("rank", "a whole number")
    return CellRecord(
        name=source.text("name"),
        epsilon=source.number("epsilon"),
        alpha=source.number("alpha"),
        rank=rank,
        run=source.text("run"),
        reason=reason,
        record=record,
        studies=studies,
    )
