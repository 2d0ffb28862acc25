"""``secfed compare`` on a study that names a grid: its display and its result."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from secfed.cli.output import print_json, show, tell

if TYPE_CHECKING:
    from secfed.policy import SitePolicy
    from secfed.runtime.cells import Limits, Outcome
    from secfed.study import Study

__all__ = ["GridDisplay", "compare_grid", "grid_display", "limits_of", "show_grid"]

_QUIET_SECONDS: Final = 30.0
"""In a pipe, a line about running cells comes at most this often."""


def limits_of(jobs: int, memory_gb: float | None) -> Limits:
    """What the cells may use, from the command line's options."""
    from secfed.runtime.cells import Limits  # noqa: PLC0415

    return Limits(jobs, None if memory_gb is None else int(memory_gb * 1e9))


def compare_grid(
    study: Study,
    study_file: Path,
    folder: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    policy: SitePolicy,
    limits: Limits,
    *,
    as_json: bool,
) -> None:
    """Run a grid to its report and print what it found."""
    from secfed.study.grid import grid_cells  # noqa: PLC0415

    cells = grid_cells(study)
    tell(
        f"{study.study.title}: a grid of {len(cells)} cells, each with "
        f"{', '.join(methods)} and {len(seeds)} seed(s), run directory {folder}"
    )

    from secfed.runtime.grid import run_grid  # noqa: PLC0415

    base_dir = study_file.resolve().parent
    with grid_display(len(cells)) as events:
        run_grid(study, base_dir, folder, methods, seeds, policy, events, limits)
    show_grid(folder, as_json=as_json)


def show_grid(folder: Path, *, as_json: bool) -> None:
    """Print the result of a grid: JSON as written, or tables and words."""
    from secfed.report.grid_conclusion import conclude_grid  # noqa: PLC0415
    from secfed.report.grid_html import cost_of_all  # noqa: PLC0415
    from secfed.report.grid_reading import read_grid  # noqa: PLC0415
    from secfed.report.grid_tables import grid_terminal  # noqa: PLC0415
    from secfed.signing import format_fingerprint  # noqa: PLC0415

    grid = read_grid(folder)
    if as_json:
        print_json(grid.source)
        return
    show(grid_terminal(grid), "", Text(conclude_grid(grid)), "")
    show(Text(cost_of_all(grid)), "")
    show(f"report:  {folder / 'report.html'}")
    quoted = shlex.quote(str(folder))
    if grid.fingerprint is None:
        show(f"check:   secfed verify {quoted}")
        return
    show(f"key:     {format_fingerprint(grid.fingerprint)}")
    show("         tell it to those who check, by another way than the directory")
    show(f"check:   secfed verify {quoted} --trust {grid.fingerprint}")


class GridDisplay:
    """A line when a cell starts or ends; on a terminal also a bar over the cells."""

    def __init__(self, console: Console, total: int) -> None:
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console
        self._total = total
        self._waiting = total
        self._running: set[str] = set()
        self._last = time.monotonic()
        self._cells = self.bars.add_task("cells", total=total)

    def started(self, name: str, waiting: int) -> None:
        """Write a line."""
        self._waiting = waiting
        self._running.add(name)
        self._write(f"{name}: started, {waiting} cells wait")

    def moved(self, rounds: Mapping[str, tuple[int, int]]) -> None:
        """Move the bar; without one, write a line now and then."""
        if not rounds:
            return
        text = ", ".join(
            f"{name} {done}/{all_}" for name, (done, all_) in rounds.items()
        )
        part = sum(done / max(1, all_) for done, all_ in rounds.values())
        ended = self._total - self._waiting - len(self._running)
        self.bars.update(
            self._cells, completed=round(ended + part, 2), description=f"rounds: {text}"
        )
        if self.bars.disable and time.monotonic() - self._last > _QUIET_SECONDS:
            self._write(f"  rounds: {text}")

    def ended(self, outcome: Outcome) -> None:
        """Write a line."""
        self._running.discard(outcome.name)
        if outcome.reason:
            self._write(f"{outcome.name}: FAILED, {outcome.reason}", "bold red")
            return
        memory = f"{outcome.peak_bytes / 1e9:.1f} GB"
        self._write(f"{outcome.name}: finished in {outcome.seconds:.0f} s, {memory}")

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(f"note: {text}")

    def _write(self, text: str, style: str = "") -> None:
        self._last = time.monotonic()
        self._console.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def grid_display(total: int, console: Console | None = None) -> Iterator[GridDisplay]:
    """The display of a grid's cells, on standard error, closed at the end."""
    console = console or Console(stderr=True, highlight=False)
    display = GridDisplay(console, total)
    with display.bars:
        yield display
